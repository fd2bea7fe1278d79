//! The open links of this process, by instance.
//!
//! Links are an optimisation, never a fact: whoever needs one opens it anew if it is gone.
//! That is what makes a restarted server resume without knowing what it had open. The *end* of
//! a link is a fact, though, and evidence for the detector: whoever happens to look first
//! takes the dead link away, but its end is kept until the watcher has seen it.

use crate::link::Link;
use dumont_core::time::Timestamp;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// When a link ended and why.
pub type End = (Timestamp, String);

/// What the registry asks of a link.
pub trait Ends {
    fn ended(&self) -> Option<End>;
}

impl Ends for Link {
    fn ended(&self) -> Option<End> {
        Self::ended(self)
    }
}

#[derive(Debug)]
pub struct Sessions<L = Link>(Mutex<Open<L>>);

#[derive(Debug)]
struct Open<L> {
    links: HashMap<String, Arc<L>>,
    /// Of links that ended by themselves and that nobody has asked about.
    ends: HashMap<String, End>,
}

impl<L> Default for Sessions<L> {
    fn default() -> Self {
        Self(Mutex::new(Open {
            links: HashMap::new(),
            ends: HashMap::new(),
        }))
    }
}

impl<L: Ends> Sessions<L> {
    /// The live link to this instance, if this process has one.
    pub fn get(&self, instance_key: &str) -> Option<Arc<L>> {
        let mut open = self.open();
        let link = open.links.get(instance_key)?.clone();
        match link.ended() {
            None => Some(link),
            Some(end) => {
                open.links.remove(instance_key);
                open.ends.insert(instance_key.to_owned(), end);
                None
            }
        }
    }

    /// Every link that this process holds.
    pub fn all(&self) -> Vec<(String, Arc<L>)> {
        let open = self.open();
        open.links
            .iter()
            .map(|(key, link)| (key.clone(), link.clone()))
            .collect()
    }

    /// The end of the last link to this instance, once.
    pub fn take_end(&self, instance_key: &str) -> Option<End> {
        self.open().ends.remove(instance_key)
    }

    pub fn put(&self, instance_key: &str, link: Arc<L>) {
        let mut open = self.open();
        open.ends.remove(instance_key);
        open.links.insert(instance_key.to_owned(), link);
    }

    /// Takes the link away on purpose: what ends after this is no evidence.
    pub fn remove(&self, instance_key: &str) -> Option<Arc<L>> {
        let mut open = self.open();
        open.ends.remove(instance_key);
        open.links.remove(instance_key)
    }

    fn open(&self) -> MutexGuard<'_, Open<L>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake(Option<End>);

    impl Ends for Fake {
        fn ended(&self) -> Option<End> {
            self.0.clone()
        }
    }

    /// A machine died while its watcher was not listening, and something else looked first: the
    /// failover then waited for six seconds of silence instead of starting at once.
    #[test]
    fn an_end_that_somebody_else_saw_first_is_kept_for_the_watcher() {
        let sessions = Sessions::default();
        let end = (Timestamp(7), "connection lost".to_owned());
        sessions.put("i", Arc::new(Fake(Some(end.clone()))));
        assert!(sessions.get("i").is_none());
        assert!(sessions.get("i").is_none());
        assert_eq!(sessions.take_end("i"), Some(end.clone()));
        assert_eq!(sessions.take_end("i"), None);

        sessions.put("i", Arc::new(Fake(Some(end))));
        assert!(sessions.get("i").is_none());
        sessions.put("i", Arc::new(Fake(None)));
        assert_eq!(
            sessions.take_end("i"),
            None,
            "a new link makes the old end history"
        );
        assert!(sessions.get("i").is_some());
    }
}
