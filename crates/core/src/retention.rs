//! Which snapshots a workspace keeps.
//!
//! The newest few, then the newest of each hour, day and week for a while: recent mistakes can be
//! undone finely and old ones coarsely. Three things are beyond all numbers: what is pinned, what
//! something running needs, and the last snapshots of the instances before the present one. The
//! last is against a host that turned hostile: it can take snapshots as fast as it likes, but not
//! push out what its predecessor left (design decision 1). Several are kept so, because whoever
//! follows a hostile host has that one for a predecessor.
//!
//! Times are the controller's: a host's clock decides nothing.

use crate::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// How many of what; 0 keeps none on that account.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Keep {
    /// The newest ones.
    pub last: u32,
    /// Hours with a snapshot, of which the newest is kept; likewise days and weeks.
    pub hourly: u32,
    pub daily: u32,
    pub weekly: u32,
}

impl Default for Keep {
    fn default() -> Self {
        Self {
            last: 24,
            hourly: 24,
            daily: 7,
            weekly: 4,
        }
    }
}

/// Of each instance before the present one, and of how many of those.
const PREDECESSOR: usize = 3;
const PREDECESSORS: usize = 4;

/// A visible snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept<'a> {
    pub id: &'a str,
    pub created_at: Timestamp,
    /// Who took it; none for an import.
    pub instance: Option<&'a str>,
    pub pinned: bool,
    /// The parent of a snapshot that may come, or what a restore reads now.
    pub needed: bool,
}

