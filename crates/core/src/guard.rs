//! Is it them, or is it us?
//!
//! Our network, the provider or a broken image make good machines fail, many at once. Then the
//! failures of the moment say nothing about any one machine: the guard is on, automatic blocks
//! are suspended and failures count a tenth.
//!
//! Every operator has one vote, the newest outcome on any of its machines in the last 25
//! minutes, so that one operator's broken rack is not an incident. A vote is how much likelier
//! the outcome is in an incident (85 % fail) than from the machine's own score. The same
//! question is asked for every image by itself: a broken image fails everywhere while other
//! images boot.

use crate::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// How far back votes reach.
pub const WINDOW: Duration = Duration::from_secs(25 * 60);
/// The log likelihood ratio above which failures are suspect.
pub const THRESHOLD: f64 = 8.0;
/// The share of attempts that fail in an incident.
const FAILING: f64 = 0.85;

/// One attempt that became ready or failed (lost races and what is not the host's doing have
/// no vote).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Vote<'a> {
    /// The operator; the machine itself where the provider names none.
    pub operator: &'a str,
    /// Digest or name of the image.
    pub image: Option<&'a str>,
    pub at: Timestamp,
    pub ready: bool,
    /// The machine's score at that time.
    pub score: f64,
}

/// What the recent outcomes say, everywhere and for each image.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Guard {
    pub everywhere: f64,
    pub images: BTreeMap<String, f64>,
}

impl Guard {
    /// `votes` in any order; those outside the window are ignored.
    pub fn of(votes: &[Vote], now: Timestamp) -> Self {
        let recent = || votes.iter().filter(|v| v.at <= now && v.at > now.minus(WINDOW));
        let mut by_image: BTreeMap<&str, Vec<&Vote>> = BTreeMap::new();
        for vote in recent() {
            if let Some(image) = vote.image {
                by_image.entry(image).or_default().push(vote);
            }
        }
        let of_images = by_image.into_iter();
        Self {
            everywhere: ratio(recent()),
            images: of_images
                .map(|(image, v)| (image.to_owned(), ratio(v.into_iter())))
                .collect(),
        }
    }

    /// Failures of this moment are suspect, whatever the image.
    pub fn incident(&self) -> bool {
        self.everywhere > THRESHOLD
    }

    /// A failure with this image is suspect.
    pub fn suspects(&self, image: Option<&str>) -> bool {
        let broken = image.and_then(|i| self.images.get(i));
        self.incident() || broken.is_some_and(|l| *l > THRESHOLD)
    }
}

/// The log likelihood ratio of the newest vote of each operator. Of two at the same moment the
/// success counts: it is what cannot happen by accident.
fn ratio<'a>(votes: impl Iterator<Item = &'a Vote<'a>>) -> f64 {
    let mut newest: BTreeMap<&str, (Timestamp, bool, f64)> = BTreeMap::new();
    for v in votes {
        let this = (v.at, v.ready, v.score);
        let held = newest.entry(v.operator).or_insert(this);
        let later = this.0.cmp(&held.0).then(this.1.cmp(&held.1));
        if later.then(this.2.total_cmp(&held.2)).is_gt() {
            *held = this;
        }
    }
    newest
        .values()
        .map(|(_, ready, score)| weight(*ready, *score))
        .sum()
}

fn weight(ready: bool, score: f64) -> f64 {
    // A score at its limit must not turn one vote into a verdict.
    let p = if score.is_finite() {
        score.clamp(0.01, 0.99)
    } else {
        0.85
    };
    if ready {
        ((1.0 - FAILING) / p).ln()
    } else {
        (FAILING / (1.0 - p)).ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE: i64 = 60_000_000;
    const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

    fn vote(operator: &'static str, minute: i64, ready: bool) -> Vote<'static> {
        Vote {
            operator,
            image: Some("torch"),
            at: Timestamp(minute * MINUTE),
            ready,
            score: 0.9,
        }
    }

    #[test]
    fn many_operators_at_once_are_an_incident_one_operator_never_is() {
        let now = Timestamp(100 * MINUTE);
        let of = |votes: &[Vote]| Guard::of(votes, now).incident();
        let four: Vec<_> = NAMES[..4].iter().map(|n| vote(n, 95, false)).collect();
        assert!(of(&four), "4 x ln(0.85 / 0.1) = 8.6");
        assert!(!of(&four[..3]));
        let rack: Vec<_> = (76..100).map(|m| vote("a", m, false)).collect();
        assert!(!of(&rack));
        // Somebody who booted since speaks against it, as does time.
        let mut doubted = four.clone();
        doubted.push(vote("e", 96, true));
        assert!(!of(&doubted));
        assert!(!Guard::of(&four, Timestamp(120 * MINUTE)).incident());
        // The newest outcome of an operator is its vote.
        let mut recovered = four.clone();
        recovered.push(vote("a", 99, true));
        assert!(!of(&recovered));
    }

    #[test]
    fn a_broken_image_is_suspect_and_others_are_not() {
        let now = Timestamp(100 * MINUTE);
        let mut votes: Vec<_> = NAMES[..4].iter().map(|n| vote(n, 95, false)).collect();
        votes.extend(NAMES.iter().map(|n| Vote {
            image: Some("good"),
            ..vote(n, 96, true)
        }));
        let guard = Guard::of(&votes, now);
        assert!(!guard.incident());
        assert!(guard.suspects(Some("torch")));
        assert!(!guard.suspects(Some("good")) && !guard.suspects(None));
    }

    fn votes() -> impl Strategy<Value = Vec<Vote<'static>>> {
        let one =
            (0..8_usize, 0..60_i64, any::<bool>(), 0.0..=1.0_f64).prop_map(|(n, m, ready, score)| Vote {
                score,
                ..vote(NAMES[n], m, ready)
            });
        proptest::collection::vec(one, 0..40)
    }

    proptest! {
        #[test]
        fn the_order_of_outcomes_does_not_matter(
            (plain, mixed) in votes().prop_flat_map(|v| (Just(v.clone()), Just(v).prop_shuffle())),
        ) {
            let now = Timestamp(60 * MINUTE);
            prop_assert_eq!(Guard::of(&plain, now), Guard::of(&mixed, now));
        }

        #[test]
        fn one_more_failing_operator_never_calms_it(all in votes()) {
            let now = Timestamp(60 * MINUTE);
            let before = Guard::of(&all, now).everywhere;
            let mut more = all;
            more.push(vote("new", 59, false));
            prop_assert!(Guard::of(&more, now).everywhere > before);
        }
    }
}
