//! `/workspaces`: what the user wants to keep running.

use super::body::Body;
use super::error::{ApiError, ApiResult};
use super::instances::shown as shown_instance;
use super::offers::{known, no_provider};
use super::params::{Params, Path, limit};
use super::snapshots;
use crate::app::App;
use crate::providers::Access;
use crate::reconcilers::schedule;
use crate::ssh::public_line;
use crate::workflows::capture;
use crate::workflows::state::Placement;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use dumont_core::id::WorkspaceName;
use dumont_core::key::WorkspaceKey;
use dumont_core::schedule::Standing;
use dumont_core::spec::{Providers, WorkspaceSpec};
use dumont_core::workflow::Kind;
use dumont_store::{
    Effect, Error as StoreError, InstanceRow, NewWorkflow, NewWorkspace, WorkspaceRow, WorkspaceState,
};
use dumont_wire::rest::{
    self, CreateWorkspace, DeployWorkspace, ErrorBody, Page, PageQuery, ShownKey, SshAccess, SshTarget,
    Started, Workspace,
};
use serde_json::Value;
use std::sync::Arc;
use ulid::Ulid;

/// All workspaces, by name.
#[utoipa::path(
    get,
    path = "/workspaces",
    tag = "workspaces",
    params(PageQuery),
    responses((status = 200, description = "One page", body = Page<Workspace>)),
)]
pub async fn list(
    State(app): State<Arc<App>>,
    Params(page): Params<PageQuery>,
) -> ApiResult<Json<Page<Workspace>>> {
    let rows = app
        .store
        .list_workspaces(page.after.as_deref(), limit(&page)?)
        .await?;
    let mut items = Vec::with_capacity(rows.items.len());
    for row in rows.items {
        items.push(shown(&app, row).await?);
    }
    Ok(Json(Page {
        items,
        next: rows.next,
    }))
}

/// Makes a workspace and, unless `deploy` is false, rents a machine for it.
#[utoipa::path(
    post,
    path = "/workspaces",
    tag = "workspaces",
    request_body = CreateWorkspace,
    responses(
        (status = 201, description = "The workspace, with the workflow that deploys it", body = Workspace),
        (status = 409, description = "There is one of that name already, the machine is blacklisted, or the server has no account with the provider", body = ErrorBody),
    ),
)]
pub async fn create(
    State(app): State<Arc<App>>,
    Body(wanted): Body<CreateWorkspace>,
) -> ApiResult<(StatusCode, Json<Workspace>)> {
    wanted.spec.check()?;
    let target = DeployWorkspace {
        machine: wanted.machine,
        allow_blacklisted: wanted.allow_blacklisted,
    };
    if !wanted.deploy && target != DeployWorkspace::default() {
        return Err(ApiError::invalid(
            "machine and allow_blacklisted are for a deploy, and deploy is false",
            "name the machine when you deploy: POST /workspaces/{name}/deploy",
        ));
    }
    // Before anything is made: a refusal leaves nothing behind.
    let placement = match wanted.deploy {
        true => placement(&app, target, &wanted.spec).await?,
        false => Placement::default(),
    };
    let name = wanted.spec.name.clone();
    let encrypt = wanted.spec.snapshot.encrypt;
    let new = NewWorkspace {
        key: encrypt.then(new_key),
        id: Ulid::generate().to_string(),
        spec: wanted.spec,
        state: WorkspaceState::Draft,
    };
    let row = match app.store.create_workspace(&new, app.now()).await {
        Err(StoreError::Conflict { .. }) => {
            return Err(ApiError::conflict(
                "workspace_exists",
                format!("there is a workspace {:?} already", name.as_str()),
                format!("choose another name, or see it with `dumont workspace show {name}`"),
            ));
        }
        other => other?,
    };
    if wanted.deploy {
        start_deploy(&app, &row, &placement).await?;
    }
    let row = find(&app, row.name).await?;
    Ok((StatusCode::CREATED, Json(shown(&app, row).await?)))
}

