//! Which offer to rent while others of ours rent as well.
//!
//! Races that run at once have the same offers in the same order, best first. Each would rent the
//! same machine, one gets it, and the others lose their turn at the provider to a refusal. So a
//! machine that another race has asked for since the offers were found is a poor bet here, rented
//! or gone, and a worse one while the other still has it. Such machines are ranked after all others,
//! and no more than that, so nobody ever waits for another race.

/// What others have done about a machine since the offers were found; the best bet first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Claim {
    #[default]
    None,
    /// It was refused, or given back.
    Asked,
    Held,
}

/// The one to rent of `offers`, which are in order, best first.
pub fn pick<T>(offers: impl Iterator<Item = T>, claim: impl Fn(&T) -> Claim) -> Option<T> {
    // The first of the lowest.
    offers.min_by_key(claim)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn any_claim() -> impl Strategy<Value = Claim> {
        prop_oneof![Just(Claim::None), Just(Claim::Asked), Just(Claim::Held)]
    }

    proptest! {
        #[test]
        fn takes_the_best_and_never_waits(claims in prop::collection::vec(any_claim(), 0..12)) {
            let picked = pick(0..claims.len(), |at| claims[*at]);
            let first = |wanted| claims.iter().position(|c| *c == wanted);
            let best = first(Claim::None).or(first(Claim::Asked)).or(first(Claim::Held));
            prop_assert_eq!(picked, best);
        }

        /// Races over one list, in any order of turns: no machine is asked for twice while there
        /// are others, and each race gets a machine at each of its turns.
        #[test]
        fn races_at_once_spread_out(machines in 1usize..40, turns in prop::collection::vec(0usize..6, 0..60)) {
            let mut asked: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); 6];
            for race in turns {
                let others: BTreeSet<usize> = asked
                    .iter()
                    .enumerate()
                    .filter(|(other, _)| *other != race)
                    .flat_map(|(_, machines)| machines.iter().copied())
                    .collect();
                let open = (0..machines).filter(|m| !asked[race].contains(m));
                let claim = |m: &usize| if others.contains(m) { Claim::Held } else { Claim::None };
                let picked = pick(open, claim);
                let left = (0..machines).any(|m| !others.contains(&m) && !asked[race].contains(&m));
                prop_assert_eq!(picked.is_some(), asked[race].len() < machines);
                if let Some(machine) = picked {
                    prop_assert_eq!(others.contains(&machine), !left);
                    asked[race].insert(machine);
                }
            }
        }
    }
}
