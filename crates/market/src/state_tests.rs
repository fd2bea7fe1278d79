use super::*;
use crate::faults::{FaultKind, Measure};

fn state() -> State {
    State::new(
        Arc::new(Universe::from_seed(1, 50)),
        &MarketConfig::new("/nowhere"),
        0,
    )
}

fn rent(state: &mut State, offer: u64) -> Result<u64, Refusal> {
    let order = Order {
        disk_gb: 10.0,
        ..Order::default()
    };
    state
        .rent(offer, order, "k".to_owned(), 0)
        .map(|rented| rented.id)
}

fn listed(state: &State) -> Vec<u64> {
    state
        .universe
        .listed(|m, g| state.is_free(m, g))
        .iter()
        .map(|(_, o)| o.id)
        .collect()
}

#[test]
fn what_is_rented_vanishes_and_returns() {
    let mut state = state();
    let before = listed(&state);
    let offer = before[0];
    let id = rent(&mut state, offer).expect("free");
    assert!(!listed(&state).contains(&offer));
    assert_eq!(rent(&mut state, offer), Err(Refusal::Taken));
    assert_eq!(rent(&mut state, 1), Err(Refusal::NoSuchAsk));
    assert!(state.destroy(id, 10).is_some());
    assert!(state.destroy(id, 11).is_none(), "gone is gone");
    assert_eq!(listed(&state), before);
}

#[test]
fn a_stopped_one_does_not_free_what_another_took_meanwhile() {
    let mut state = state();
    let offer = listed(&state)[0];
    let first = rent(&mut state, offer).expect("free");
    state.stop(first, 5);
    let second = rent(&mut state, offer).expect("free again");
    assert_eq!(state.resume(first, 5), Err(Refusal::Taken));
    state.destroy(first, 9);
    assert_eq!(
        rent(&mut state, offer),
        Err(Refusal::Taken),
        "the second still holds it"
    );
    state.destroy(second, 10);
    assert!(rent(&mut state, offer).is_ok());
}

#[test]
fn a_boot_that_was_overtaken_is_void() {
    let mut state = state();
    let offer = listed(&state)[0];
    let id = rent(&mut state, offer).expect("free");
    let first = BootTicket {
        instance: id,
        boot: 1,
    };
    assert!(state.booting(first).is_some());
    state.stop(id, 1);
    assert!(state.booting(first).is_none());
    let second = state.resume(id, 5).expect("free").expect("a boot");
    assert!(state.booting(second).is_some());
    state.kill(id, 2);
    assert!(state.booting(second).is_none());
    assert!(
        state.alive(id).is_some(),
        "a killed one must still be destroyed by its renter"
    );
}

#[test]
fn an_outbid_one_keeps_its_disk_and_loses_its_gpus() {
    let mut state = state();
    let offer = listed(&state)[0];
    let id = rent(&mut state, offer).expect("free");
    assert!(state.outbid(id, None, 5).is_some());
    let instance = state.alive(id).expect("its disk is still rented");
    assert_eq!(
        (instance.status, instance.intended_running),
        (Status::Exited, false)
    );
    assert_eq!(state.resume(id, 5), Err(Refusal::Taken));
    assert_eq!(rent(&mut state, offer), Err(Refusal::Taken));
    state.destroy(id, 9);
    assert!(rent(&mut state, offer).is_ok());
}

#[test]
fn a_lagging_key_is_refused_at_least_once_and_then_until_its_time() {
    let mut state = state();
    let offer = listed(&state)[0];
    state.faults.arm(crate::faults::Fault {
        fault: FaultKind::KeyLag,
        count: 1,
        machine_id: None,
        measure: Measure {
            for_ms: Some(100),
            ..Measure::default()
        },
    });
    let id = rent(&mut state, offer).expect("free");
    let instance = state.alive_mut(id).expect("there");
    for (at, lags) in [(1_000, true), (1_099, true), (1_100, false), (2_000, false)] {
        assert_eq!(instance.key_lags(at), lags, "at {at}");
    }
    assert_eq!(instance.refused_logins, 2);
}
