//! Blocks give way before a search comes up empty.
//!
//! A block says that others are better. Where fewer machines are left than a race needs, that
//! is no longer so: soft blocks are ignored first, then entries are passed over, the one that
//! would expire soonest first. A person's entry never is. Nothing is removed: the machine is
//! tried this once, and the entry stands.

use super::{BlacklistType, CudaVersion, Entry, Scope, is_active};
use crate::time::Timestamp;

/// What speaks against one candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bar {
    /// The score's own doubt ([`crate::reliability::Posterior::soft_blocked`]).
    pub soft: bool,
    /// The strongest entry that applies to this search ([`Bar::entry`]).
    pub entry: Option<Entry>,
}

impl Bar {
    /// Of a machine's entries the one to reckon with at `now` in a search that asks for
    /// `cuda`: a person's before a rule's, then the one that ends last.
    pub fn entry(
        entries: impl IntoIterator<Item = (Entry, Option<Scope>)>,
        cuda: Option<CudaVersion>,
        now: Timestamp,
    ) -> Option<Entry> {
        let strength = |e: &Entry| {
            let manual = e.blacklist_type == BlacklistType::Manual;
            (manual, e.expires_at.map_or(i64::MAX, |t| t.0))
        };
        entries
            .into_iter()
            .filter(|(e, scope)| is_active(e, now) && scope.is_none_or(|s| s.covers(cuda)))
            .map(|(e, _)| e)
            .max_by_key(strength)
    }
}

/// Which candidates a search may use; indices into what was given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selection {
    /// Best first: the free ones in the order given, then what had to be let in.
    pub usable: Vec<usize>,
    /// Of them, those that only a lack of others let in.
    pub released: Vec<usize>,
}

/// Picks from candidates that stand best first. Fewer than `keep` free ones let others in
/// until there are `keep` ([`super::Settings::keep`]).
pub fn select(bars: &[Bar], keep: usize, now: Timestamp) -> Selection {
    let blocked = |bar: &Bar| bar.entry.filter(|e| is_active(e, now));
    let indices = |wanted: &dyn Fn(&Bar) -> bool| -> Vec<usize> {
        (0..bars.len()).filter(|i| wanted(&bars[*i])).collect()
    };
    let mut usable = indices(&|b| !b.soft && blocked(b).is_none());
    let mut spare = indices(&|b| b.soft && blocked(b).is_none());
    let mut passed = indices(&|b| blocked(b).is_some_and(|e| e.blacklist_type != BlacklistType::Manual));
    // Stable: of two that end together the better one comes first.
    passed.sort_by_key(|i| {
        blocked(&bars[*i])
            .and_then(|e| e.expires_at)
            .unwrap_or(Timestamp(i64::MAX))
    });
    spare.append(&mut passed);
    spare.truncate(keep.saturating_sub(usable.len()));
    usable.extend(&spare);
    Selection {
        usable,
        released: spare,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Timestamp = Timestamp(1_000);

    fn entry(blacklist_type: BlacklistType, end: Option<i64>) -> Entry {
        Entry {
            blacklist_type,
            expires_at: end.map(Timestamp),
            open: true,
        }
    }

    fn barred(blacklist_type: BlacklistType, end: Option<i64>) -> Bar {
        Bar {
            soft: false,
            entry: Some(entry(blacklist_type, end)),
        }
    }

    #[test]
    fn soft_ones_come_back_first_then_the_soonest_to_expire_and_never_a_persons() {
        use BlacklistType::{Automatic, Manual, Temporary};
        let bars = [
            barred(Automatic, Some(9_000)),
            Bar::default(),
            barred(Manual, Some(1_100)),
            barred(Temporary, Some(5_000)),
            Bar {
                soft: true,
                entry: None,
            },
            barred(Automatic, Some(500)),
        ];
        let pick = |keep| select(&bars, keep, NOW);
        assert_eq!(pick(0).usable, [1, 5], "an expired entry bars nobody");
        assert!(pick(2).released.is_empty());
        assert_eq!(pick(3).released, [4]);
        assert_eq!(pick(4).usable, [1, 5, 4, 3]);
        assert_eq!(pick(99).usable, [1, 5, 4, 3, 0]);
    }

    #[test]
    fn the_strongest_entry_that_applies_is_reckoned_with() {
        use BlacklistType::{Automatic, Manual};
        let scope: Scope = "cuda=12.8".parse().expect("a scope");
        let entries = [
            (entry(Automatic, Some(9_000)), None),
            (entry(Manual, None), Some(scope)),
        ];
        let at = |cuda: Option<&str>| Bar::entry(entries, cuda.map(|c| c.parse().expect("a version")), NOW);
        assert_eq!(at(Some("12.8")), Some(entries[1].0));
        assert_eq!(at(Some("12.4")), Some(entries[0].0));
        assert_eq!(at(None), Some(entries[0].0));
        assert_eq!(Bar::entry(entries, None, Timestamp(9_000)), None);
    }

    fn bars() -> impl Strategy<Value = Vec<Bar>> {
        let end = proptest::option::of(0..3_000_i64);
        let any_entry = (0..3_usize, end, any::<bool>()).prop_map(|(t, end, open)| Entry {
            open,
            ..entry(BlacklistType::ALL[t], end)
        });
        let bar = (any::<bool>(), proptest::option::of(any_entry));
        proptest::collection::vec(bar.prop_map(|(soft, entry)| Bar { soft, entry }), 0..30)
    }

    proptest! {
        #[test]
        fn a_search_is_fed_as_far_as_people_allow(bars in bars(), keep in 0..12_usize) {
            let picked = select(&bars, keep, NOW);
            let active = |i: usize| bars[i].entry.filter(|e| is_active(e, NOW));
            let manual = |i: usize| active(i).is_some_and(|e| e.blacklist_type == BlacklistType::Manual);
            let mut once = picked.usable.clone();
            once.sort_unstable();
            once.dedup();
            prop_assert_eq!(once.len(), picked.usable.len());
            prop_assert!(picked.usable.iter().all(|i| !manual(*i)), "a manual entry always wins");
            let allowed = (0..bars.len()).filter(|i| !manual(*i)).count();
            let free = (0..bars.len()).filter(|i| active(*i).is_none() && !bars[*i].soft).count();
            prop_assert_eq!(picked.usable.len(), free.max(keep.min(allowed)));
            prop_assert_eq!(picked.released.len(), picked.usable.len() - free);
        }
    }
}
