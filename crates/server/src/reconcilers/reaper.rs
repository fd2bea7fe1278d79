//! The reaper: nothing rented is ever forgotten.
//!
//! Three kinds of debt, by how they are found. A row marked `destroying` is owed. A row of a
//! workflow that has ended, owned by no workspace, is a leak that a crash left. An instance at
//! the provider that carries our label and that no open row knows is a rent whose very row was
//! lost. It touches only labels of this controller, takes an empty or failed listing as no
//! evidence of anything, and stops at a ceiling: many orphans at once mean that we are wrong.

use super::prices;
use crate::app::{App, Market};
use crate::providers::budget::as_class;
use crate::providers::{ProviderError, ProviderInstance};
use crate::workflows::dispose::{self, DisposeError};
use dumont_core::budget::Class;
use dumont_core::id::RentLabel;
use dumont_core::workflow::Status;
use dumont_store::{Error as StoreError, InstanceRow, InstanceState};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::select;
use tokio::time::Instant;

/// A listing that takes long is not begun again before this many times its length: what the
/// account may list is for those who wait for a machine.
const SWEEP_SHARE: u32 = 10;

/// Runs until the server stops.
pub async fn run(app: Arc<App>) {
    // When the last sweep ended, and what rests until the next.
    let mut swept: Option<(Instant, Duration)> = None;
    loop {
        if let Err(error) = pay(&app).await {
            tracing::warn!(%error, "the reaper's round failed; it goes on");
        }
        if swept.is_none_or(|(at, rest)| at.elapsed() >= rest) {
            let began = Instant::now();
            as_class(Class::Normal, sweep(&app)).await;
            let rest = app.config.timing.sweep.max(began.elapsed() * SWEEP_SHARE);
            swept = Some((Instant::now(), rest));
        }
        select! {
            () = app.stopping.cancelled() => return,
            () = app.reap.notified() => {}
            () = tokio::time::sleep(app.config.timing.reap) => {}
        }
    }
}

/// Destroys what is owed, all at once: the provider's pacing is its client's business.
async fn pay(app: &Arc<App>) -> Result<(), StoreError> {
    let mut debts = Vec::new();
    for row in app.store.list_open_instances().await? {
        match row.state {
            InstanceState::Destroying | InstanceState::Failed => debts.push(row),
            InstanceState::Intended | InstanceState::Rented | InstanceState::Ready => {
                if abandoned(app, &row).await? {
                    dispose::owe(app, &row.key).await?;
                    debts.push(row);
                }
            }
            InstanceState::Owned => {
                if disowned(app, &row).await? {
                    dispose::owe(app, &row.key).await?;
                    debts.push(row);
                }
            }
            InstanceState::Destroyed => {}
        }
    }
    let tasks = debts.into_iter().map(|row| {
        let app = app.clone();
        tokio::spawn(async move {
            match as_class(Class::Normal, dispose::destroy(&app, &row)).await {
                Ok(()) | Err(DisposeError::Uncertain(_)) => {}
                Err(error) => tracing::warn!(machine = %row.offer.machine, %error, "not destroyed yet"),
            }
        })
    });
    futures::future::join_all(tasks.collect::<Vec<_>>()).await;
    Ok(())
}

/// Rented by a workflow that has ended without giving it to a workspace.
async fn abandoned(app: &App, row: &InstanceRow) -> Result<bool, StoreError> {
    let Some(id) = &row.workflow_id else {
        return Ok(true);
    };
    Ok(app
        .store
        .workflow(id)
        .await?
        .is_none_or(|w| w.status != Status::Running))
}

/// Owned once, but its workspace is deleted or lives elsewhere and nothing works on that.
async fn disowned(app: &App, row: &InstanceRow) -> Result<bool, StoreError> {
    let Some(workspace) = app.store.workspace(&row.workspace_id).await? else {
        return Ok(true);
    };
    if workspace.deleted_at.is_none() && workspace.instance_key.as_deref() == Some(row.key.as_str()) {
        return Ok(false);
    }
    Ok(app.store.running_workflow(&row.workspace_id).await?.is_none())
}

