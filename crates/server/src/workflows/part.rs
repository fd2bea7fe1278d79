//! A restore of a part: does it name anything? Asked of the store, before anything is stopped.

use super::state::Placement;
use super::{Run, StepError};
use crate::link::prefix;
use crate::objects::engine::Bridge;
use dumont_snapshot::{Error, Reader};
use dumont_store::SnapshotRow;
use std::sync::atomic::AtomicBool;

/// Refuses what would bring nothing. A tree that cannot be read is for the restore to tell of.
pub async fn check(run: &Run, snapshot: &SnapshotRow, state: &Placement) -> Result<(), StepError> {
    let key = run.app.store.workspace_key(&run.workspace).await?;
    let bridge = Bridge::new(run.app.objects.clone(), prefix(&run.workspace.id));
    let head = snapshot.head.clone();
    let (include, exclude) = (state.include.clone(), state.exclude.clone());
    let look = tokio::task::spawn_blocking(move || {
        let never = AtomicBool::new(false);
        let reader = Reader::open(&head, &bridge, key.as_ref(), &never)?;
        reader.part(&include, &exclude).map(drop)
    });
    let Ok(Err(Error::Invalid { what })) = look.await else {
        return Ok(());
    };
    let name = &run.workspace.name;
    Err(StepError::failed(
        "invalid",
        what,
        format!(
            "nothing was stopped or changed; `dumont snapshot ls {name} --snapshot {}` shows what it has",
            snapshot.id
        ),
    ))
}
