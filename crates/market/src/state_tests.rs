use super::*;

fn state() -> State {
    State::new(Arc::new(Universe::from_seed(1, 50)))
}

fn rent(state: &mut State, offer: u64) -> Result<u64, Refusal> {
    state.rent(
        offer,
        Order {
            disk_gb: 10.0,
            ..Order::default()
        },
        "k".to_owned(),
        0,
    )
}

fn listed(state: &State) -> Vec<u64> {
    state
        .universe
        .listed(|m, g| state.is_free(m, g))
        .iter()
        .map(|o| o.id)
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
    assert_eq!(state.resume(first), Err(Refusal::Taken));
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
    let second = state.resume(id).expect("free").expect("a boot");
    assert!(state.booting(second).is_some());
    state.kill(id, 2);
    assert!(state.booting(second).is_none());
    assert!(
        state.alive(id).is_some(),
        "a killed one must still be destroyed by its renter"
    );
}