/// Looks at the providers for instances of ours that no row knows, and at what those cost that are
/// known.
async fn sweep(app: &App) {
    let mut count = 0;
    for market in app.markets.values() {
        let seen = app.now();
        let listed = match market.listing.whole(Instant::now()).await {
            Ok(listed) => listed,
            Err(error) => {
                tracing::warn!(%error, "cannot list instances; nothing is concluded from that");
                continue;
            }
        };
        if let Err(error) = prices::follow(app, market.provider.name(), &listed, seen).await {
            tracing::warn!(%error, "cannot write down what instances cost; the last prices stand");
        }
        let found = nobodys(app, &listed).await;
        count += found.len() - destroy_some(app, market, &found).await;
    }
    app.orphans.store(count as u64, Relaxed);
}

/// Instances that carry this controller's label and are nobody's.
pub async fn orphans(app: &App, market: &Market) -> Result<Vec<ProviderInstance>, ProviderError> {
    let listed = market.listing.whole(Instant::now()).await?;
    Ok(nobodys(app, &listed).await)
}

async fn nobodys(app: &App, listed: &[ProviderInstance]) -> Vec<ProviderInstance> {
    let mut orphans = Vec::new();
    for instance in listed {
        let Some(label) = instance.label.as_deref().and_then(RentLabel::parse) else {
            continue;
        };
        if label.controller == app.controller_id
            && let Ok(true) = unknown(app, &label, &instance.instance_id).await
        {
            orphans.push(instance.clone());
        }
    }
    orphans
}

/// Does no row stand for this instance? A row that says nothing was rented does not, nor one whose
/// instance is another: on its way the create was doubled, and no other answer is to come. One that
/// says it is gone does not, nor does none at all, unless the rent is young: listings may lag behind,
/// or run ahead. The attempt's ULID carries its birth.
async fn unknown(app: &App, label: &RentLabel, listed_id: &str) -> Result<bool, StoreError> {
    let row = app.store.instance_by_label(&label.to_string()).await?;
    let gone = match row.map(|row| (row.state, row.instance_id)) {
        Some((InstanceState::Failed, None)) => return Ok(true),
        Some((_, Some(own))) if own != listed_id => return Ok(true),
        Some((state, _)) => state == InstanceState::Destroyed,
        None => true,
    };
    let born = label
        .attempt
        .parse::<ulid::Ulid>()
        .map(|u| u.timestamp_ms())
        .unwrap_or(0);
    let age = (app.now().0 / 1000).unsigned_abs().saturating_sub(born);
    Ok(gone && Duration::from_millis(age) >= app.config.timing.orphan_grace)
}

/// Many at once mean that we are wrong, e.g. look at the database of yesterday: a person decides.
/// How many are gone.
async fn destroy_some(app: &App, market: &Market, orphans: &[ProviderInstance]) -> usize {
    let ceiling = app.config.reaper_ceiling;
    if orphans.len() > ceiling {
        tracing::error!(
            count = orphans.len(),
            ceiling,
            "too many instances carry our label without a row; nothing is destroyed: see `dumont instances --orphans`"
        );
        return 0;
    }
    let mut gone = 0;
    for orphan in orphans {
        gone += usize::from(destroy(app, market.provider.name(), &orphan.instance_id).await);
    }
    gone
}

/// Destroys one and sees that it is gone. What is not gone is found again by the next look.
pub async fn destroy(app: &App, provider: &str, instance_id: &str) -> bool {
    let Some(market) = app.market(provider) else {
        return false;
    };
    tracing::warn!(instance = %instance_id, "destroying an instance of ours that no workspace knows");
    let gone = async {
        market.provider.destroy(instance_id).await?;
        Ok(market.provider.get(instance_id).await?.is_none())
    };
    match gone.await {
        Ok(gone) => gone,
        Err(error) => {
            let error: ProviderError = error;
            tracing::warn!(instance = %instance_id, %error, "an orphan could not be destroyed yet");
            false
        }
    }
}
