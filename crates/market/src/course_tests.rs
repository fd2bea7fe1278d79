use super::*;
use crate::config::MarketConfig;
use crate::offers::{Quote, Universe};
use crate::presets::Preset;
use crate::state::{Order, Refusal};
use crate::switches::LowBid;

fn state(change: impl FnOnce(&mut MarketConfig)) -> State {
    let mut config = MarketConfig::new("/nowhere");
    change(&mut config);
    State::new(Arc::new(Universe::from_seed(1, 50)), &config, 0)
}

fn first(state: &mut State, now: i64) -> u64 {
    let board = state.board(now);
    board
        .rows()
        .next()
        .map(|(_, offer, _)| offer.id)
        .expect("an offer")
}

fn rent(state: &mut State, bid: Option<f64>) -> Result<u64, Refusal> {
    let offer = first(state, 0);
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
    let offer = first(&mut state, later);
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

/// A person stops it, and starts it again: that the same bid has it tells that nobody outbid it.
#[test]
fn a_start_is_taken_while_its_bid_has_the_machine() {
    let mut state = state(|_| {});
    let id = rent(&mut state, Some(100.0)).expect("a contract");
    run(&mut state, id);
    state.stop(id, 1);
    assert!(state.resume(id, 2).expect("free").is_some());
    state.stop(id, 3);
    state.alive_mut(id).expect("there").order.bid = Some(0.001);
    assert_eq!(state.resume(id, 4), Err(Refusal::Taken), "others bid more by now");
    state.alive_mut(id).expect("there").order.bid = Some(100.0);
    assert!(state.resume(id, 5).expect("free").is_some());
    // Outbid and stopped as well: the GPUs are the other's all the same.
    state.outbid(id, None, 6);
    state.stop(id, 7);
    assert_eq!(state.resume(id, 8), Err(Refusal::Taken));
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
    let board = state.board(0);
    let (_, offer, quote) = board.rows().next().expect("an offer");
    let bid = quote.min_bid * offer.gpus.len() as f64 * 1.05;
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

/// What is kept of the board is what it would be if it were made anew, whenever one looks.
#[test]
fn the_board_that_is_kept_is_the_one_of_now() {
    let fresh = |state: &State, now| -> Vec<(u64, Option<Quote>)> {
        let (tides, hour) = (state.tides().expect("tides"), state.hour(now));
        let there = |m: usize| {
            let machine = &state.universe.machines[m];
            tides.present(machine, hour) && !tides.taken(machine, hour)
        };
        let free = |m, gpu| there(m) && state.is_free(m, gpu);
        let rows = state.universe.listed(free).into_iter();
        rows.map(|(_, o)| (o.id, Some(state.quote(o.machine, now))))
            .collect()
    };
    for (preset, scale) in [(Preset::Hell, 1.0), (Preset::Hell, 0.037), (Preset::Vast, 0.0)] {
        let mut state = state(|c| {
            c.preset = preset;
            c.time_scale = scale;
        });
        let (mut now, mut boards) = (0, std::collections::HashSet::new());
        for step in 0..3_000_i64 {
            now += step * 7_919 % 40_000;
            let board = state.board(now);
            let kept: Vec<_> = board.rows().map(|(_, o, quote)| (o.id, Some(quote))).collect();
            assert_eq!(kept, fresh(&state, now), "{preset:?} {scale} at {now}");
            boards.insert(Arc::as_ptr(&board) as usize);
            if step % 50 == 0 && !kept.is_empty() {
                let offer = kept[step as usize % kept.len()].0;
                let _ = state.rent(offer, Order::default(), "k".to_owned(), now);
            }
            if step % 170 == 0 {
                let alive: Vec<u64> = state.all_alive().map(|i| i.id).collect();
                alive.iter().take(2).for_each(|id| drop(state.destroy(*id, now)));
            }
        }
        assert!(boards.len() > 1, "it changes");
    }
}

/// Hours in which somebody has it on demand: no bid stands against that, and it ends.
#[test]
fn on_demand_goes_before_every_bid() {
    let mut state = state(|c| {
        c.preset = Preset::Hell;
        c.time_scale = 1.0;
        c.credit = f64::INFINITY;
    });
    let rented = (0..40).find_map(|_| rent(&mut state, Some(100.0)).ok());
    let id = rented.expect("no rental in forty tries");
    run(&mut state, id);
    let (machine, gpus) = state.alive(id).map(|i| (i.machine, i.gpus.len())).expect("there");
    state.alive_mut(id).expect("there").ends_ms = i64::MAX;
    let minutes = (1..10_000).map(|m| m * 60_000);
    let taken = |state: &State, now: &i64| state.floor(machine, gpus, *now).is_infinite();
    let bids = |state: &State, now| -> Vec<Due> {
        let all = state.due(now).into_iter();
        all.filter(|due| matches!(due, Due::Outbid(..) | Due::Return(_)))
            .collect()
    };
    let start = minutes.clone().find(|now| taken(&state, now)).expect("a taker");
    assert_eq!(bids(&state, start - 60_000), []);
    assert_eq!(bids(&state, start), [Due::Outbid(id, f64::INFINITY)]);
    state.outbid(id, Some(f64::INFINITY), start);
    let listed: Vec<usize> = state.board(start).rows().map(|(_, o, _)| o.machine).collect();
    assert!(!listed.contains(&machine), "nobody else gets it either");
    assert!(
        state.change_bid(id, Some(120.0), start).flatten().is_none(),
        "money does not help"
    );
    assert!(state.change_bid(id, None, start).flatten().is_none());
    let bid = state.alive(id).and_then(|i| i.order.bid).expect("a bid");
    assert!(bid.is_finite(), "{bid}");
    state.change_bid(id, Some(120.0), start);
    let mut after = minutes.filter(|now| *now > start);
    let end = after.find(|now| !taken(&state, now)).expect("an end");
    assert_eq!(bids(&state, end - 60_000), []);
    assert_eq!(bids(&state, end), [Due::Return(id)]);
    assert!(state.give_back(id).is_some());
}
