//! Giving machines back, so that none is ever forgotten.
//!
//! A row that says `destroying` is a debt. It is paid by asking the provider until the
//! provider itself says that the instance is gone; a rent whose reply was lost has no id yet
//! and is looked for by its label until it can no longer appear.

use crate::app::App;
use crate::history;
use crate::providers::{Provider, ProviderError};
use dumont_store::{Error as StoreError, InstanceRow, InstanceState};
use std::time::Duration;

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
