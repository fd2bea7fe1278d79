//! `dumont workspace`: create, list, show, delete.

use super::deploy::{OnArgs, show_record};
use super::{confirm, import, spec, workspace_key};
use crate::client::{Client, encode};
use crate::config::Globals;
use crate::fail::{fail, usage};
use crate::output::{self, safe};
use crate::progress;
use anyhow::Result;
use clap::{Args, Subcommand};
use dumont_core::id::WorkspaceName;
use dumont_core::spec::WorkspaceSpec;
use dumont_wire::rest::{CreateWorkspace, DeployWorkspace, Started, Workspace, WorkspaceState};
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub enum WorkspaceCommand {
    /// Make a workspace and put it on a machine
    Create(Box<CreateArgs>),
    /// Put a draft or failed workspace on a machine
    Deploy {
        name: WorkspaceName,
        #[command(flatten)]
        on: OnArgs,
        /// Return as soon as machines are chosen
        #[arg(long)]
        no_wait: bool,
    },
    /// All workspaces
    List,
    /// One workspace: where it runs, what it costs, its last snapshot
    Show { name: WorkspaceName },
    /// The key that an encrypted workspace's snapshots are sealed with; keep a copy of it
    Key(workspace_key::ShowArgs),
    /// Give the machine back and forget the workspace
    Delete {
        name: WorkspaceName,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
        /// Return at once
        #[arg(long)]
        no_wait: bool,
    },
}

#[derive(Debug, Args)]
pub struct CreateArgs {
    /// What to call it: lower-case letters, digits, dashes
    pub name: WorkspaceName,
    #[command(flatten)]
    pub spec: spec::SpecArgs,
    /// Local directory to start from; it becomes the first snapshot
    #[arg(long, value_name = "DIR")]
    pub from: Option<PathBuf>,
    /// Rent nothing yet
    #[arg(long)]
    pub no_deploy: bool,
    /// Return as soon as machines are chosen
    #[arg(long)]
    pub no_wait: bool,
}

pub async fn run(globals: &Globals, command: WorkspaceCommand) -> Result<()> {
    match command {
        WorkspaceCommand::Create(args) => create_verb(globals, &args).await,
        WorkspaceCommand::Deploy { name, on, no_wait } => {
            let client = globals.client()?;
            if on.machine.is_some() {
                let there: Workspace = client.get(&path_of(&name)).await?;
                show_record(globals, &client, &on, there.spec.gpu.cuda).await?;
            }
            deploy(&client, &name, &on.body(), !no_wait, globals.quiet).await?;
            show(globals, &client, &name).await
        }
        WorkspaceCommand::List => list(globals).await,
        WorkspaceCommand::Show { name } => show(globals, &globals.client()?, &name).await,
        WorkspaceCommand::Key(args) => workspace_key::show(globals, &args).await,
        WorkspaceCommand::Delete { name, yes, no_wait } => delete_verb(globals, &name, yes, no_wait).await,
    }
}

/// The path of a workspace in the API.
pub fn path_of(name: &WorkspaceName) -> String {
    format!("/workspaces/{}", encode(name.as_str()))
}

async fn create_verb(globals: &Globals, args: &CreateArgs) -> Result<()> {
    let wanted = Creation {
        spec: spec::build(&args.name, &args.spec)?,
        from: args.from.clone(),
        deploy: (!args.no_deploy).then(DeployWorkspace::default),
        wait: !args.no_wait,
    };
    create(globals, &globals.client()?, wanted).await
}

/// A workspace to be made.
pub struct Creation {
    pub spec: WorkspaceSpec,
    /// Local directory that becomes its first snapshot.
    pub from: Option<PathBuf>,
    /// Where to put it; `None` rents nothing.
    pub deploy: Option<DeployWorkspace>,
    pub wait: bool,
}

/// Makes it, imports its files, puts it on a machine and shows it.
pub async fn create(globals: &Globals, client: &Client, wanted: Creation) -> Result<()> {
    if let Some(dir) = &wanted.from {
        // Before anything is made on the server.
        directory(dir)?;
    }
    let name = wanted.spec.name.clone();
    // Files first: what is deployed is deployed with them.
    let at_once = wanted.deploy.clone().filter(|_| wanted.from.is_none());
    let begin = CreateWorkspace {
        spec: wanted.spec,
        deploy: at_once.is_some(),
        machine: at_once.as_ref().and_then(|d| d.machine.clone()),
        allow_blacklisted: at_once.is_some_and(|d| d.allow_blacklisted),
    };
    let made: Workspace = client.post("/workspaces", &begin).await?;
    if let Some(dir) = &wanted.from {
        import_from(globals, client, &name, dir).await?;
        if let Some(target) = &wanted.deploy {
            deploy(client, &name, target, wanted.wait, globals.quiet).await?;
        }
    } else if let Some(id) = made.workflow_id.as_deref() {
        began(client, id, &name, wanted.wait, globals.quiet).await?;
    }
    show(globals, client, &name).await
}

