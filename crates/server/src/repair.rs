//! Repair: a store that has lost something is looked through, and the snapshots' heads are pointed
//! to an index of what is good.
//!
//! It writes one index and exchanges heads by compare-and-set, like a prune's compaction; a crash in
//! between leaves heads of both kinds, all of which hold what they held. A machine must not build on
//! chunks that are gone: whoever last took or restored a snapshot that lost something starts with a
//! full one, which uploads what is missing.

use crate::app::App;
use crate::reconcilers::retention::{PruneError, Pruner};
use dumont_core::snapshot::SnapshotHead;
use dumont_snapshot::repair;
use dumont_store::WorkspaceRow;
use dumont_wire::rest::Repaired;
use std::sync::atomic::AtomicBool;

/// Looks at all that a workspace has in the store. Nothing may work on it meanwhile.
pub async fn run(app: &App, workspace: &WorkspaceRow) -> Result<Repaired, PruneError> {
    let pruner = Pruner::of(app);
    let rows = pruner.visible(workspace).await?;
    let heads: Vec<SnapshotHead> = rows.iter().map(|r| r.head.clone()).collect();
    let folder = format!("{}/packs/", crate::link::prefix(&workspace.id));
    let listed = app.objects.list(&folder).await?;
    let packs: Vec<String> = listed.into_iter().map(|o| o.key).collect();
    let key = app.store.workspace_key(workspace).await?;
    let bridge = pruner.bridge(workspace);
    let work = move || {
        repair(
            &heads,
            &packs,
            &bridge,
            &bridge,
            key.as_ref(),
            &AtomicBool::new(false),
        )
    };
    let found = tokio::task::spawn_blocking(work).await??;
    // First nobody builds on what is gone, then the heads say so: a crash in between costs a full
    // snapshot.
    for lost in &found.lost {
        app.store.forget_base(&lost.snapshot_id).await?;
    }
    let packs = pruner.versions_of(&found.packs).await?;
    let mut pointed = 0;
    if let Some(index) = &found.index {
        for row in &rows {
            pruner.exchange(workspace, row, index, &packs).await?;
            pointed += 1;
        }
    }
    Ok(Repaired {
        snapshots: rows.len() as u64,
        pointed,
        packs_read: found.packs_read,
        bytes_read: found.bytes_read,
        damaged: found.damaged,
        lost: found.lost,
    })
}
