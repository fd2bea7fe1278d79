//! What is rented costs its whole price while it runs, and its disk alone while it stands still, by
//! the provider's word. Where that says neither, what was known last holds.

use crate::app::App;
use crate::providers::{InstanceStatus, ProviderInstance};
use dumont_core::time::Timestamp;
use dumont_store::{Error as StoreError, InstanceRow, InstanceState};
use std::collections::HashMap;

/// Writes down what has changed by this listing, which began at `seen`.
pub async fn follow(
    app: &App,
    provider: &str,
    listed: &[ProviderInstance],
    seen: Timestamp,
) -> Result<(), StoreError> {
    let by_id: HashMap<&str, &ProviderInstance> =
        listed.iter().map(|i| (i.instance_id.as_str(), i)).collect();
    for row in app.store.list_open_instances().await? {
        let shown = row.instance_id.as_deref().and_then(|id| by_id.get(id));
        let ours = row.machine.provider == provider && row.state == InstanceState::Owned;
        if let Some(price) = shown.filter(|_| ours).and_then(|shown| price(&row, shown))
            && price != row.price
        {
            app.store.set_instance_price(&row.key, price, seen).await?;
        }
    }
    Ok(())
}

fn price(row: &InstanceRow, shown: &ProviderInstance) -> Option<f64> {
    match shown.status {
        InstanceStatus::Stopped | InstanceStatus::Outbid => shown.storage,
        InstanceStatus::Running | InstanceStatus::Starting => Some(row.offer.price),
        InstanceStatus::Offline | InstanceStatus::Unknown => None,
    }
}
