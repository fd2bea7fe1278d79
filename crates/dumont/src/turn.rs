//! A workspace has one workflow at a time. Snapshots are taken unasked as well: whoever finds one
//! in the way waits for it, instead of being told to come back.

use crate::client::Client;
use crate::{output, progress};
use anyhow::Result;
use dumont_wire::rest::{ErrorBody, InTheWay, WorkflowKind};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Posts a request, after every snapshot that turns out to be in the way.
pub async fn post<B, T>(client: &Client, path: &str, body: &B, quiet: bool) -> Result<T>
where
    B: Serialize,
    T: DeserializeOwned,
{
    loop {
        let error = match client.post(path, body).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let Some(snapshot) = snapshot_in_the_way(&error) else {
            return Err(error);
        };
        if !quiet {
            let id = output::safe(&snapshot.id);
            output::note(&format!(
                "A snapshot is being taken already ({id}); waiting for it."
            ));
        }
        progress::until_ended(client, &snapshot.id, quiet).await?;
    }
}

fn snapshot_in_the_way(error: &anyhow::Error) -> Option<&InTheWay> {
    let body = error.downcast_ref::<ErrorBody>()?;
    let way = body.workflow.as_ref().filter(|_| body.code == "workspace_busy");
    way.filter(|w| w.kind == WorkflowKind::Snapshot)
}
