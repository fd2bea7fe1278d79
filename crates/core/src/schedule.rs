//! When a workspace's next snapshot is due by itself.
//!
//! Many workspaces may begin in the same minute: a fleet that was deployed by a script, a whole data
//! centre that failed over. Were each due one interval later, they would all upload at once, and
//! for ever after, as each snapshot sets the time of the next. So a moment is drawn for each, early
//! rather than late: what a lost machine takes with it is never more than one interval's work. The
//! draw is a hash and no dice, so that it is the same in every process and after every restart.

use crate::time::Timestamp;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

/// After a failure it is tried again before the interval is over, but never sooner than half of
/// this or of the interval, whichever is less.
const RETRY: Duration = Duration::from_secs(600);

/// What is known of a workspace that lives on a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Since when it lives where it lives now: its files were those of a snapshot then.
    pub lives_since: Timestamp,
    /// The moment of its newest snapshot.
    pub taken_at: Option<Timestamp>,
    /// When the last try failed, if it did.
    pub failed_at: Option<Timestamp>,
}

/// The moment from which a snapshot is due.
pub fn due(workspace_id: &str, every: Duration, standing: &Standing) -> Timestamp {
    let taken = standing.taken_at.filter(|t| *t >= standing.lives_since);
    let regular = match taken {
        Some(at) => drawn(workspace_id, at, every.mul_f64(0.9), every),
        // Whoever began together is drawn apart widely.
        None => drawn(workspace_id, standing.lives_since, every / 2, every),
    };
    match standing.failed_at.filter(|t| *t >= standing.lives_since) {
        Some(at) => {
            let most = every.min(RETRY);
            regular.max(drawn(workspace_id, at, most / 2, most))
        }
        None => regular,
    }
}

/// A moment from `least` to `most` after `from`, the same one every time it is asked for.
fn drawn(workspace_id: &str, from: Timestamp, least: Duration, most: Duration) -> Timestamp {
    let mut hash = DefaultHasher::new();
    (workspace_id, from).hash(&mut hash);
    let share = hash.finish() as f64 / u64::MAX as f64;
    from.plus(least + (most - least).mul_f64(share))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn since(lives_since: i64) -> Standing {
        Standing {
            lives_since: Timestamp(lives_since),
            taken_at: None,
            failed_at: None,
        }
    }

    #[test]
    fn a_thousand_that_began_together_do_not_snapshot_together() {
        // Each minute's snapshots over ten hours, each one's next drawn from its last.
        let mut minutes = vec![0; 660];
        for n in 0..1000 {
            let id = format!("workspace-{n}");
            let mut standing = since(0);
            loop {
                let at = due(&id, HOUR, &standing);
                let Some(minute) = minutes.get_mut((at.unix_seconds() / 60) as usize) else {
                    break;
                };
                *minute += 1;
                standing.taken_at = Some(at);
            }
        }
        // At the even pace it would be some 17 a minute.
        let most = minutes.iter().max().unwrap();
        assert!(*most < 60, "{most} in one minute");
    }

    proptest! {
        #[test]
        fn no_more_than_one_interval_is_lost_and_nothing_is_hurried(
            id in "[a-z]{1,8}", every in 1_u64..1_000_000, lives in 0_i64..1 << 50, taken in prop::option::of(0_i64..1 << 50),
        ) {
            let every = Duration::from_secs(every);
            let standing = Standing { taken_at: taken.map(Timestamp), ..since(lives) };
            let newest = Timestamp(lives.max(taken.unwrap_or(0)));
            let at = due(&id, every, &standing);
            prop_assert!(at >= newest.plus(every / 2) && at <= newest.plus(every));
            prop_assert_eq!(at, due(&id, every, &standing));
        }

        #[test]
        fn a_failure_is_tried_again_soon_but_not_at_once(
            id in "[a-z]{1,8}", every in 1_u64..1_000_000, failed in 0_i64..1 << 50,
        ) {
            let every = Duration::from_secs(every);
            let standing = Standing { failed_at: Some(Timestamp(failed)), ..since(0) };
            let at = due(&id, every, &standing);
            let pause = every.min(RETRY);
            prop_assert!(at >= Timestamp(failed).plus(pause / 2));
            prop_assert!(at <= Timestamp(failed).plus(pause).max(due(&id, every, &since(0))));
        }
    }
}