/// One workspace, where it lives and what works on it.
#[utoipa::path(
    get,
    path = "/workspaces/{name}",
    tag = "workspaces",
    params(("name" = WorkspaceName, Path)),
    responses((status = 200, description = "The workspace", body = Workspace)),
)]
pub async fn show(State(app): State<Arc<App>>, Path(name): Path<String>) -> ApiResult<Json<Workspace>> {
    let row = named(&app, &name).await?;
    Ok(Json(shown(&app, row).await?))
}

fn new_key() -> WorkspaceKey {
    let mut key = [0; 32];
    rand::Rng::fill_bytes(&mut rand::rng(), &mut key);
    WorkspaceKey(key)
}

/// What an encrypted workspace's snapshots are sealed with.
#[utoipa::path(
    get,
    path = "/workspaces/{name}/key",
    tag = "workspaces",
    params(("name" = WorkspaceName, Path)),
    responses(
        (status = 200, description = "The key; without it nobody reads the snapshots", body = ShownKey),
        (status = 409, description = "The workspace is not encrypted", body = ErrorBody),
    ),
)]
pub async fn key(State(app): State<Arc<App>>, Path(name): Path<String>) -> ApiResult<Json<ShownKey>> {
    let row = named(&app, &name).await?;
    match app.store.workspace_key(&row).await? {
        Some(key) => Ok(Json(ShownKey { key })),
        None => Err(ApiError::conflict(
            "not_encrypted",
            format!("workspace {name:?} is not encrypted and has no key"),
            "read its snapshots without one",
        )),
    }
}

/// Rents a machine for a workspace that lives on none.
#[utoipa::path(
    post,
    path = "/workspaces/{name}/deploy",
    tag = "workspaces",
    params(("name" = WorkspaceName, Path)),
    request_body = DeployWorkspace,
    responses(
        (status = 202, description = "The workflow", body = Started),
        (status = 409, description = "It lives on a machine already, another workflow works on it, the machine is blacklisted, or the server has no account with the provider", body = ErrorBody),
    ),
)]
pub async fn deploy(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Body(target): Body<DeployWorkspace>,
) -> ApiResult<(StatusCode, Json<Started>)> {
    let row = named(&app, &name).await?;
    if row.instance_key.is_some() {
        return Err(ApiError::conflict(
            "already_deployed",
            format!("workspace {name:?} lives on a machine already"),
            format!("`dumont failover run {name}` moves it to another"),
        ));
    }
    let placement = placement(&app, target, &row.spec).await?;
    let workflow_id = start_deploy(&app, &row, &placement).await?;
    Ok((StatusCode::ACCEPTED, Json(Started { workflow_id })))
}

/// Ends the workspace: whatever it rents is destroyed, its objects stay in the store.
#[utoipa::path(
    delete,
    path = "/workspaces/{name}",
    tag = "workspaces",
    params(("name" = WorkspaceName, Path)),
    responses(
        (status = 202, description = "The workflow", body = Started),
        (status = 409, description = "It is being deleted already", body = ErrorBody),
    ),
)]
pub async fn delete(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> ApiResult<(StatusCode, Json<Started>)> {
    let row = named(&app, &name).await?;
    let effect = Effect::State {
        state: WorkspaceState::Deleting,
        message: None,
    };
    // A teardown waits for nobody: what runs gives way, and what it rented is destroyed.
    let preempt = vec![Kind::Deploy, Kind::Failover, Kind::Snapshot, Kind::Restore];
    let workflow_id = start(&app, &row, Kind::Teardown, Value::Null, preempt, vec![effect]).await?;
    Ok((StatusCode::ACCEPTED, Json(Started { workflow_id })))
}

/// Lets the caller's own key into the machine and says where it is.
#[utoipa::path(
    post,
    path = "/workspaces/{name}/ssh",
    tag = "workspaces",
    params(("name" = WorkspaceName, Path)),
    request_body = SshAccess,
    responses(
        (status = 200, description = "Where to log in", body = SshTarget),
        (status = 409, description = "It lives on no machine", body = ErrorBody),
        (status = 502, description = "The provider does not take the key", body = ErrorBody),
    ),
)]
pub async fn ssh(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Body(access): Body<SshAccess>,
) -> ApiResult<Json<SshTarget>> {
    let key = russh::keys::PublicKey::from_openssh(access.public_key.trim())
        .ok()
        .and_then(|k| public_line(&k).ok())
        .ok_or_else(|| {
            ApiError::invalid(
                "public_key is not an OpenSSH public key",
                "send one line like `ssh-ed25519 AAAA… me`",
            )
        })?;
    let row = named(&app, &name).await?;
    let instance = home(&app, &row).await?;
    let (Some(id), Some(market)) = (&instance.instance_id, app.market(&instance.machine.provider)) else {
        return Err(no_machine(&row));
    };
    market.provider.attach_key(id, &key).await.map_err(|e| {
        ApiError::new(
            StatusCode::BAD_GATEWAY,
            "provider_failed",
            format!("the provider does not take the key: {e}"),
            "try again in a few seconds",
        )
    })?;
    // That may have found a machine of the user's own at another address.
    let instance = home(&app, &row).await?;
    let access = Access::of(&instance);
    let (Some(host), Some(port), Some(host_key)) = (instance.ssh_host, instance.ssh_port, instance.host_key)
    else {
        return Err(no_machine(&row));
    };
    Ok(Json(SshTarget {
        host,
        port,
        user: access.user().to_owned(),
        host_key,
        path: access.path(&row.spec.path),
    }))
}

