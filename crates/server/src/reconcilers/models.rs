//! After a failover: do the model files have the MD5 that they had at the snapshot?
//!
//! The document asks for it, and nobody should wait for it: the workload serves since the switch,
//! and every chunk was proven by BLAKE3 while it was written. So this runs beside everything else and
//! adds its answer to the failover's record. A record without an answer is the work to be done, so
//! it outlives this process; two controllers that compare at once write the same.

use crate::app::App;
use crate::link::{Granter, Link};
use crate::workflows::capture::HomeFence;
use dumont_core::snapshot::Verdict;
use dumont_store::{Error as StoreError, FailoverEventRow, WorkspaceRow};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::select;
use tokio_util::task::AbortOnDropHandle;
use ulid::Ulid;

/// Between two rounds.
const EVERY: Duration = Duration::from_secs(5);
/// Older records go without an answer, and say nothing either way.
const WORTH_IT: Duration = Duration::from_secs(86_400);
/// All of the work is the machines'; this bounds what a restart asks of us at once.
const AT_ONCE: usize = 16;
/// Of one record, by one process.
const TRIES: u32 = 5;

struct Comparing {
    tries: u32,
    task: AbortOnDropHandle<()>,
}

/// Runs until the server stops.
pub async fn run(app: Arc<App>) {
    let mut begun: HashMap<String, Comparing> = HashMap::new();
    loop {
        if let Err(error) = round(&app, &mut begun).await {
            tracing::warn!(%error, "cannot see which model files to compare");
        }
        select! {
            () = app.stopping.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

async fn round(app: &Arc<App>, begun: &mut HashMap<String, Comparing>) -> Result<(), StoreError> {
    let oldest = app.now().minus(WORTH_IT);
    let after = Ulid::from_parts(u64::try_from(oldest.0 / 1_000).unwrap_or(0), 0);
    let events = app.store.uncompared_failovers(&after.to_string()).await?;
    begun.retain(|id, _| events.iter().any(|e| e.id == *id));
    for event in events {
        let running = begun.values().filter(|c| !c.task.is_finished()).count();
        let before = begun.get(&event.id);
        if running >= AT_ONCE || before.is_some_and(|c| !c.task.is_finished() || c.tries >= TRIES) {
            continue;
        }
        let tries = before.map_or(0, |c| c.tries) + 1;
        let Some((workspace, link)) = still_there(app, &event).await? else {
            continue;
        };
        let (app, id) = (Arc::clone(app), event.id.clone());
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            if let Err(why) = compare(&app, &event, &workspace, &link).await {
                tracing::warn!(workspace = %workspace.name, why, "the MD5 of model files was not compared");
            }
        }));
        begun.insert(id, Comparing { tries, task });
    }
    Ok(())
}

/// The workspace, if it lives where that failover brought it, and nothing works on it.
async fn still_there(
    app: &App,
    event: &FailoverEventRow,
) -> Result<Option<(WorkspaceRow, Arc<Link>)>, StoreError> {
    let Some(workspace) = app.store.workspace(&event.workspace_id).await? else {
        return Ok(None);
    };
    let Some(key) = workspace.instance_key.clone() else {
        return Ok(None);
    };
    let instance = app.store.instance(&key).await?;
    let here = instance.is_some_and(|i| i.instance_id == event.new_instance_id);
    if !here || app.store.running_workflow(&workspace.id).await?.is_some() {
        return Ok(None);
    }
    // Without a session it waits for the watcher's.
    Ok(app.sessions.get(&key).map(|link| (workspace, link)))
}

async fn compare(
    app: &App,
    event: &FailoverEventRow,
    workspace: &WorkspaceRow,
    link: &Link,
) -> Result<(), String> {
    let id = event.snapshot_id.as_deref().unwrap_or_default();
    let snapshot = app.store.snapshot(id).await.map_err(|e| e.to_string())?;
    let snapshot = snapshot.ok_or("its snapshot is gone")?;
    let key = app
        .store
        .workspace_key(workspace)
        .await
        .map_err(|e| e.to_string())?;
    let fence = HomeFence {
        store: app.store.clone(),
        workspace_id: workspace.id.clone(),
        instance_key: workspace.instance_key.clone().unwrap_or_default(),
        fence: workspace.fence,
    };
    let granter = Granter::reading(
        app.objects.clone(),
        link.base_url(),
        &workspace.id,
        Arc::new(fence),
    );
    let request = dumont_wire::agent::ModelsRequest {
        path: link.path().to_owned(),
        head: snapshot.head.clone(),
        key,
    };
    let found = link.compare_models(request, &granter).await;
    let found = found.map_err(|e| e.to_string())?;
    if found.validation == Verdict::Failed {
        let files = found.mismatched.join(", ");
        tracing::warn!(workspace = %workspace.name, failover = event.id, files, "model files have another MD5 than at the snapshot");
    }
    let noted = app.store.note_model_files(&event.id, &found).await;
    noted.map(drop).map_err(|e| e.to_string())
}
