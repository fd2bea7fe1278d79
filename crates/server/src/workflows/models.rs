//! After a failover: do the model files have the MD5 that they had at the snapshot?
//!
//! The document asks for it, and nobody should wait for it: the workload serves since the switch,
//! and every chunk was proven by BLAKE3 while it was written. So this runs beside everything else
//! and adds its answer to the failover's record. It is not taken up again by another server: the
//! record then goes without, and says nothing either way.

use super::capture::HomeFence;
use crate::app::App;
use crate::link::{Granter, LinkError};
use dumont_core::snapshot::Verdict;
use dumont_store::{SnapshotRow, WorkspaceRow};
use dumont_wire::agent::ModelsRequest;
use std::sync::Arc;

/// Starts to compare; `event` is the failover's record, which is there already.
pub fn compare_later(app: &Arc<App>, event: &str, workspace: WorkspaceRow, snapshot: SnapshotRow) {
    let (app, event) = (Arc::clone(app), event.to_owned());
    tokio::spawn(async move {
        let stopping = app.stopping.clone();
        tokio::select! {
            () = stopping.cancelled() => {}
            done = compare(&app, &event, &workspace, &snapshot) => {
                if let Err(why) = done {
                    tracing::warn!(workspace = %workspace.name, why, "the MD5 of model files was not compared");
                }
            }
        }
    });
}

async fn compare(
    app: &App,
    event: &str,
    workspace: &WorkspaceRow,
    snapshot: &SnapshotRow,
) -> Result<(), String> {
    let instance_key = workspace.instance_key.clone().ok_or("it lives on no machine")?;
    let link = app.sessions.get(&instance_key).ok_or("the session has ended")?;
    let key = app
        .store
        .workspace_key(workspace)
        .await
        .map_err(|e| e.to_string())?;
    let fence = HomeFence {
        store: app.store.clone(),
        workspace_id: workspace.id.clone(),
        instance_key,
        fence: workspace.fence,
    };
    let granter = Granter::reading(
        app.objects.clone(),
        link.base_url(),
        &workspace.id,
        Arc::new(fence),
    );
    let request = ModelsRequest {
        path: workspace.spec.path.clone(),
        head: snapshot.head.clone(),
        key,
    };
    let found = link.compare_models(request, &granter).await;
    let found = found.map_err(|e: LinkError| e.to_string())?;
    if found.validation == Verdict::Failed {
        let files = found.mismatched.join(", ");
        tracing::warn!(workspace = %workspace.name, failover = event, files, "model files have another MD5 than at the snapshot");
    }
    let noted = app.store.note_model_files(event, &found).await;
    noted.map(drop).map_err(|e| e.to_string())
}