/// The instance a workspace lives on.
pub async fn home(app: &App, row: &WorkspaceRow) -> ApiResult<InstanceRow> {
    let instance = match &row.instance_key {
        Some(key) => app.store.instance(key).await?,
        None => None,
    };
    instance.ok_or_else(|| no_machine(row))
}

fn no_machine(row: &WorkspaceRow) -> ApiError {
    ApiError::conflict(
        "no_machine",
        format!(
            "workspace {:?} is {} and lives on no machine",
            row.name.as_str(),
            row.state
        ),
        match row.state {
            WorkspaceState::Failed | WorkspaceState::Draft => {
                format!("put it on one: dumont workspace deploy {}", row.name)
            }
            _ => format!(
                "wait for it; `dumont workspace show {}` says where it stands",
                row.name
            ),
        },
    )
}

/// The workspace a path names.
pub async fn named(app: &App, name: &str) -> ApiResult<WorkspaceRow> {
    find(app, name.parse()?).await
}

async fn find(app: &App, name: WorkspaceName) -> ApiResult<WorkspaceRow> {
    let row = app.store.workspace_by_name(&name).await?;
    row.ok_or_else(|| {
        ApiError::not_found(
            "workspace",
            name.as_str(),
            "`dumont workspace list` shows those there are",
        )
    })
}

/// A deploy's first state. A machine asked for by name is looked up at once: to be told later,
/// by a workflow that failed, helps nobody.
async fn placement(app: &App, target: DeployWorkspace, spec: &WorkspaceSpec) -> ApiResult<Placement> {
    let cuda = spec.gpu.cuda;
    let among = match &target.machine {
        Some(machine) => Providers::of(&machine.provider).ok_or_else(|| no_provider(machine))?,
        None => spec.provider,
    };
    known(app, among)?;
    let Some(machine) = &target.machine else {
        if target.allow_blacklisted {
            return Err(ApiError::invalid(
                "allow_blacklisted says nothing without a machine",
                "name the machine, e.g. \"machine\": \"vast:12345\"",
            ));
        }
        return Ok(Placement::default());
    };
    if !target.allow_blacklisted
        && let Some(block) = app.store.block_for(machine, cuda, app.now()).await?
    {
        return Err(ApiError::conflict(
            "machine_blacklisted",
            block.in_words(),
            "take another, or set allow_blacklisted (--allow-blacklisted) if you know better",
        ));
    }
    Ok(Placement {
        machine: target.machine,
        allow_blacklisted: target.allow_blacklisted,
        ..Placement::default()
    })
}

async fn start_deploy(app: &App, row: &WorkspaceRow, placement: &Placement) -> ApiResult<String> {
    let effect = Effect::State {
        state: WorkspaceState::Deploying,
        message: None,
    };
    let state = serde_json::to_value(placement).unwrap_or_default();
    // The fence shuts out an import that is still under way: this deploy would not see it.
    start(
        app,
        row,
        Kind::Deploy,
        state,
        Vec::new(),
        vec![Effect::BumpFence, effect],
    )
    .await
}

