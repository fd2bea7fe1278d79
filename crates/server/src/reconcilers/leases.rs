//! Writes down which instances are heard of, so that one which stopped itself for want of a
//! controller is told from one that somebody stopped.

use crate::app::App;
use dumont_core::lease::record_every;
use std::sync::Arc;
use std::time::Duration;
use tokio::select;
use tokio::time::sleep;

/// Instances rented under an earlier setting have leases, too.
const USUAL: Duration = Duration::from_secs(86_400);

/// Runs until the server stops.
pub async fn run(app: Arc<App>) {
    let every = record_every(app.config.abandon_after.unwrap_or(USUAL));
    loop {
        for (key, link) in app.sessions.all() {
            // A session that has ended was heard until its end, all the same.
            if let Err(error) = app.store.set_instance_heard(&key, link.last_heard()).await {
                tracing::warn!(%error, "cannot write down which machines are heard of");
                break;
            }
        }
        select! {
            () = app.stopping.cancelled() => return,
            () = sleep(every) => {}
        }
    }
}
