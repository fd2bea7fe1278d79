//! An account's budget of requests: waits for a turn before each, and learns from refusals.
//!
//! What is allowed and who goes first is `dumont_core::budget`; here is the waiting. Of all that
//! wait in this process for one endpoint only the first asks the gate, so that a thousand
//! watchers in doubt cost the database one statement a turn.
//!
//! How urgent a request is depends on whose work it is, not on what it asks. So the class is set
//! where work begins ([`as_class`]), like a trace, and no call needs to carry it.

use super::{ErrorClass, ProviderError};
use dumont_core::budget::{Ask, Class, Endpoint, Gate, Limits, Refusal, Rule, Verdict};
use dumont_core::time::Timestamp;
use dumont_store::{Account, Store};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

tokio::task_local! {
    static CLASS: Class;
}

/// Runs `work` with all its requests in this class. Tasks that it spawns begin anew.
pub async fn as_class<F: Future>(class: Class, work: F) -> F::Output {
    CLASS.scope(class, work).await
}

/// The class of the work that is running.
pub fn class() -> Class {
    CLASS.try_with(|class| *class).unwrap_or_default()
}

/// What only shows is not waited for longer than a person waits for a page.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where gates are kept.
#[derive(Debug)]
enum Gates {
    /// By all replicas.
    Shared(Store, Account),
    /// By this process alone, which then should be the only one of its account.
    Own(Mutex<HashMap<Endpoint, Gate>>),
}

/// The budget of one account. Shared by all clients of it.
#[derive(Debug)]
pub struct Budget {
    limits: Limits,
    gates: Gates,
    lines: HashMap<Endpoint, Line>,
}

/// Who waits here for one endpoint, the earliest deadline first.
#[derive(Debug, Default)]
struct Line {
    waiting: Mutex<BTreeSet<(Timestamp, i64)>>,
    changed: Notify,
}

/// One place in a line; dropping it is leaving.
struct Place<'a> {
    line: &'a Line,
    key: (Timestamp, i64),
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        locked(&self.line.waiting).remove(&self.key);
        self.line.changed.notify_waiters();
    }
}

impl Budget {
    /// One that no other process knows of.
    pub fn own(limits: Limits) -> Arc<Self> {
        Arc::new(Self::of(limits, Gates::Own(Mutex::default())))
    }

    /// The one that all replicas on this database share.
    pub fn shared(limits: Limits, store: Store, account: Account) -> Arc<Self> {
        Arc::new(Self::of(limits, Gates::Shared(store, account)))
    }

    fn of(limits: Limits, gates: Gates) -> Self {
        Self {
            limits,
            gates,
            lines: Endpoint::ALL.into_iter().map(|e| (e, Line::default())).collect(),
        }
    }

    /// The least time between two requests.
    pub fn interval(&self, endpoint: Endpoint) -> Duration {
        self.limits.rule(endpoint).interval
    }

    /// Waits until a request may be sent; it must be sent at once. Dropping the wait is giving
    /// up. An error says that nothing may be sent now, and nothing was.
    pub async fn turn(&self, endpoint: Endpoint) -> Result<(), ProviderError> {
        let rule = self.limits.rule(endpoint);
        if rule == Rule::NONE {
            return Ok(());
        }
        let class = class();
        let waits = self.wait(endpoint, rule, class);
        if class != Class::Background {
            return waits.await;
        }
        timeout(PATIENCE, waits).await.unwrap_or_else(|_| {
            Err(ProviderError {
                class: ErrorClass::RateLimited {
                    retry_after: Some(PATIENCE),
                },
                message: format!("more urgent requests ({endpoint}) use up what the account may ask"),
            })
        })
    }

    async fn wait(&self, endpoint: Endpoint, rule: Rule, class: Class) -> Result<(), ProviderError> {
        let line = self
            .lines
            .get(&endpoint)
            .ok_or_else(|| away("no such endpoint"))?;
        let ask = Ask {
            who: rand::random(),
            deadline: class.deadline(Timestamp::from_system(SystemTime::now())),
            rule,
        };
        let place = Place {
            line,
            key: (ask.deadline, ask.who),
        };
        locked(&line.waiting).insert(place.key);
        let began = Instant::now();
        loop {
            // Before the look, so that no change between the two is missed.
            let changed = line.changed.notified();
            if locked(&line.waiting).first() != Some(&place.key) {
                changed.await;
                continue;
            }
            match self.ask(endpoint, &ask).await? {
                Verdict::Turn => {
                    crate::metrics::provider_waited(endpoint.as_str(), began.elapsed());
                    return Ok(());
                }
                Verdict::Wait(wait) => sleep(wait).await,
                Verdict::Closed(left) => return Err(used_up(left)),
            }
        }
    }

