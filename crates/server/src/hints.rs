//! What a provider tells us by itself: reasons to look at once, and never more than that.
//!
//! A hint wakes the watcher of an instance, which asks the provider. Lost hints cost the time that a
//! watcher takes without them; repeated ones cost nothing, which is all that "at least once" needs.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Events remembered, so that one that comes again does not make us ask again.
const REMEMBERED: usize = 1024;

/// Waiting hints of this process.
#[derive(Debug, Default)]
pub struct Hints {
    state: Mutex<State>,
    /// Wakes every watcher.
    pub came: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Keys of instances to look at.
    waiting: HashSet<String>,
    seen: VecDeque<String>,
}

impl Hints {
    /// Whether this event is new.
    pub fn is_new(&self, event_id: &str) -> bool {
        let mut state = self.state();
        if state.seen.iter().any(|s| s == event_id) {
            return false;
        }
        if state.seen.len() == REMEMBERED {
            state.seen.pop_front();
        }
        state.seen.push_back(event_id.to_owned());
        true
    }

    /// Somebody should look at these instances.
    pub fn raise(&self, keys: impl IntoIterator<Item = String>) {
        self.state().waiting.extend(keys);
        self.came.notify_waiters();
    }

    /// Whether to look at this one.
    pub fn take(&self, key: &str) -> bool {
        self.state().waiting.remove(key)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_new_once_and_a_hint_is_taken_once() {
        let hints = Hints::default();
        assert!(hints.is_new("a") && !hints.is_new("a"));
        for n in 0..REMEMBERED {
            assert!(hints.is_new(&n.to_string()));
        }
        assert_eq!(hints.state().seen.len(), REMEMBERED, "memory is bounded");
        hints.raise(["k".to_owned()]);
        assert!(hints.take("k") && !hints.take("k") && !hints.take("other"));
    }
}
