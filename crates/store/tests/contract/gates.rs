use crate::dice::Dice;
use crate::fixture::Fixture;
use dumont_core::budget::{Ask, Class, Endpoint, Gate, Refusal, Rule, Verdict};
use dumont_core::time::Timestamp;
use dumont_store::{Account, Store};
use futures::poll;
use std::time::Duration;
use tokio::time::{sleep, timeout};

fn account() -> Account {
    Account {
        provider: "vast".into(),
        name: "a1".into(),
    }
}

fn every(ms: u64) -> Rule {
    Rule {
        interval: Duration::from_millis(ms),
        ..Rule::NONE
    }
}

/// What one statement does is what `Gate::ask` does: the same random life on both.
pub async fn turns_are_given_as_core_decides(fixture: Fixture) {
    let store = fixture.open().await;
    let mut dice = Dice(41);
    let (mut model, mut waiting) = (Gate::default(), Vec::<Ask>::new());
    let (mut turns, mut waits) = (0, 0);
    for n in 0..300 {
        if dice.roll(40) == 0 {
            let refusal = Refusal::TooOften {
                retry_after: Some(Duration::from_millis(dice.roll(9))),
            };
            store
                .gate_refused(&account(), Endpoint::Create, every(3), refusal)
                .await
                .unwrap();
            model = store.gate(&account(), Endpoint::Create).await.unwrap().unwrap();
        }
        let now = store.database_time().await.unwrap();
        // Who is first comes back most of the time, and not before the gate may open.
        if dice.roll(3) == 0 {
            sleep(Duration::from_millis(3)).await;
        }
        let first = waiting.iter().min_by_key(|w| w.deadline).copied();
        let again = match dice.roll(4) {
            0 => None,
            1 if !waiting.is_empty() => Some(waiting[dice.roll(waiting.len() as u64) as usize]),
            _ => first,
        };
        let ask = again.unwrap_or_else(|| Ask {
            who: n + 1,
            deadline: [Class::Urgent, Class::Normal, Class::Background][dice.roll(3) as usize].deadline(now),
            rule: Rule {
                burst: 1 + dice.roll(3) as u32,
                ..every(3)
            },
        });
        let stored = store.ask_gate(&account(), Endpoint::Create, &ask).await.unwrap();
        let told = stored.verdict(&ask);
        let ours = model.ask(&ask, stored.asked_at);
        assert_eq!(
            ours == Verdict::Turn,
            told == Verdict::Turn,
            "request {n}: {ours:?}, {told:?}"
        );
        // The engines round halves differently.
        assert!((model.next_at.0 - stored.next_at.0).abs() <= 1, "request {n}");
        assert!((model.stretch - stored.stretch).abs() < 1e-9);
        let rest = |g: &Gate| (g.taken_by, g.first_who, g.first_deadline);
        assert_eq!(rest(&model), rest(&stored), "request {n}");
        assert!(
            (model.first_until.0 - stored.first_until.0).abs() <= 1,
            "request {n}"
        );
        model = stored;
        match told {
            Verdict::Turn => {
                turns += 1;
                waiting.retain(|w| w.who != ask.who);
            }
            _ => {
                waits += 1;
                waiting.push(ask);
            }
        }
    }
    assert!(turns > 30 && waits > 30, "{turns} turns, {waits} waits");
}

/// Waits for a turn; when it was given, on the database's clock.
async fn turn(store: &Store, who: i64, class: Class, rule: Rule) -> Timestamp {
    let now = store.database_time().await.unwrap();
    let ask = Ask {
        who,
        deadline: class.deadline(now),
        rule,
    };
    loop {
        let gate = store.ask_gate(&account(), Endpoint::Create, &ask).await.unwrap();
        match gate.verdict(&ask) {
            Verdict::Turn => return gate.asked_at,
            Verdict::Wait(wait) | Verdict::Closed(wait) => sleep(wait).await,
        }
    }
}

