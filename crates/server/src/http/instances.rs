//! `/instances`: everything that is rented now and costs money.

use super::error::{ApiError, ApiResult};
use super::params::{Params, limit};
use crate::app::App;
use crate::reconcilers::reaper;
use crate::workflows::search::provider_words;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use dumont_store::InstanceRow;
use dumont_wire::rest::{Instance, Orphan, Page, PageQuery};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Orphans destroyed for one request.
const AT_ONCE: usize = 10;

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

/// Instances at the providers that carry this controller's label and that it does not know: left by
/// a crash, or by a database that was lost. Asks the providers.
#[utoipa::path(
    get,
    path = "/instances/orphans",
    tag = "instances",
    params(PageQuery),
    responses((status = 200, description = "One page", body = Page<Orphan>)),
)]
pub async fn orphans(
    State(app): State<Arc<App>>,
    Params(page): Params<PageQuery>,
) -> ApiResult<Json<Page<Orphan>>> {
    let limit = limit(&page)? as usize;
    let mut items = found(&app).await?;
    if let Some(after) = &page.after {
        items.retain(|o| place(o) > *after);
    }
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(place);
    Ok(Json(Page { items, next }))
}

/// Destroys them, though they be more than the reaper's ceiling: the first ten, as providers allow
/// few requests a second. Answers with those that are gone; to be repeated until there are none.
#[utoipa::path(
    delete,
    path = "/instances/orphans",
    tag = "instances",
    responses((status = 200, description = "Those that were destroyed", body = Vec<Orphan>)),
)]
pub async fn destroy_orphans(State(app): State<Arc<App>>) -> ApiResult<Json<Vec<Orphan>>> {
    let mut gone = Vec::new();
    for orphan in found(&app).await?.into_iter().take(AT_ONCE) {
        if reaper::destroy(&app, &orphan.provider, &orphan.instance_id).await {
            gone.push(orphan);
        }
    }
    Ok(Json(gone))
}

async fn found(app: &App) -> Result<Vec<Orphan>, ApiError> {
    let mut all = Vec::new();
    for (provider, market) in &app.markets {
        let orphans = reaper::orphans(app, market).await.map_err(|error| {
            let (code, hint) = provider_words(provider, &error);
            ApiError::new(StatusCode::BAD_GATEWAY, code, error.to_string(), hint)
        })?;
        all.extend(orphans.into_iter().map(|i| Orphan {
            provider: (*provider).to_owned(),
            instance_id: i.instance_id,
            machine_id: i.machine_id,
            label: i.label.unwrap_or_default(),
            price: i.price,
        }));
    }
    app.orphans.store(all.len() as u64, Relaxed);
    all.sort_by_cached_key(place);
    Ok(all)
}

/// Where it stands in the list. Not its label: two of a doubled rent share theirs.
fn place(orphan: &Orphan) -> String {
    format!("{}:{}", orphan.provider, orphan.instance_id)
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
        running_price: row.offer.price,
        region: row.offer.region.clone(),
        ssh_host: row.ssh_host.clone(),
        ssh_port: row.ssh_port,
        clock_skew_ms: row.clock_skew_ms,
        created_at: row.created_at,
    })
}
