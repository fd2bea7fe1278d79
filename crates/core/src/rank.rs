//! Which offers to try first.
//!
//! The raw success rate would put a machine with one success in one try above one with 19 in
//! 20, and would have no place for a machine never tried. So the rate is drawn toward what
//! machines are like in general: a prior worth three attempts at 85 % (the fleet's mean in
//! the reliability model), (s + 2.55) / (n + 3). 1 of 1 scores 0.888, an unknown machine
//! 0.85, 19 of 20 scores 0.937; five failures sink below every newcomer.

use crate::id::MachineRef;
use crate::offer::Offer;
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// What an unknown machine is taken to be worth.
pub const PRIOR_MEAN: f64 = 0.85;
/// How many attempts that guess is worth.
pub const PRIOR_WEIGHT: f64 = 3.0;

/// What we know of a machine when we choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// Counted attempts that succeeded.
    pub successful: i64,
    /// Counted attempts.
    pub counted: i64,
    pub blacklisted: bool,
}

impl Standing {
    /// Between 0 and 1, never either.
    pub fn score(&self) -> f64 {
        (self.successful as f64 + PRIOR_MEAN * PRIOR_WEIGHT) / (self.counted as f64 + PRIOR_WEIGHT)
    }

    /// `None` before the first counted attempt.
    pub fn success_rate(&self) -> Option<f64> {
        (self.counted > 0).then(|| self.successful as f64 / self.counted as f64)
    }
}

/// An offer and what its place is owed to.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranked {
    pub offer: Offer,
    pub standing: Standing,
    pub score: f64,
}

/// Best first, one offer per machine.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Ranking {
    pub offers: Vec<Ranked>,
    /// Machines left out because they are blacklisted.
    pub blacklisted: Vec<MachineRef>,
}

/// Ranks offers that all fit the request. The result depends on the set of offers only, not
/// on their order.
pub fn rank(offers: Vec<Offer>, standing: impl Fn(&MachineRef) -> Standing) -> Ranking {
    let mut best: BTreeMap<MachineRef, Offer> = BTreeMap::new();
    for offer in offers {
        match best.get(&offer.machine) {
            Some(held) if cheaper(held, &offer).is_le() => {}
            _ => {
                best.insert(offer.machine.clone(), offer);
            }
        }
    }
    let mut out = Ranking::default();
    for (machine, offer) in best {
        let standing = standing(&machine);
        if standing.blacklisted {
            out.blacklisted.push(machine);
        } else {
            out.offers.push(Ranked {
                offer,
                standing,
                score: standing.score(),
            });
        }
    }
    out.offers.sort_by(order);
    out
}

/// Among the offers of one machine: the cheapest. The rest only makes it certain, also where
/// two pages of a search show the same offer with figures that changed in between.
fn cheaper(a: &Offer, b: &Offer) -> Ordering {
    a.price
        .total_cmp(&b.price)
        .then_with(|| b.provider_reliability.total_cmp(&a.provider_reliability))
        .then_with(|| a.offer_id.cmp(&b.offer_id))
}

