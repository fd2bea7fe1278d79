//! Offers that races of this process have asked for.
//!
//! A search shows the same best machines to all who search at about the same time, and a race goes
//! on for minutes with what its search has found. Whoever comes second is refused, and a refused
//! create costs the account as long as one that is not: with documented limits 4.5 s in which nobody
//! can rent. So what was asked for since one's own search is passed over while there is anything else.
//! It is a preference and no reservation; a later search that still shows the offer knows better.

use dumont_core::offer::Offer;
use dumont_core::time::Timestamp;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Longer than any race.
const KEPT: Duration = Duration::from_secs(3_600);
/// A search may still show what was taken shortly before it.
const LAG: Duration = Duration::from_secs(10);

/// By provider and offer, when it was last asked for.
#[derive(Debug, Default)]
pub struct Taken(Mutex<HashMap<(String, String), Timestamp>>);

impl Taken {
    pub fn take(&self, offer: &Offer, now: Timestamp) {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        taken.retain(|_, at| *at >= now.minus(KEPT));
        taken.insert(key(offer), now);
    }

    /// Whether it was asked for after a search of that moment.
    pub fn since(&self, offer: &Offer, search: Timestamp) -> bool {
        let taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        taken.get(&key(offer)).is_some_and(|at| *at >= search.minus(LAG))
    }
}

fn key(offer: &Offer) -> (String, String) {
    (offer.machine.provider.clone(), offer.offer_id.clone())
}
