//! `/providers/ssh/machines`: the inventory of the user's own machines, and how each stands now.

use super::body::Body;
use super::error::{ApiError, ApiResult};
use super::params::{Params, Path, limit};
use crate::app::App;
use crate::providers::own::{Known, Source, check};
use crate::providers::{ErrorClass, ProviderError};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use dumont_core::id::{MachineRef, RentLabel};
use dumont_core::own_machine::{OwnMachine, PROVIDER};
use dumont_store::LeaseRow;
use dumont_wire::machines::{LeaseShown, MachineSource, OwnMachineShown, OwnMachineState, RemoveMachine};
use dumont_wire::rest::{ErrorBody, Page, PageQuery};
use futures::future::join_all;
use std::sync::Arc;

/// Machines of your own, by name. Each is tried while you wait.
#[utoipa::path(
    get,
    path = "/providers/ssh/machines",
    tag = "own_machines",
    params(PageQuery),
    responses((status = 200, description = "One page", body = Page<OwnMachineShown>)),
)]
pub async fn list(
    State(app): State<Arc<App>>,
    Params(page): Params<PageQuery>,
) -> ApiResult<Json<Page<OwnMachineShown>>> {
    let most = limit(&page)? as usize;
    let mut known = app.own.known().await.map_err(unread)?;
    if let Some(after) = &page.after {
        known.retain(|k| k.machine.name() > after.as_str());
    }
    let more = known.len() > most;
    known.truncate(most);
    let leases = app.store.leases().await?;
    let items = join_all(known.iter().map(|k| shown(&app, k, &leases))).await;
    let last = items.last().map(|m| m.spec.name().to_owned());
    let next = last.filter(|_| more);
    Ok(Json(Page { items, next }))
}

/// Adds a machine of your own, or tells anew what it is. It is kept whether it answers or not;
/// the answer says what is missing.
#[utoipa::path(
    post,
    path = "/providers/ssh/machines",
    tag = "own_machines",
    request_body = OwnMachine,
    responses(
        (status = 201, description = "The machine, tried just now", body = OwnMachineShown),
        (status = 409, description = "The inventory's file has one of this name", body = ErrorBody),
    ),
)]
pub async fn add(
    State(app): State<Arc<App>>,
    Body(machine): Body<OwnMachine>,
) -> ApiResult<(StatusCode, Json<OwnMachineShown>)> {
    check(&machine).map_err(|why| ApiError::invalid(why, "correct that field and send it again"))?;
    if let Some(there) = named(&app, machine.name()).await?
        && there.source == Source::File
    {
        return Err(in_the_file(&there));
    }
    app.store.put_own_machine(&machine, app.now()).await?;
    let known = Known {
        machine,
        source: Source::Api,
    };
    let leases = app.store.leases().await?;
    Ok((StatusCode::CREATED, Json(shown(&app, &known, &leases).await)))
}

/// Takes a machine out of the inventory, and forgets its host key.
#[utoipa::path(
    delete,
    path = "/providers/ssh/machines/{name}",
    tag = "own_machines",
    params(("name" = String, Path, description = "Without the ssh:"), RemoveMachine),
    responses(
        (status = 200, description = "As it was", body = OwnMachine),
        (status = 409, description = "A workspace lives on it, it is not cleaned up, or it is in the file", body = ErrorBody),
    ),
)]
pub async fn remove(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Params(how): Params<RemoveMachine>,
) -> ApiResult<Json<OwnMachine>> {
    let name = MachineRef::new(PROVIDER, &name)?.machine_id;
    let there = named(&app, &name).await?;
    let there = there.ok_or_else(|| {
        ApiError::not_found("machine", &name, "`dumont machine list` shows those there are")
    })?;
    let held = app.store.leases().await?;
    let on = held.iter().filter(|l| l.machine.name() == name).count();
    if how.force.unwrap_or_default() {
        app.store.end_leases_on(&name).await?;
        app.reap.notify_one();
    } else if on > 0 {
        return Err(ApiError::conflict(
            "machine_leased",
            format!("ssh:{name} has {on} leases that are not ended and cleaned up"),
            "move its workspaces away and wait, or say with --force that it will not come back",
        ));
    }
    if there.source == Source::File {
        return Err(in_the_file(&there));
    }
    app.store.delete_own_machine(&name).await?;
    app.own.forget_host_key(&there.machine).await.map_err(unread)?;
    Ok(Json(there.machine))
}

async fn named(app: &App, name: &str) -> ApiResult<Option<Known>> {
    let known = app.own.known().await.map_err(unread)?;
    Ok(known.into_iter().find(|k| k.machine.name() == name))
}

fn in_the_file(there: &Known) -> ApiError {
    ApiError::conflict(
        "machine_in_file",
        format!("{} is in the inventory's file", there.machine.machine),
        "change the file that SSH_INVENTORY names; it is in force at once",
    )
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unread(error: ProviderError) -> ApiError {
    ApiError::internal(error.to_string())
}

async fn shown(app: &App, known: &Known, leases: &[LeaseRow]) -> OwnMachineShown {
    let machine = &known.machine;
    let on: Vec<&LeaseRow> = leases
        .iter()
        .filter(|l| l.machine.machine == machine.machine)
        .collect();
    let looked = app.own.visit(machine).await;
    let state = match &looked {
        Err(e) if e.class == ErrorClass::Auth => OwnMachineState::Refused,
        Err(_) => OwnMachineState::Unreachable,
        Ok(()) if on.iter().any(|l| l.releasing) => OwnMachineState::Cleaning,
        Ok(()) if on.len() >= machine.workspaces as usize => OwnMachineState::Leased,
        Ok(()) => OwnMachineState::Free,
    };
    let lease = |lease: &&LeaseRow| LeaseShown {
        instance_id: lease.id.clone(),
        workspace: RentLabel::parse(&lease.label).and_then(|l| l.workspace.parse().ok()),
        cleaning: lease.releasing,
    };
    OwnMachineShown {
        spec: machine.clone(),
        source: match known.source {
            Source::File => MachineSource::File,
            Source::Api => MachineSource::Api,
        },
        state,
        message: looked.err().map(|e| e.message),
        leases: on.iter().map(lease).collect(),
    }
}
