//! What to bid for an interruptible machine, and when a higher bid is better than moving.
//!
//! A bid buys time: the higher, the later somebody else takes the machine. It is also what is
//! paid, so it stays a margin above the lowest that is taken, and below the price at which the
//! same machine could not be taken away at all. Storage is paid on top, and the workspace's
//! highest price bounds both together.

/// What a bid is above the lowest: rivals that raise by a few per cent do not take it at once.
const MARGIN: f64 = 0.25;
/// Beyond this share of the on-demand price interruptions are not worth what is saved.
const WORTH: f64 = 0.9;
/// What moving costs (minutes without service, work since the last snapshot, a new boot), as
/// a share of the price that is accepted to stay.
const MOVING: f64 = 0.15;
/// What a raised bid is above the lowest that wins, and above our own where nobody says what wins.
const RAISE: f64 = 0.05;
const RAISE_BLINDLY: f64 = 0.3;

/// The prices of one machine's GPUs, dollars per hour.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quote {
    /// The lowest bid that is taken now.
    pub min_bid: f64,
    /// What it costs on demand.
    pub on_demand: f64,
    /// Storage, paid on top of either.
    pub storage: f64,
}

/// What the workspace allows.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Allowed {
    /// The bid that the user fixed.
    pub fixed: Option<f64>,
    /// The most to pay, storage included.
    pub max_price: Option<f64>,
}

impl Allowed {
    /// The highest bid beside this storage.
    fn most(&self, storage: f64) -> f64 {
        self.max_price.map_or(f64::INFINITY, |max| max - storage)
    }
}

/// The bid for a machine; `None` where none that is allowed would be taken or be worth it.
pub fn choose(quote: &Quote, allowed: &Allowed) -> Option<f64> {
    let sane = [quote.min_bid, quote.on_demand, quote.storage];
    if !sane.iter().all(|p| p.is_finite() && *p >= 0.0) || quote.min_bid <= 0.0 {
        return None;
    }
    let most = allowed.most(quote.storage);
    let bid = match allowed.fixed {
        Some(fixed) => fixed,
        // Never below the lowest, never so high that on demand is the better deal.
        None => (quote.min_bid * (1.0 + MARGIN))
            .min(quote.on_demand * WORTH)
            .min(most),
    };
    (bid >= quote.min_bid && bid <= most).then(|| cents_up(bid, most))
}

/// The bid with which to get an outbid machine back; `None` where moving is the better way.
/// `wins` is the lowest bid that would have it now, as the provider says; `elsewhere` what the
/// best other machine costs, storage included, if there is one.
pub fn raise(now: f64, wins: f64, storage: f64, elsewhere: Option<f64>, allowed: &Allowed) -> Option<f64> {
    if allowed.fixed.is_some() || ![now, wins, storage].iter().all(|p| p.is_finite() && *p >= 0.0) {
        // A bid that the user fixed is not ours to raise.
        return None;
    }
    let bid = if wins > now {
        wins * (1.0 + RAISE)
    } else {
        now * (1.0 + RAISE_BLINDLY)
    };
    let worth = elsewhere.map_or(f64::INFINITY, |price| price * (1.0 + MOVING) - storage);
    let most = allowed.most(storage);
    (bid <= worth && bid <= most && bid > now).then(|| cents_up(bid, most.min(worth)))
}

/// A bid is a short number: rounded up to a hundredth of a cent where that is still allowed.
fn cents_up(bid: f64, most: f64) -> f64 {
    let up = (bid * 10_000.0).ceil() / 10_000.0;
    if up <= most { up } else { bid }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn quote(min_bid: f64, on_demand: f64) -> Quote {
        Quote {
            min_bid,
            on_demand,
            storage: 0.01,
        }
    }

    fn allowed(fixed: Option<f64>, max_price: Option<f64>) -> Allowed {
        Allowed { fixed, max_price }
    }

    #[test]
    fn a_bid_lies_between_the_lowest_and_on_demand() {
        assert_eq!(choose(&quote(0.1, 0.4), &Allowed::default()), Some(0.125));
        assert_eq!(choose(&quote(0.3, 0.36), &Allowed::default()), Some(0.324));
        assert_eq!(
            choose(&quote(0.35, 0.36), &Allowed::default()),
            None,
            "not worth it"
        );
        assert_eq!(choose(&quote(0.1, 0.4), &allowed(None, Some(0.12))), Some(0.11));
        assert_eq!(choose(&quote(0.1, 0.4), &allowed(None, Some(0.1))), None);
        assert_eq!(choose(&quote(0.1, 0.4), &allowed(Some(0.2), None)), Some(0.2));
        assert_eq!(
            choose(&quote(0.1, 0.4), &allowed(Some(0.09), None)),
            None,
            "would not be taken"
        );
        assert_eq!(choose(&quote(0.1, 0.4), &allowed(Some(0.2), Some(0.2))), None);
        assert_eq!(choose(&quote(0.0, 0.4), &Allowed::default()), None);
        assert_eq!(choose(&quote(f64::NAN, 0.4), &Allowed::default()), None);
    }

    #[test]
    fn a_bid_is_raised_while_that_is_cheaper_than_moving() {
        let free = Allowed::default();
        assert_eq!(raise(0.1, 0.12, 0.01, Some(0.2), &free), Some(0.126));
        assert_eq!(
            raise(0.1, 0.12, 0.01, None, &free),
            Some(0.126),
            "nowhere else to go"
        );
        assert_eq!(
            raise(0.1, 0.05, 0.01, None, &free),
            Some(0.13),
            "whoever has it does not say"
        );
        assert_eq!(
            raise(0.1, 0.05, 0.01, Some(0.11), &free),
            None,
            "others are cheaper"
        );
        assert_eq!(
            raise(0.1, 0.3, 0.01, Some(0.2), &free),
            None,
            "others are cheaper"
        );
        assert_eq!(raise(0.1, 0.12, 0.01, None, &allowed(None, Some(0.13))), None);
        assert_eq!(
            raise(0.1, 0.12, 0.01, None, &allowed(Some(0.1), None)),
            None,
            "fixed"
        );
    }

    proptest! {
        #[test]
        fn bids_keep_to_what_is_allowed(
            min_bid in 0.0..2.0f64, on_demand in 0.0..4.0f64, storage in 0.0..0.5f64,
            fixed in prop::option::of(0.0..3.0f64), max_price in prop::option::of(0.0..3.0f64),
            wins in 0.0..4.0f64, elsewhere in prop::option::of(0.0..4.0f64),
        ) {
            let (quote, allowed) = (Quote { min_bid, on_demand, storage }, Allowed { fixed, max_price });
            if let Some(bid) = choose(&quote, &allowed) {
                prop_assert!(bid >= min_bid && bid > 0.0);
                prop_assert!(max_price.is_none_or(|max| bid + storage <= max + 1e-9));
                prop_assert!(fixed.is_some() || bid <= on_demand * WORTH + 1e-4);
                prop_assert!(fixed.is_none_or(|f| (bid - f).abs() <= 1e-4));
            }
            if let Some(bid) = raise(min_bid, wins, storage, elsewhere, &allowed) {
                prop_assert!(bid > min_bid && bid >= wins && fixed.is_none());
                prop_assert!(max_price.is_none_or(|max| bid + storage <= max + 1e-9));
                prop_assert!(elsewhere.is_none_or(|price| bid + storage <= price * (1.0 + MOVING) + 1e-9));
            }
        }
    }
}
