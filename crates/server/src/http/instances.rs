//! `/instances`: everything that is rented now and costs money.

use super::error::ApiResult;
use super::params::{Params, limit};
use crate::app::App;
use axum::Json;
use axum::extract::State;
use dumont_store::InstanceRow;
use dumont_wire::rest::{Instance, Page, PageQuery};
use std::sync::Arc;

/// Everything that is rented now and costs money.
#[utoipa::path(
    get,
    path = "/instances",
    tag = "instances",
    params(PageQuery),
    responses((status = 200, description = "One page", body = Page<Instance>)),
)]
pub async fn list(
    State(app): State<Arc<App>>,
    Params(page): Params<PageQuery>,
) -> ApiResult<Json<Page<Instance>>> {
    let limit = limit(&page)? as usize;
    let rows = app.store.list_open_instances().await?;
    let after = page.after.unwrap_or_default();
    let mut open = rows
        .iter()
        .filter(|r| r.key > after)
        .filter_map(|r| shown(r).map(|i| (r.key.clone(), i)));
    let items: Vec<(String, Instance)> = open.by_ref().take(limit).collect();
    let next = open.next().and_then(|_| items.last().map(|(key, _)| key.clone()));
    Ok(Json(Page {
        items: items.into_iter().map(|(_, i)| i).collect(),
        next,
    }))
}

/// `None` while the provider has not given it an id.
pub fn shown(row: &InstanceRow) -> Option<Instance> {
    Some(Instance {
        provider: row.machine.provider.clone(),
        instance_id: row.instance_id.clone()?,
        machine: row.machine.clone(),
        label: row.label.clone(),
        gpu_name: row.offer.gpu_name.clone(),
        gpu_count: row.offer.gpu_count,
        price: row.price,
        region: row.offer.region.clone(),
        ssh_host: row.ssh_host.clone(),
        ssh_port: row.ssh_port,
        clock_skew_ms: row.clock_skew_ms,
        created_at: row.created_at,
    })
}