/// Eight connections of their own, as eight replicas have them, each for itself.
pub async fn eight_replicas_keep_the_distance(fixture: Fixture) {
    let rule = every(40);
    let mut replicas = Vec::new();
    for replica in 0..8i64 {
        let store = fixture.open().await;
        replicas.push(tokio::spawn(async move {
            let mut turns = Vec::new();
            for n in 0..5i64 {
                turns.push(turn(&store, 1 + replica * 100 + n, Class::Normal, rule).await);
            }
            turns
        }));
    }
    let mut turns: Vec<Timestamp> = Vec::new();
    for replica in replicas {
        turns.extend(replica.await.unwrap());
    }
    turns.sort();
    assert_eq!(turns.len(), 40);
    for pair in turns.windows(2) {
        assert!(pair[1].0 - pair[0].0 >= 40_000, "{pair:?}");
    }
    let rows = fixture
        .lines("SELECT CAST(COUNT(*) AS TEXT) FROM provider_gates")
        .await;
    assert_eq!(rows, ["1"], "one row for all");
}

pub async fn refusals_are_shared(fixture: Fixture) {
    let (one, other) = (fixture.open().await, fixture.open().await);
    let rule = every(1_000);
    turn(&one, 1, Class::Urgent, rule).await;
    let refusal = Refusal::TooOften {
        retry_after: Some(Duration::from_secs(30)),
    };
    one.gate_refused(&account(), Endpoint::Create, rule, refusal)
        .await
        .unwrap();
    let ask = Ask {
        who: 2,
        deadline: Class::Urgent.deadline(other.database_time().await.unwrap()),
        rule,
    };
    match other
        .ask_gate(&account(), Endpoint::Create, &ask)
        .await
        .unwrap()
        .verdict(&ask)
    {
        Verdict::Wait(wait) => assert!(wait > Duration::from_secs(25), "{wait:?}"),
        told => panic!("{told:?}"),
    }
    let elsewhere = other.ask_gate(&account(), Endpoint::List, &ask).await.unwrap();
    assert_eq!(elsewhere.verdict(&ask), Verdict::Turn, "another endpoint");
    let quota = Refusal::Quota {
        resets_in: Some(Duration::from_secs(3_000)),
    };
    one.gate_refused(&account(), Endpoint::Search, rule, quota)
        .await
        .unwrap();
    match other
        .ask_gate(&account(), Endpoint::Search, &ask)
        .await
        .unwrap()
        .verdict(&ask)
    {
        Verdict::Closed(left) => assert!(left > Duration::from_secs(2_900), "{left:?}"),
        told => panic!("{told:?}"),
    }
}

/// Whoever waits for a turn may look away at any moment of it, and then has to write something itself.
pub async fn a_turn_that_nobody_looks_at_holds_up_no_writer(fixture: Fixture) {
    let store = fixture.open().await;
    let rule = every(1);
    for looks in 1.. {
        // The first turn of an account is its longest.
        let account = Account {
            name: format!("a{looks}"),
            ..account()
        };
        let ask = Ask {
            who: 1,
            deadline: Class::Urgent.deadline(store.database_time().await.unwrap()),
            rule,
        };
        let mut turn = Box::pin(store.ask_gate(&account, Endpoint::Create, &ask));
        let mut given = false;
        for _ in 0..looks {
            given = poll!(turn.as_mut()).is_ready();
            if given {
                break;
            }
            sleep(Duration::from_millis(1)).await;
        }
        let refusal = Refusal::TooOften { retry_after: None };
        let write = store.gate_refused(&account, Endpoint::Create, rule, refusal);
        let written = timeout(Duration::from_secs(5), write).await;
        assert!(written.is_ok(), "nobody can write after {looks} looks at a turn");
        if given {
            assert!(looks > 1, "it never had to be waited for");
            return;
        }
        turn.await.unwrap();
    }
}
