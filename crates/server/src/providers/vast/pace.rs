//! Keeps a least distance between requests of one kind, in the order in which they came.

use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

#[derive(Debug)]
pub struct Pacer {
    distance: Duration,
    next: Mutex<Option<Instant>>,
}

impl Pacer {
    pub fn new(distance: Duration) -> Self {
        Self {
            distance,
            next: Mutex::new(None),
        }
    }

    /// Waits for this caller's turn. The lock is held while waiting: tokio's mutex is fair,
    /// so turns are given in order and a caller that gives up leaves its turn to the next.
    pub async fn turn(&self) {
        let mut next = self.next.lock().await;
        if let Some(at) = *next {
            tokio::time::sleep_until(at).await;
        }
        *next = Some(Instant::now() + self.distance);
    }
}
