//! One listing serves everyone who waits.
//!
//! Providers allow about one listing a second per account, and a race has several machines to
//! watch. Callers ask for a listing that *began* after a moment they name; whoever comes first
//! makes the call and the others share its answer.

use super::{Provider, ProviderError, ProviderInstance};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

type Answer = Result<Arc<Vec<ProviderInstance>>, ProviderError>;

/// Shares listings of one provider's account.
pub struct Listing {
    provider: Arc<dyn Provider>,
    interval: Duration,
    last: Mutex<Option<(Instant, Answer)>>,
}

impl Listing {
    /// `interval` is the least time between two calls.
    pub fn new(provider: Arc<dyn Provider>, interval: Duration) -> Self {
        Self {
            provider,
            interval,
            last: Mutex::new(None),
        }
    }

    /// A complete listing that began at or after `since`, which may lie ahead. A failed call is an answer too: it
    /// is shared, and callers ask again with a later moment.
    pub async fn since(&self, since: Instant) -> Answer {
        let mut last = self.last.lock().await;
        if let Some((began, answer)) = &*last {
            if *began >= since {
                return answer.clone();
            }
            sleep_until(*began + self.interval).await;
        }
        sleep_until(since).await;
        let began = Instant::now();
        let answer = self.provider.list().await.map(Arc::new);
        *last = Some((began, answer.clone()));
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::{OfferQuery, RentRequest};
    use async_trait::async_trait;
    use dumont_core::offer::Offer;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Default)]
    struct Counting(AtomicUsize);

    #[async_trait]
    impl Provider for Counting {
        fn name(&self) -> &'static str {
            "counting"
        }
        async fn search(&self, _: &OfferQuery) -> Result<Vec<Offer>, ProviderError> {
            Ok(Vec::new())
        }
        async fn rent(&self, _: &RentRequest) -> Result<String, ProviderError> {
            Ok("1".into())
        }
        async fn list(&self) -> Result<Vec<ProviderInstance>, ProviderError> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(Vec::new())
        }
        async fn get(&self, _: &str) -> Result<Option<ProviderInstance>, ProviderError> {
            Ok(None)
        }
        async fn destroy(&self, _: &str) -> Result<(), ProviderError> {
            Ok(())
        }
        async fn register_key(&self, _: &str) -> Result<(), ProviderError> {
            Ok(())
        }
        async fn attach_key(&self, _: &str, _: &str) -> Result<(), ProviderError> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn many_waiters_share_one_call_a_second() {
        let provider = Arc::new(Counting::default());
        let listing = Arc::new(Listing::new(provider.clone(), Duration::from_secs(1)));
        for _ in 0..5 {
            let now = Instant::now();
            let asks = (0..20).map(|_| {
                let listing = listing.clone();
                tokio::spawn(async move { listing.since(now).await.is_ok() })
            });
            for ask in asks.collect::<Vec<_>>() {
                assert!(ask.await.unwrap());
            }
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(provider.0.load(Ordering::Relaxed), 5);
    }
}
