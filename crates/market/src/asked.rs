//! What was asked of the endpoints that have a limit, and when: for judging a client's pace.

use std::collections::VecDeque;

use serde::Serialize;

use crate::limits::Endpoint;

/// So many are kept; older ones are forgotten.
const KEPT: usize = 100_000;
/// Longer request ids are cut.
const ID: usize = 64;

/// One request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Asked {
    pub at_ms: i64,
    pub endpoint: Endpoint,
    /// As too frequent.
    pub refused: bool,
    /// Its `X-Request-Id`, if it has one: of two copies of one request both have the same.
    pub request_id: Option<String>,
}

/// The last requests, oldest first.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Log(VecDeque<Asked>);

impl Log {
    pub fn add(&mut self, at_ms: i64, endpoint: Endpoint, refused: bool, id: Option<&str>) {
        if self.0.len() >= KEPT {
            self.0.pop_front();
        }
        self.0.push_back(Asked {
            at_ms,
            endpoint,
            refused,
            request_id: id.map(|id| id.chars().take(ID).collect()),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten() {
        let mut log = Log::default();
        for at in 0..KEPT as i64 + 2 {
            log.add(at, Endpoint::List, false, Some("x".repeat(500).as_str()));
        }
        assert_eq!(log.0.len(), KEPT);
        let first = log.0.front().expect("one");
        assert_eq!(first.at_ms, 2);
        assert_eq!(first.request_id.as_ref().map(String::len), Some(ID));
    }
}
