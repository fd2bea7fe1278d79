use super::*;
use crate::config::MarketConfig;
use crate::offers::Universe;
use crate::presets::Preset;
use crate::state::{Order, Refusal};
use crate::switches::LowBid;

fn state(change: impl FnOnce(&mut MarketConfig)) -> State {
    let mut config = MarketConfig::new("/nowhere");
    change(&mut config);
    State::new(Arc::new(Universe::from_seed(1, 50)), &config, 0)
}

fn rent(state: &mut State, bid: Option<f64>) -> Result<u64, Refusal> {
    let offer = state.listed(0)[0].id;
    let order = Order {
        disk_gb: 10.0,
        bid,
        ..Order::default()
    };
    state
        .rent(offer, order, "k".to_owned(), 0)
        .map(|rented| rented.id)
}

fn run(state: &mut State, id: u64) {
    let instance = state.alive_mut(id).expect("there");
    instance.turn(Status::Running, "", 0);
    instance.meter.run(0);
}

#[test]
fn a_contract_ends_and_its_disk_goes_later() {
    let mut state = state(|_| {});
    let id = rent(&mut state, None).expect("free");
    run(&mut state, id);
    let end = state.alive(id).expect("there").ends_ms;
    assert_eq!(state.due(end - 1), []);
    assert_eq!(state.due(end), [Due::Stop(id)]);
    state.stop(id, end);
    assert_eq!(state.due(end), []);
    assert_eq!(state.resume(id, end), Err(Refusal::Taken));
    assert_eq!(state.due(end + KEPT_MS), [Due::Destroy(id)]);
}

#[test]
fn credit_that_is_used_up_stops_everything() {
    let mut state = state(|c| c.credit = 0.01);
    let id = rent(&mut state, None).expect("free");
    run(&mut state, id);
    assert_eq!(state.due(1_000), []);
    let later = 3_600_000;
    assert!(state.credit_left(later) < 0.0);
    assert_eq!(state.due(later), [Due::Stop(id)]);
    state.stop(id, later);
    assert_eq!(state.resume(id, later), Err(Refusal::NoCredit));
    let offer = state.listed(0)[0].id;
    let order = Order::default();
    let refused = state.rent(offer, order, "k".to_owned(), later).map(|r| r.id);
    assert_eq!(refused, Err(Refusal::NoCredit));
}

#[test]
fn a_queued_start_waits_for_its_gpus() {
    let mut state = state(|_| {});
    let first = rent(&mut state, None).expect("free");
    let gpus = state.alive(first).map(|i| (i.machine, i.gpus.clone()));
    state.stop(first, 1);
    let second = rent(&mut state, None).expect("free again");
    assert_eq!(state.alive(second).map(|i| (i.machine, i.gpus.clone())), gpus);
    state.alive_mut(first).expect("there").queued = true;
    assert_eq!(state.due(2), []);
    state.destroy(second, 3);
    assert_eq!(state.due(4), [Due::Start(first)]);
    assert!(state.resume(first, 4).expect("free").is_some());
    assert_eq!(state.due(5), []);
}

#[test]
fn too_low_a_bid_makes_a_stopped_contract_or_none() {
    let mut stopped = state(|_| {});
    let id = rent(&mut stopped, Some(0.001)).expect("a contract");
    let instance = stopped.alive(id).expect("there");
    assert!(!instance.intended_running && instance.outbid_by.is_some());
    assert!(
        stopped.change_bid(id, Some(100.0), 1).flatten().is_some(),
        "it starts"
    );
    let mut refused = state(|c| c.switches.low_bid = LowBid::Refused);
    assert_eq!(rent(&mut refused, Some(0.001)), Err(Refusal::LowBid));
}

#[test]
fn rivals_come_and_go_by_themselves() {
    let mut state = state(|c| {
        c.preset = Preset::Hell;
        c.time_scale = 1.0;
    });
    // What a rental meets is drawn; here it is only about bids.
    let (mut outbid, mut returned) = (0, 0);
    let hour = 3_600_000;
    let floor = |state: &State, now| {
        let offer = state.listed(now).first().map(|o| (o.machine, o.gpus.len()));
        offer.map(|(machine, gpus)| state.quote(machine, now).min_bid * gpus as f64)
    };
    let bid = floor(&state, 0).expect("an offer") * 1.05;
    let Some(id) = (0..20).find_map(|_| rent(&mut state, Some(bid)).ok()) else {
        panic!("no rental in twenty tries");
    };
    for quarter in 1..2_000 {
        let now = quarter * hour / 4;
        let Some(instance) = state.alive_mut(id) else {
            break;
        };
        instance.ends_ms = i64::MAX;
        state.credit = f64::INFINITY;
        for due in state.due(now) {
            match due {
                Due::Outbid(id, by) => {
                    outbid += 1;
                    assert!(by > bid);
                    state.outbid(id, Some(by), now);
                    assert_eq!(state.alive(id).map(|i| i.intended_running), Some(false));
                }
                Due::Return(id) => {
                    returned += 1;
                    assert!(state.give_back(id).is_some());
                }
                _ => {}
            }
        }
    }
    assert!(
        outbid > 10 && (outbid - 1..=outbid).contains(&returned),
        "{outbid} {returned}"
    );
}
