//! One listing serves everyone who waits.
//!
//! Providers allow about one listing a second per account, and a page of one shows 25 instances:
//! an account of a thousand takes forty seconds to list. So there are two ways to look. Who waits
//! for single machines asks for those ([`Listing::look`]): whoever comes first makes one call
//! for all that wait now, and that call asks for theirs only. Who must see everything (the
//! reaper) lists the whole account ([`Listing::whole`]), and nobody waits behind that.
//!
//! Callers ask for an answer that *began* after a moment they name. A failed call is an answer
//! too: it is shared, and callers ask again with a later moment.

use super::{Provider, ProviderError, ProviderInstance};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex as Lock, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

type Answer<T> = Result<Arc<T>, ProviderError>;

/// What the provider said of those it was asked for; `None` for one that it did not show.
type Seen = HashMap<String, Option<ProviderInstance>>;

/// Shares looks at one provider's account.
pub struct Listing {
    provider: Arc<dyn Provider>,
    interval: Duration,
    whole: Mutex<Option<(Instant, Answer<Vec<ProviderInstance>>)>>,
    seen: Mutex<Option<Look>>,
    /// Who waits, and how often.
    waiting: Lock<BTreeMap<String, usize>>,
}

struct Look {
    began: Instant,
    asked: Vec<String>,
    answer: Answer<Seen>,
}

/// Somebody who waits for news of an instance.
struct Waiting<'a>(&'a Listing, &'a str);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting();
        if let Some(n) = waiting.get_mut(self.1) {
            *n -= 1;
            if *n == 0 {
                waiting.remove(self.1);
            }
        }
    }
}

impl Listing {
    /// `interval` is the least time between two calls.
    pub fn new(provider: Arc<dyn Provider>, interval: Duration) -> Self {
        Self {
            provider,
            interval,
            whole: Mutex::default(),
            seen: Mutex::default(),
            waiting: Lock::default(),
        }
    }

    /// A complete listing that began at or after `since`.
    pub async fn whole(&self, since: Instant) -> Answer<Vec<ProviderInstance>> {
        let mut last = self.whole.lock().await;
        if let Some((began, answer)) = &*last {
            if *began >= since {
                return answer.clone();
            }
            sleep_until(*began + self.interval).await;
        }
        let began = Instant::now();
        let answer = self.provider.list().await.map(Arc::new);
        *last = Some((began, answer.clone()));
        answer
    }

    /// What the provider shows of one instance at or after `since`, which may lie ahead. `None`
    /// is no evidence of absence; a single read is.
    pub async fn look(&self, id: &str, since: Instant) -> Result<Option<ProviderInstance>, ProviderError> {
        *self.waiting().entry(id.to_owned()).or_default() += 1;
        let _waiting = Waiting(self, id);
        sleep_until(since).await;
        let mut last = self.seen.lock().await;
        if let Some(look) = &*last {
            if look.began >= since && look.asked.iter().any(|asked| asked == id) {
                return found(&look.answer, id);
            }
            sleep_until(look.began + self.interval).await;
        }
        let asked: Vec<String> = self.waiting().keys().cloned().collect();
        let began = Instant::now();
        let answer = self.provider.look(&asked).await.map(|shown| {
            let mut seen: Seen = asked.iter().map(|id| (id.clone(), None)).collect();
            for instance in shown {
                seen.insert(instance.instance_id.clone(), Some(instance));
            }
            Arc::new(seen)
        });
        let mine = found(&answer, id);
        *last = Some(Look { began, asked, answer });
        mine
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn found(answer: &Answer<Seen>, id: &str) -> Result<Option<ProviderInstance>, ProviderError> {
    Ok(answer.clone()?.get(id).cloned().flatten())
}

/// How long after a look the next one is worth it, when so long was waited already: a twentieth
/// later costs nobody anything, and most of the account's calls less.
pub fn pause_after(waited: Duration) -> Duration {
    (waited / 20).clamp(Duration::from_secs(1), Duration::from_secs(5))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::{InstanceStatus, OfferQuery, RentRequest};
    use async_trait::async_trait;
    use dumont_core::offer::Offer;

    /// Knows every instance but 13, and remembers what it was asked for.
    #[derive(Default)]
    struct Counting(Lock<Vec<Vec<String>>>);

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
            tokio::time::sleep(Duration::from_secs(40)).await;
            Ok(Vec::new())
        }
        async fn look(&self, ids: &[String]) -> Result<Vec<ProviderInstance>, ProviderError> {
            self.0.lock().unwrap().push(ids.to_vec());
            let one = |id: &String| ProviderInstance {
                instance_id: id.clone(),
                machine_id: "1".into(),
                label: None,
                status: InstanceStatus::Running,
                status_message: None,
                ssh: Vec::new(),
                access: crate::providers::Access::default(),
                price: 0.1,
                storage: None,
                min_bid: None,
            };
            Ok(ids.iter().filter(|id| *id != "13").map(one).collect())
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

    fn listing() -> (Arc<Counting>, Arc<Listing>) {
        let provider = Arc::new(Counting::default());
        let listing = Listing::new(provider.clone(), Duration::from_secs(1));
        (provider, Arc::new(listing))
    }

    #[tokio::test(start_paused = true)]
    async fn many_waiters_share_one_call_a_second() {
        let (provider, listing) = listing();
        for round in 0..5 {
            let since = Instant::now() + Duration::from_millis(10);
            let looks = (0..20).map(|n| {
                let listing = listing.clone();
                tokio::spawn(async move { listing.look(&n.to_string(), since).await })
            });
            for (n, look) in looks.collect::<Vec<_>>().into_iter().enumerate() {
                assert_eq!(
                    look.await.unwrap().unwrap().is_some(),
                    n != 13,
                    "{n} in round {round}"
                );
            }
        }
        let asked = provider.0.lock().unwrap();
        assert_eq!(asked.len(), 5);
        assert!(asked.iter().all(|ids| ids.len() == 20));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_behind_a_long_listing_and_who_left_is_not_asked_for() {
        let (provider, listing) = listing();
        let sweep = {
            let listing = listing.clone();
            tokio::spawn(async move { listing.whole(Instant::now()).await })
        };
        tokio::time::sleep(Duration::from_secs(1)).await;
        let gave_up = listing.look("7", Instant::now() + Duration::from_secs(60));
        assert!(
            tokio::time::timeout(Duration::from_secs(1), gave_up)
                .await
                .is_err()
        );
        let begun = Instant::now();
        listing.look("8", begun).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(2));
        assert_eq!(*provider.0.lock().unwrap(), [["8"]]);
        sweep.await.unwrap().unwrap();
    }

    #[test]
    fn pauses_grow_with_the_wait() {
        let seconds = |waited| pause_after(Duration::from_secs(waited)).as_secs();
        assert_eq!([0, 20, 60, 600].map(seconds), [1, 1, 3, 5]);
    }
}
