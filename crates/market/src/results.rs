//! Texts that are fetched from a URL of their own a moment later: logs and command output.
//!
//! The real market writes them to an object store and answers with the object's URL, which is
//! an error until the object is there. Who knows the URL may read it: it has no other key.

use std::collections::VecDeque;

/// So many are kept; the oldest go first.
const KEPT: usize = 64;

#[derive(Debug)]
struct Entry {
    token: String,
    ready_ms: i64,
    text: String,
}

#[derive(Debug, Default)]
pub struct Results(VecDeque<Entry>);

impl Results {
    pub fn put(&mut self, token: String, text: String, ready_ms: i64) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(Entry {
            token,
            ready_ms,
            text,
        });
    }

    /// `None` while there is no such object (yet).
    pub fn get(&self, token: &str, now: i64) -> Option<&str> {
        let entry = self.0.iter().find(|e| e.token == token)?;
        (entry.ready_ms <= now).then_some(entry.text.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_before_its_time_and_not_for_ever() {
        let mut results = Results::default();
        results.put("a".into(), "text".into(), 10);
        assert_eq!((results.get("a", 9), results.get("a", 10)), (None, Some("text")));
        for n in 0..KEPT {
            results.put(n.to_string(), String::new(), 0);
        }
        assert_eq!(results.get("a", 10), None);
    }
}