    async fn ask(&self, endpoint: Endpoint, ask: &Ask) -> Result<Verdict, ProviderError> {
        match &self.gates {
            Gates::Shared(store, account) => {
                let gate = store.ask_gate(account, endpoint, ask).await;
                Ok(gate.map_err(|e| away(&e.to_string()))?.verdict(ask))
            }
            Gates::Own(gates) => {
                let mut gates = locked(gates);
                let gate = gates.entry(endpoint).or_default();
                Ok(gate.ask(ask, Timestamp::from_system(SystemTime::now())))
            }
        }
    }

    /// Takes note of a refusal for everybody. Should that fail, the next refusal says it again.
    pub async fn refused(&self, endpoint: Endpoint, refusal: Refusal) {
        let rule = self.limits.rule(endpoint);
        if rule == Rule::NONE {
            return;
        }
        match &self.gates {
            Gates::Shared(store, account) => {
                if let Err(error) = store.gate_refused(account, endpoint, rule, refusal).await {
                    tracing::warn!(%endpoint, %error, "cannot tell the other replicas of a refusal");
                }
            }
            Gates::Own(gates) => {
                let now = Timestamp::from_system(SystemTime::now());
                locked(gates)
                    .entry(endpoint)
                    .or_default()
                    .refused(rule, refusal, now);
            }
        }
    }
}

/// The error of a day's quota that is used up.
pub fn used_up(resets_in: Duration) -> ProviderError {
    let minutes = resets_in.as_secs().div_ceil(60);
    ProviderError {
        class: ErrorClass::QuotaUsedUp { resets_in },
        message: format!(
            "the account's searches of today are used up; they come back in {} h {} min",
            minutes / 60,
            minutes % 60
        ),
    }
}

fn away(why: &str) -> ProviderError {
    ProviderError {
        class: ErrorClass::Transient,
        message: format!("nothing was sent: the account's budget cannot be read ({why})"),
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        "create=0.1,list=0.1".parse().unwrap()
    }

    #[tokio::test]
    async fn urgent_work_goes_first_and_each_keeps_its_distance() {
        let budget = Budget::own(limits());
        budget.turn(Endpoint::Create).await.unwrap();
        let begun = Instant::now();
        let one = |class: Class| {
            let budget = budget.clone();
            tokio::spawn(as_class(class, async move {
                budget.turn(Endpoint::Create).await.unwrap();
                (begun.elapsed(), class)
            }))
        };
        let mut all = Vec::new();
        for class in [Class::Background, Class::Normal, Class::Urgent, Class::Urgent] {
            all.push(one(class));
            sleep(Duration::from_millis(5)).await;
        }
        let mut served = Vec::new();
        for task in all {
            served.push(task.await.unwrap());
        }
        served.sort();
        let order: Vec<_> = served.iter().map(|(_, class)| *class).collect();
        assert_eq!(
            order,
            [Class::Urgent, Class::Urgent, Class::Normal, Class::Background]
        );
        budget.turn(Endpoint::List).await.unwrap();
    }

    #[tokio::test]
    async fn who_gives_up_leaves_its_place() {
        let budget = Budget::own(limits());
        budget.turn(Endpoint::Create).await.unwrap();
        let mut first = Box::pin(as_class(Class::Urgent, budget.turn(Endpoint::Create)));
        assert!(timeout(Duration::from_millis(20), &mut first).await.is_err());
        drop(first);
        timeout(Duration::from_secs(5), budget.turn(Endpoint::Create))
            .await
            .unwrap()
            .unwrap();
    }

    /// Whoever waits for a turn may look away in the middle of it, and then needs the database itself.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_turn_that_nobody_looks_at_holds_up_no_writer() {
        let store = Store::open_in_memory().await.unwrap();
        let account = |name: &str| Account {
            provider: "vast".into(),
            name: name.into(),
        };
        let budget = Budget::shared(limits(), store.clone(), account("ours"));
        let mut turn = Box::pin(budget.turn(Endpoint::Create));
        assert!(futures::poll!(turn.as_mut()).is_pending());
        let rule = limits().rule(Endpoint::Create);
        let refusal = Refusal::TooOften { retry_after: None };
        let other = account("another");
        let write = store.gate_refused(&other, Endpoint::Create, rule, refusal);
        timeout(Duration::from_secs(5), write).await.unwrap().unwrap();
        turn.await.unwrap();
    }

    #[tokio::test]
    async fn a_used_up_day_is_an_error_of_its_own() {
        let budget = Budget::own(Limits::default());
        let resets_in = Some(Duration::from_secs(7_000));
        budget
            .refused(Endpoint::Search, Refusal::Quota { resets_in })
            .await;
        let error = budget.turn(Endpoint::Search).await.unwrap_err();
        assert!(
            matches!(error.class, ErrorClass::QuotaUsedUp { resets_in } if resets_in > Duration::from_secs(6_900))
        );
        assert!(error.message.contains("1 h 57 min"), "{error}");
        budget.turn(Endpoint::List).await.unwrap();
    }
}