/// The ids that may go, oldest first.
pub fn expired<'a>(keep: Keep, snapshots: &[Kept<'a>]) -> Vec<&'a str> {
    let mut newest_first: Vec<&Kept<'a>> = snapshots.iter().collect();
    newest_first.sort_by_key(|s| (std::cmp::Reverse(s.created_at), s.id));
    let mut stay: HashSet<&str> = HashSet::new();
    // A workspace never loses its last one, whatever the numbers.
    let last = (keep.last as usize).max(1);
    stay.extend(newest_first.iter().take(last).map(|s| s.id));
    for (count, seconds) in [(keep.hourly, 3600), (keep.daily, 86_400), (keep.weekly, 604_800)] {
        let mut periods = HashSet::new();
        for s in &newest_first {
            // Weeks begin on Mondays; the epoch was a Thursday.
            let shifted = s.created_at.unix_seconds() + 3 * 86_400;
            let period = shifted.div_euclid(seconds);
            if periods.len() < count as usize && periods.insert(period) {
                stay.insert(s.id);
            }
        }
    }
    let present = newest_first.first().and_then(|s| s.instance);
    let mut earlier: Vec<(Option<&str>, usize)> = Vec::new();
    for s in newest_first.iter().filter(|s| s.instance != present) {
        let number = earlier.iter().position(|(instance, _)| *instance == s.instance);
        let number = number.unwrap_or(earlier.len());
        if number == earlier.len() && number < PREDECESSORS {
            earlier.push((s.instance, 0));
        }
        if let Some((_, kept)) = earlier.get_mut(number).filter(|(_, kept)| *kept < PREDECESSOR) {
            *kept += 1;
            stay.insert(s.id);
        }
    }
    newest_first
        .iter()
        .rev()
        .filter(|s| !s.pinned && !s.needed && !stay.contains(s.id))
        .map(|s| s.id)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR: i64 = 3600;

    fn at(id: &str, seconds: i64) -> Kept<'_> {
        Kept {
            id,
            created_at: Timestamp(seconds * 1_000_000),
            instance: Some("i1"),
            pinned: false,
            needed: false,
        }
    }

    #[test]
    fn a_day_of_half_hours_thins_out() {
        let ids: Vec<String> = (0..480).map(|i| format!("s{i:03}")).collect();
        // Ten days, one each half hour.
        let all: Vec<_> = (0i64..).zip(&ids).map(|(i, id)| at(id, i * HOUR / 2)).collect();
        let gone = expired(Keep::default(), &all);
        let stay: Vec<_> = ids.iter().filter(|id| !gone.contains(&id.as_str())).collect();
        // 24 newest (12 h), 12 more hours, 6 days besides today and yesterday's hours, a week.
        assert!(
            stay.len() >= 24 + 12 + 5 && stay.len() <= 24 + 24 + 7 + 4,
            "{}",
            stay.len()
        );
        assert!(ids[456..].iter().all(|id| stay.contains(&id)));
        assert_eq!(expired(Keep::default(), &all[..24]), Vec::<&str>::new());
    }

    #[test]
    fn a_flood_does_not_push_out_what_the_predecessor_left() {
        let ids: Vec<String> = (0..1000).map(|i| format!("flood{i}")).collect();
        let mut all: Vec<_> = ids.iter().map(|id| at(id, 10 * HOUR + 1)).collect();
        for good in ["a", "b", "c", "d"] {
            all.push(Kept {
                instance: Some("i0"),
                ..at(good, 10 * HOUR)
            });
        }
        let none = Keep {
            last: 2,
            hourly: 0,
            daily: 0,
            weekly: 0,
        };
        let gone = expired(none, &all);
        assert_eq!(gone.len(), 1004 - 2 - PREDECESSOR);
        assert_eq!(gone.iter().filter(|id| id.len() == 1).count(), 1);
    }

    #[test]
    fn nor_does_a_second_flood_push_out_what_was_there_before_the_first() {
        let ids: Vec<String> = (0..200).map(|i| format!("flood{i}")).collect();
        let mut all = vec![Kept {
            instance: Some("i0"),
            ..at("good", HOUR)
        }];
        all.extend((0i64..).zip(&ids).map(|(i, id)| Kept {
            instance: Some(if i < 100 { "i1" } else { "i2" }),
            ..at(id, 2 * HOUR + i)
        }));
        let none = Keep {
            last: 2,
            hourly: 0,
            daily: 0,
            weekly: 0,
        };
        let gone = expired(none, &all);
        assert_eq!(gone.len(), 201 - 1 - 2 - PREDECESSOR);
        assert!(!gone.contains(&"good"));
    }

    prop_compose! {
        fn snapshots()(all in prop::collection::vec(
            (0i64..3_000_000, 0u8..4, any::<bool>(), any::<bool>()), 0..80,
        )) -> Vec<(String, i64, String, bool, bool)> {
            all.into_iter().enumerate().map(|(i, (t, by, pinned, needed))| {
                (format!("s{i}"), t, format!("i{by}"), pinned && t % 3 == 0, needed && t % 5 == 0)
            }).collect()
        }
    }

    fn kept(all: &[(String, i64, String, bool, bool)]) -> Vec<Kept<'_>> {
        all.iter()
            .map(|(id, t, by, pinned, needed)| Kept {
                instance: Some(by),
                pinned: *pinned,
                needed: *needed,
                ..at(id, *t)
            })
            .collect()
    }

    proptest! {
        #[test]
        fn nothing_that_matters_goes(
            all in snapshots(), last in 0u32..10, hourly in 0u32..10, daily in 0u32..5, weekly in 0u32..3,
        ) {
            let (keep, all) = (Keep { last, hourly, daily, weekly }, kept(&all));
            let gone: HashSet<_> = expired(keep, &all).into_iter().collect();
            let mut newest: Vec<_> = all.iter().collect();
            newest.sort_by_key(|s| (std::cmp::Reverse(s.created_at), s.id));
            for (i, s) in newest.iter().enumerate() {
                if i == 0 || i < last as usize || s.pinned || s.needed {
                    prop_assert!(!gone.contains(s.id));
                }
            }
            // Of every hour that the rule reaches, the newest stays.
            let hours: HashSet<i64> = newest.iter().map(|s| s.created_at.unix_seconds() / HOUR).collect();
            let mut hours: Vec<_> = hours.into_iter().collect();
            hours.sort_unstable_by_key(|h| std::cmp::Reverse(*h));
            for hour in hours.iter().take(hourly as usize) {
                let first = newest.iter().find(|s| s.created_at.unix_seconds() / HOUR == *hour);
                prop_assert!(first.is_some_and(|s| !gone.contains(s.id)));
            }
            // Asked again about what is left, it gives the same answer: pruning may be repeated.
            let left: Vec<_> = all.iter().filter(|s| !gone.contains(s.id)).cloned().collect();
            prop_assert_eq!(expired(keep, &left), Vec::<&str>::new());
        }
    }
}