fn directory(dir: &Path) -> Result<()> {
    let meta = std::fs::metadata(dir).map_err(|e| {
        usage(
            format!("cannot read {}: {e}", dir.display()),
            "check the path after --from",
        )
    })?;
    if !meta.is_dir() {
        return Err(usage(
            format!("{} is not a directory", dir.display()),
            "--from takes a directory",
        ));
    }
    Ok(())
}

async fn import_from(globals: &Globals, client: &Client, name: &WorkspaceName, dir: &Path) -> Result<()> {
    let snapshot = import::import(client, name, dir, globals.quiet)
        .await
        .map_err(|e| {
            let body = crate::fail::body_of(&e);
            fail(
                &body.code,
                format!("the files of {} were not stored: {}", dir.display(), body.message),
                format!(
                    "{} (the empty draft stays: `dumont workspace delete {name}`)",
                    body.hint
                ),
            )
        })?;
    if !globals.quiet && !globals.json {
        output::note(&import::summary(&snapshot));
    }
    Ok(())
}

/// Starts a deploy and, if asked to, waits for it.
pub async fn deploy(
    client: &Client,
    name: &WorkspaceName,
    target: &DeployWorkspace,
    wait: bool,
    quiet: bool,
) -> Result<()> {
    let started: Started = client.post(&format!("{}/deploy", path_of(name)), target).await?;
    began(client, &started.workflow_id, name, wait, quiet).await
}

/// Follows a deploy to its end, or to its choice of machines.
async fn began(client: &Client, id: &str, name: &WorkspaceName, wait: bool, quiet: bool) -> Result<()> {
    let done = if wait {
        progress::follow(client, id, quiet).await.map(drop)
    } else {
        progress::until_chosen(client, id, quiet).await
    };
    done.map_err(|e| left_over(&e, name))
}

/// A failed deploy leaves the workspace there: say how to go on.
fn left_over(e: &anyhow::Error, name: &WorkspaceName) -> anyhow::Error {
    let body = crate::fail::body_of(e);
    let next = format!("again: `dumont workspace deploy {name}`; give up: `dumont workspace delete {name}`");
    let hint = if body.hint.is_empty() {
        next
    } else {
        format!("{}; {next}", body.hint)
    };
    fail(&body.code, body.message, hint)
}

async fn list(globals: &Globals) -> Result<()> {
    let all: Vec<Workspace> = globals.client()?.list("/workspaces").await?;
    if globals.json {
        return output::json(&all);
    }
    if all.is_empty() {
        output::note("No workspaces yet: `dumont workspace create NAME --from DIR` makes one.");
        return Ok(());
    }
    let rows: Vec<_> = all
        .iter()
        .map(|w| {
            let i = w.instance.as_ref();
            vec![
                w.name.to_string(),
                output::word(&w.state),
                output::or_dash(i.map(|i| &i.machine)),
                output::or_dash(i.map(|i| gpu(&i.gpu_name, i.gpu_count))),
                output::or_dash(i.map(|i| format!("{:.3}", i.price))),
                output::or_dash(w.last_snapshot.as_ref().map(|s| output::ago(s.created_at))),
            ]
        })
        .collect();
    output::table(
        &["NAME", "STATE", "MACHINE", "GPU", "$/H", "LAST SNAPSHOT"],
        &[4],
        &rows,
    );
    Ok(())
}

/// `2x RTX 4090`, or without the count where it is one.
pub fn gpu(name: &str, count: u32) -> String {
    if count == 1 {
        name.into()
    } else {
        format!("{count}x {name}")
    }
}