/// Starts a workflow for a workspace; one at a time.
pub async fn start(
    app: &App,
    row: &WorkspaceRow,
    kind: Kind,
    state: Value,
    preempt: Vec<Kind>,
    effects: Vec<Effect>,
) -> ApiResult<String> {
    let error = serde_json::json!({
        "code": "preempted",
        "message": format!("a {kind} of the workspace took over"),
        "hint": "see `dumont workspace show` for where it stands",
    });
    let new = NewWorkflow {
        id: Ulid::generate().to_string(),
        kind,
        workspace_id: row.id.clone(),
        state,
        preempt,
        preempt_error: Some(error),
        expects_instance: None,
        effects,
    };
    let started = app.store.start_workflow(&new, app.now()).await;
    app.preempted.notify_waiters();
    started_or_busy(app, row, started.map(|s| s.workflow.id)).await
}

/// A conflict names the workflow that is in the way.
pub async fn started_or_busy(
    app: &App,
    row: &WorkspaceRow,
    started: Result<String, StoreError>,
) -> ApiResult<String> {
    match started {
        Ok(id) => {
            app.work.notify_one();
            Ok(id)
        }
        Err(StoreError::Conflict { id, .. }) => {
            let running = app.store.workflow(&id).await?;
            let running = running.ok_or_else(|| ApiError::internal(format!("there is no workflow {id}")))?;
            Err(ApiError::busy(row.name.as_str(), &id, running.kind))
        }
        Err(other) => Err(other.into()),
    }
}

async fn shown(app: &App, row: WorkspaceRow) -> ApiResult<Workspace> {
    let lived_on = match &row.instance_key {
        Some(key) => app.store.instance(key).await?,
        None => None,
    };
    let instance = lived_on.as_ref().and_then(shown_instance);
    let last_snapshot = app.store.latest_snapshot(&row.id).await?;
    let failure = app.store.snapshot_failure(&row.id).await?;
    let standing = lived_on.map(|i| Standing {
        lives_since: i.ready_at.unwrap_or(i.created_at),
        taken_at: last_snapshot.as_ref().map(|s| s.created_at),
        failed_at: failure.as_ref().map(|(at, _)| *at),
    });
    let half = capture::half(&row, false);
    let may = standing.filter(|_| half.is_none() && row.state == WorkspaceState::Running);
    let next_snapshot_at = may.and_then(|s| schedule::next(app, &row.id, &row.spec, &s));
    // What failed on a machine that it has left says nothing any more.
    let failed = failure.filter(|(at, _)| standing.is_some_and(|s| *at >= s.lives_since));
    let failed = failed.and_then(|(_, error)| serde_json::from_value(error).ok());
    let workflow_id = app.store.running_workflow(&row.id).await?.map(|w| w.id);
    Ok(Workspace {
        id: row.id,
        name: row.name,
        spec: row.spec,
        state: state_word(row.state),
        message: row.message,
        instance,
        last_snapshot: last_snapshot.as_ref().map(snapshots::shown),
        next_snapshot_at,
        snapshot_problem: half.or(failed),
        workflow_id,
        created_at: row.created_at,
    })
}

fn state_word(state: WorkspaceState) -> rest::WorkspaceState {
    match state {
        WorkspaceState::Draft => rest::WorkspaceState::Draft,
        WorkspaceState::Deploying => rest::WorkspaceState::Deploying,
        WorkspaceState::Running => rest::WorkspaceState::Running,
        WorkspaceState::FailingOver => rest::WorkspaceState::FailingOver,
        WorkspaceState::Failed => rest::WorkspaceState::Failed,
        WorkspaceState::Deleting => rest::WorkspaceState::Deleting,
    }
}

/// Starting `kind` needs a machine.
pub async fn on_machine(app: &App, name: &str) -> ApiResult<WorkspaceRow> {
    let row = named(app, name).await?;
    home(app, &row).await?;
    Ok(row)
}
