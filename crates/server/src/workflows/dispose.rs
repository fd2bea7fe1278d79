//! Giving machines back, so that none is ever forgotten.
//!
//! A row that says `destroying` is a debt. It is paid by asking the provider until the
//! provider itself says that the instance is gone; a rent whose reply was lost has no id yet
//! and is looked for by its label until it can no longer appear.

use crate::app::App;
use crate::history;
use crate::providers::{Provider, ProviderError};
use dumont_store::{Error as StoreError, InstanceRow, InstanceState};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::OwnedMutexGuard;

/// What this server is destroying. A workflow and the reaper are often after the same machine; who comes
/// second waits for the first, so that none costs the account two requests.
#[derive(Debug, Default)]
pub struct Disposals(Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>);

impl Disposals {
    async fn alone(&self, key: &str) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| turn.strong_count() > 0);
            turns.get(key).and_then(Weak::upgrade).unwrap_or_else(|| {
                let turn = Arc::default();
                turns.insert(key.to_owned(), Arc::downgrade(&turn));
                turn
            })
        };
        turn.lock_owned().await
    }
}

#[derive(Debug, thiserror::Error)]
pub enum DisposeError {
    #[error("provider: {0}")]
    Provider(#[from] ProviderError),
    #[error("database: {0}")]
    Store(#[from] StoreError),
    #[error("provider {0:?} is not configured")]
    NoProvider(String),
    /// Asked, not confirmed yet.
    #[error("instance {0} still exists")]
    StillThere(String),
    /// The rent may still appear; look again later.
    #[error("rent {0} is still uncertain")]
    Uncertain(String),
}

/// Writes down that this instance must go; the reaper pays. Safe to repeat.
pub async fn owe(app: &App, key: &str) -> Result<(), StoreError> {
    if mark(app, key).await? {
        app.reap.notify_one();
    }
    Ok(())
}

/// Whether there is anything to destroy.
async fn mark(app: &App, key: &str) -> Result<bool, StoreError> {
    let row = app.store.instance(key).await?;
    if row.is_some_and(|r| r.state == InstanceState::Failed && r.instance_id.is_none()) {
        // The provider refused it for sure: there is nothing to destroy, nor to look for.
        return Ok(false);
    }
    match app
        .store
        .set_instance_state(key, InstanceState::Destroying, app.now())
        .await
    {
        Ok(_) => Ok(true),
        // Destroyed already.
        Err(StoreError::Stale { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Destroys one instance and confirms it. Safe to repeat, safe to run twice at once.
pub async fn destroy(app: &App, row: &InstanceRow) -> Result<(), DisposeError> {
    let market = app
        .market(&row.machine.provider)
        .ok_or_else(|| DisposeError::NoProvider(row.machine.provider.clone()))?;
    let provider = market.provider.as_ref();
    // Every machine that goes passes here, and a race has recorded its own by now; only one
    // that was refused may still be in the hands of a race that is about to.
    if row.state != InstanceState::Failed {
        history::cancelled(app, row).await?;
    }
    let _alone = app.disposals.alone(&row.key).await;
    let now = app.store.instance(&row.key).await?;
    if now.is_some_and(|row| row.state == InstanceState::Destroyed) {
        return Ok(());
    }
    let Some(instance_id) = known_id(app, provider, row).await? else {
        app.store
            .set_instance_state(&row.key, InstanceState::Destroyed, app.now())
            .await?;
        return Ok(());
    };
    // The reaper is not woken: it would do at once what fails here, and while this goes on a second time.
    mark(app, &row.key).await?;
    if let Some(link) = app.sessions.remove(&row.key) {
        link.close().await;
    }
    provider.destroy(&instance_id).await?;
    if provider.get(&instance_id).await?.is_some() {
        return Err(DisposeError::StillThere(instance_id));
    }
    app.store
        .set_instance_state(&row.key, InstanceState::Destroyed, app.now())
        .await?;
    tracing::info!(instance = %instance_id, machine = %row.offer.machine, "destroyed");
    Ok(())
}

/// The provider's id; `None` when it is sure that nothing was rented.
async fn known_id(
    app: &App,
    provider: &dyn Provider,
    row: &InstanceRow,
) -> Result<Option<String>, DisposeError> {
    if row.instance_id.is_some() {
        return Ok(row.instance_id.clone());
    }
    if let Some(found) = provider.find_by_label(&row.label).await? {
        app.store
            .set_instance_rented(&row.key, &found.instance_id, app.now())
            .await?;
        return Ok(Some(found.instance_id));
    }
    let age = app.now().millis_since(row.created_at).max(0).unsigned_abs();
    if Duration::from_millis(age) < app.config.timing.intent_grace {
        return Err(DisposeError::Uncertain(row.label.clone()));
    }
    Ok(None)
}