async fn show(globals: &Globals, client: &Client, name: &WorkspaceName) -> Result<()> {
    let w: Workspace = client.get(&path_of(name)).await?;
    if globals.json {
        return output::json(&w);
    }
    let mut pairs = vec![("workspace", output::bold(w.name.as_str())), ("state", state(&w))];
    if let Some(message) = &w.message {
        // It may quote a provider or a host.
        pairs.push(("why", safe(message)));
    }
    if let Some(i) = &w.instance {
        let machine = format!("{}, instance {}", i.machine, i.instance_id);
        pairs.push(("machine", safe(&machine)));
        pairs.push(("gpu", safe(&gpu(&i.gpu_name, i.gpu_count))));
        let mut price = format!("${:.3} per hour", i.price);
        if i.price < i.running_price {
            price.push_str(&format!(
                " for its disk: it stands still (${:.3} while it runs)",
                i.running_price
            ));
        }
        pairs.push(("price", price));
        if let (Some(host), Some(port)) = (&i.ssh_host, i.ssh_port) {
            pairs.push(("ssh", format!("{}:{port}  (dumont ssh {})", safe(host), w.name)));
        }
        pairs.push(("rented", output::ago(i.created_at)));
    }
    pairs.push(("provider", w.spec.provider.to_string()));
    if let Some(wish) = &w.spec.interruptible {
        let bid = wish.bid.map_or_else(
            || "yes; the bid is chosen for each machine".to_owned(),
            |bid| format!("yes; the bid is ${bid:.3} per hour without storage"),
        );
        pairs.push(("interruptible", bid));
    }
    pairs.push(("path", w.spec.path.clone()));
    if let Some(start) = &w.spec.start {
        pairs.push(("start", start.clone()));
    }
    if !w.spec.snapshot.ready_when.is_empty() {
        pairs.push(("starts with", w.spec.snapshot.ready_when.join(", ")));
    }
    if w.spec.snapshot.encrypt {
        let keep = format!(
            "keep a copy of its key: dumont workspace key {} --out FILE",
            w.name
        );
        pairs.push(("encrypted", format!("yes  ({keep})")));
    }
    let snapshot = w.last_snapshot.as_ref().map(|s| {
        format!(
            "{}, {}, {}, {}",
            s.snapshot_id,
            output::count(s.files_total, "file"),
            output::bytes(s.total_bytes),
            output::ago(s.created_at)
        )
    });
    let mut snapshot = snapshot.unwrap_or_else(|| "none yet".into());
    if let Some(at) = w.next_snapshot_at {
        snapshot.push_str(&format!("; the next one {}", output::ahead(at)));
    }
    pairs.push(("snapshot", snapshot));
    if let Some(problem) = &w.snapshot_problem {
        // It may quote a machine.
        let text = format!("no snapshot: {} — {}", problem.message, problem.hint);
        pairs.push(("problem", output::red(&safe(&text))));
    }
    if let Some(id) = &w.workflow_id {
        pairs.push(("workflow", id.clone()));
    }
    output::facts(&pairs);
    Ok(())
}

fn state(w: &Workspace) -> String {
    let word = output::word(&w.state);
    match w.state {
        WorkspaceState::Running => output::green(&word),
        WorkspaceState::Failed => output::red(&word),
        _ => word,
    }
}

async fn delete_verb(globals: &Globals, name: &WorkspaceName, yes: bool, no_wait: bool) -> Result<()> {
    let client = globals.client()?;
    // Asked for first, so that a wrong name is said before the question.
    let w: Workspace = client.get(&path_of(name)).await?;
    if !yes {
        let what = match &w.instance {
            Some(i) => format!(
                "Delete {name} and destroy its instance {} with everything since the last snapshot?",
                i.instance_id
            ),
            None => format!("Delete {name}?"),
        };
        if !confirm(&what)? {
            return Err(fail(
                "not_confirmed",
                "nothing was deleted",
                "answer y, or pass --yes",
            ));
        }
    }
    let started = delete(&client, name, !no_wait, globals.quiet).await?;
    if globals.json {
        return output::json(&started);
    }
    if !globals.quiet {
        output::note(&if no_wait {
            format!("Deleting {name}.")
        } else {
            format!("Deleted {name}.")
        });
    }
    Ok(())
}

/// Tears the workspace down and, if asked to, waits until nothing of it is rented.
pub async fn delete(client: &Client, name: &WorkspaceName, wait: bool, quiet: bool) -> Result<Started> {
    let started: Started = client.delete(&path_of(name)).await?;
    if wait {
        progress::follow(client, &started.workflow_id, quiet).await?;
    }
    Ok(started)
}