/// Score, then the provider's own uptime figure, then price; the machine makes it total.
fn order(a: &Ranked, b: &Ranked) -> Ordering {
    b.score
        .total_cmp(&a.score)
        .then_with(|| {
            b.offer
                .provider_reliability
                .total_cmp(&a.offer.provider_reliability)
        })
        .then_with(|| cheaper(&a.offer, &b.offer))
        .then_with(|| a.offer.machine.cmp(&b.offer.machine))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn offer(machine: u32, id: u32, price: f64, provider_reliability: f64) -> Offer {
        Offer {
            offer_id: id.to_string(),
            machine: MachineRef::new("vast", &machine.to_string()).expect("a number is a name"),
            host_id: None,
            gpu_name: "RTX 4090".into(),
            gpu_count: 1,
            gpu_ram_mb: 24_576,
            price,
            region: None,
            provider_reliability,
            inet_down_mbps: 800.0,
            inet_up_mbps: 800.0,
            cuda_max: None,
            driver_version: None,
            disk_gb: 100.0,
            verified: true,
            datacenter: false,
            bid: None,
        }
    }

    fn standing(successful: i64, counted: i64) -> Standing {
        Standing {
            successful,
            counted,
            blacklisted: false,
        }
    }

    #[test]
    fn one_of_one_does_not_beat_nineteen_of_twenty() {
        assert!(standing(1, 1).score() < standing(19, 20).score());
        assert!(standing(0, 0).score() < standing(1, 1).score());
        assert!(standing(0, 1).score() < standing(0, 0).score());
    }

    #[test]
    fn ties_go_to_uptime_then_price_and_a_machine_shows_once() {
        let offers = vec![
            offer(1, 10, 0.30, 0.99),
            offer(1, 11, 0.25, 0.99),
            offer(2, 20, 0.20, 0.98),
            offer(3, 30, 0.40, 0.999),
            offer(4, 40, 0.26, 0.99),
        ];
        let ids: Vec<_> = rank(offers, |_| Standing::default())
            .offers
            .into_iter()
            .map(|r| r.offer.offer_id)
            .collect();
        assert_eq!(ids, ["30", "11", "40", "20"]);
    }

    #[test]
    fn one_offer_seen_twice_gives_the_same_choice_either_way() {
        let (a, b) = (offer(4, 20, 0.25, 0.925), offer(4, 20, 0.25, 0.95));
        let known = |_: &MachineRef| Standing::default();
        assert_eq!(rank(vec![a.clone(), b.clone()], known), rank(vec![b, a], known));
    }

    fn market() -> impl Strategy<Value = Vec<Offer>> {
        let one = (0..20_u32, 0..60_u32, 0..50_u32, 0..4_u32)
            .prop_map(|(m, id, cents, r)| offer(m, id, f64::from(cents) / 100.0, 0.9 + f64::from(r) / 40.0));
        proptest::collection::vec(one, 0..60)
    }

    fn known() -> impl Strategy<Value = Vec<Standing>> {
        let one = (0..10_i64, 0..10_i64, any::<bool>()).prop_map(|(s, f, blacklisted)| Standing {
            successful: s,
            counted: s + f,
            blacklisted,
        });
        proptest::collection::vec(one, 20)
    }

    proptest! {
        #[test]
        fn ranking_is_clean_ordered_and_independent_of_input_order(
            (plain, mixed) in market().prop_flat_map(|o| (Just(o.clone()), Just(o).prop_shuffle())),
            known in known(),
        ) {
            let of = |m: &MachineRef| known[m.machine_id.parse::<usize>().expect("a number")];
            let ranking = rank(plain.clone(), of);
            prop_assert_eq!(&ranking.offers, &rank(mixed, of).offers);

            for r in &ranking.offers {
                prop_assert!(!of(&r.offer.machine).blacklisted);
                let cheapest = plain.iter().filter(|o| o.machine == r.offer.machine).map(|o| o.price);
                prop_assert!(cheapest.fold(f64::INFINITY, f64::min) >= r.offer.price);
            }
            for pair in ranking.offers.windows(2) {
                prop_assert!(pair[0].score >= pair[1].score);
                prop_assert!(order(&pair[0], &pair[1]) == Ordering::Less);
            }
            let mut machines: Vec<_> = plain.iter().map(|o| o.machine.clone()).collect();
            machines.sort();
            machines.dedup();
            prop_assert_eq!(machines.len(), ranking.offers.len() + ranking.blacklisted.len());
        }

        #[test]
        fn a_success_helps_and_a_failure_hurts(s in 0..1_000_i64, f in 0..1_000_i64) {
            let here = standing(s, s + f).score();
            prop_assert!((0.0..1.0).contains(&here));
            prop_assert!(standing(s + 1, s + f + 1).score() > here);
            prop_assert!(standing(s, s + f + 1).score() < here);
        }
    }
}
