//! Keeps the history in order: closes blocks that have run out, rolls up old attempts.
//!
//! Neither is needed for anything to be right. A block stops counting at its second, closed or
//! not, and statistics are the same before and after. So a round that fails is only logged,
//! and several replicas may do it at once.

use crate::app::App;
use dumont_core::time::Timestamp;
use dumont_store::Error as StoreError;
use std::sync::Arc;
use std::time::Duration;
use tokio::select;
use tokio::time::{Instant, sleep};

const ROUND: Duration = Duration::from_secs(30);
/// Attempts get old by the day.
const ROLL_UP: Duration = Duration::from_secs(3_600);

/// Runs until the server stops.
pub async fn run(app: Arc<App>) {
    let mut rolled: Option<Instant> = None;
    loop {
        match app.store.close_expired_blacklist(app.now()).await {
            Ok(0) => {}
            Ok(closed) => tracing::info!(closed, "blocks have run out"),
            Err(error) => tracing::warn!(%error, "cannot close blocks that have run out"),
        }
        if rolled.is_none_or(|at| at.elapsed() >= ROLL_UP) {
            match roll_up(&app).await {
                Ok(0) => {}
                Ok(attempts) => tracing::info!(attempts, "old attempts were rolled up"),
                Err(error) => tracing::warn!(%error, "cannot roll up old attempts"),
            }
            rolled = Some(Instant::now());
        }
        select! {
            () = app.stopping.cancelled() => return,
            () = sleep(ROUND) => {}
        }
    }
}

/// Whole days only, so that a day is either kept or counted.
async fn roll_up(app: &App) -> Result<u64, StoreError> {
    const DAY: i64 = 86_400_000_000;
    let kept = Duration::from_secs(u64::from(app.config.attempt_retention_days) * 86_400);
    let cut = app.now().minus(kept);
    app.store
        .roll_up_attempts(Timestamp(cut.0.div_euclid(DAY) * DAY))
        .await
}
