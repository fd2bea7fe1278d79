//! Uploads that a crash left half-way are paid for until somebody ends them.

use crate::app::App;
use std::sync::Arc;
use std::time::Duration;

/// Between two looks; what is looked for is a day old.
const EVERY: Duration = Duration::from_secs(3600);

/// Runs until the server stops.
pub async fn run(app: Arc<App>) {
    loop {
        match app.objects.sweep().await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "ended abandoned uploads"),
            Err(error) => tracing::warn!(%error, hint = error.hint(), "cannot look for abandoned uploads"),
        }
        tokio::select! {
            () = app.stopping.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}
