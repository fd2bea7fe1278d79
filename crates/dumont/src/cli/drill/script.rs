//! The drill's steps, one after the other. Everything on the way goes through the same REST
//! client and the same SSH code as the other verbs.

use super::chaos::Plan;
use super::compare::{self, Tree};
use super::judge::{listed, surprises};
use super::report::{Report, Step};
use super::workspace;
use super::world::World;
use crate::cli::ssh::Access;
use crate::cli::workspace::path_of;
use crate::cli::{failover, import, snapshot, workspace as verbs};
use crate::client::{encode, is_unreachable};
use crate::fail::fail;
use crate::output;
use crate::progress::Show;
use anyhow::{Context, Result, bail};
use dumont_core::id::WorkspaceName;
use dumont_core::spec::{Probe, WorkspaceSpec};
use dumont_wire::rest::{
    CreateSnapshot, CreateWorkspace, DeployWorkspace, FailoverEvent, Workflow, Workspace, WorkspaceState,
};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often the world is looked at while the drill waits.
pub const POLL: Duration = Duration::from_millis(150);

/// What the script works with.
pub struct Drill<'a> {
    pub world: &'a mut World,
    pub report: &'a mut Report,
    pub name: WorkspaceName,
    /// The local directory and what is in it.
    pub source: PathBuf,
    pub made_up: bool,
    /// Where the workload says that it is ready, on the machine and outside the workspace.
    pub ready_file: String,
    pub crash: bool,
    pub chaos: Option<Plan>,
    pub keep: bool,
    pub quiet: bool,
}

impl Drill<'_> {
    /// Runs all of it. What does not hold goes into the report; an error ends it early.
    pub async fn play(&mut self) -> Result<()> {
        let source = self
            .timed("read the source", async |d| Ok(compare::scan(&d.source)?))
            .await?;
        self.report.files = source.files();
        self.report.bytes = source.bytes();
        self.say(&format!(
            "The workspace: {}, {}",
            output::count(source.files(), "file"),
            output::bytes(source.bytes())
        ));
        if let Some(plan) = &self.chaos {
            self.world.admin.send("PUT", "/admin/rules", &plan.rules).await?;
        }
        self.timed("create and import", async |d| d.create().await)
            .await?;
        self.timed("deploy", async |d| {
            verbs::deploy(
                &d.world.client,
                &d.name,
                &DeployWorkspace::default(),
                true,
                d.quiet,
            )
            .await
        })
        .await?;
        let first = self.instance().await?;
        let dir = self.rented_dir(&first).await?;
        self.same(
            "the first machine has the source, bit for bit",
            &source,
            &compare::scan(&dir)?,
        );
        let expected = self.snapshots(&source, &dir).await?;
        self.workload("the workload runs on the first machine").await?;
        self.owned("one machine is rented before the loss", 1).await?;
        let chaos = self.chaos.clone();
        let killed_ms = match &chaos {
            Some(plan) => self.lose(&first, plan).await?,
            None => self.kill(&first).await?,
        };
        let mut event = self
            .timed("failover", async |d| d.wait_for_failover(killed_ms).await)
            .await?;
        if chaos.is_some() {
            event = self
                .timed("come to rest", async |d| d.settled(event, killed_ms).await)
                .await?;
        } else {
            self.told_and_seen(&event, killed_ms);
        }
        self.judge(&event);
        self.report.take_event(event, killed_ms);
        let second = self.instance().await?;
        self.report.check(
            "it runs on another machine",
            second != first,
            format!("instance {first} -> {second}"),
        );
        let dir = self.rented_dir(&second).await?;
        let restored = compare::scan(&dir)?;
        self.same(
            "the new machine has every byte, mode and mtime",
            &expected,
            &restored,
        );
        self.workload("the workload runs on the new machine").await?;
        self.owned("one machine is rented after the failover", 1).await?;
        if !self.keep {
            self.timed("teardown", async |d| {
                verbs::delete(&d.world.client, &d.name, true, d.quiet)
                    .await
                    .map(drop)
            })
            .await?;
            self.owned("nothing is rented after the teardown", 0).await?;
        }
        Ok(())
    }

    /// Runs a step under its name and notes how long it took.
    async fn timed<T>(&mut self, name: &str, step: impl AsyncFnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let begin = Instant::now();
        self.say(&output::dim_err(&format!("== {name}")));
        let result = step(self).await;
        let elapsed_ms = i64::try_from(begin.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.report.steps.push(Step {
            name: name.into(),
            elapsed_ms,
        });
        result.with_context(|| format!("drill step {name:?}"))
    }

    pub fn say(&self, text: &str) {
        if !self.quiet {
            output::note(text);
        }
    }

    fn spec(&self) -> WorkspaceSpec {
        let (start, probe) = if self.made_up {
            (
                "./start.sh".to_owned(),
                "kill -0 \"$(cat \"$DUMONT_DRILL_READY\")\"",
            )
        } else {
            let start = "echo $$ > \"$DUMONT_DRILL_READY\"; exec sleep 1000000";
            (start.to_owned(), "kill -0 \"$(cat \"$DUMONT_DRILL_READY\")\"")
        };
        let gigabytes = u32::try_from(self.report.bytes * 3 / 1_000_000_000).unwrap_or(u32::MAX);
        WorkspaceSpec {
            name: self.name.clone(),
            provider: dumont_core::spec::Providers::default(),
            gpu: dumont_core::spec::GpuWanted::default(),
            image: "pytorch/pytorch:latest".into(),
            disk_gb: gigabytes.saturating_add(20).min(16_384),
            max_price: None,
            interruptible: None,
            path: "/workspace".into(),
            start: Some(start),
            env: [("DUMONT_DRILL_READY".to_owned(), self.ready_file.clone())].into(),
            ports: Vec::new(),
            probe: Some(Probe::Command {
                command: probe.into(),
                timeout_s: 60,
            }),
            snapshot: dumont_core::spec::SnapshotPolicy::default(),
            failover: dumont_core::spec::FailoverPolicy::default(),
        }
    }

    async fn create(&mut self) -> Result<()> {
        let begin = CreateWorkspace {
            spec: self.spec(),
            deploy: false,
            machine: None,
            allow_blacklisted: false,
        };
        let _: Workspace = self.world.client.post("/workspaces", &begin).await?;
        let stored = import::import(&self.world.client, &self.name, &self.source, self.quiet).await?;
        self.say(&format!("  {}", import::summary(&stored)));
        self.report.uploaded_bytes += stored.uploaded_bytes;
        self.report.snapshots.push(stored);
        Ok(())
    }

    pub async fn show(&self) -> Result<Workspace> {
        self.world.client.get(&path_of(&self.name)).await
    }

    /// The provider's id of the instance the workspace lives on.
    async fn instance(&self) -> Result<String> {
        let w = self.show().await?;
        w.instance
            .map(|i| i.instance_id)
            .with_context(|| format!("workspace {} has no instance", self.name))
    }

    async fn rented_dir(&mut self, instance: &str) -> Result<PathBuf> {
        let rented = self.world.admin.rented(instance).await?;
        self.report.isolation = rented.isolation;
        Ok(rented.workspace_dir)
    }

    /// A base, three edits on the machine, an incremental; gives back what must survive.
    async fn snapshots(&mut self, source: &Tree, dir: &Path) -> Result<Tree> {
        self.take("base snapshot", true).await?;
        let edits = workspace::edits(&self.source, source)?;
        self.timed("edit three files on the machine", async |d| {
            let access = Access::get(&d.world.client, d.world.dir(), &d.name).await?;
            let said = access.output(&edits.script).await?;
            if !said.status.success() {
                bail!(
                    "the edits failed ({}): {}",
                    said.status,
                    String::from_utf8_lossy(&said.stderr)
                );
            }
            Ok(())
        })
        .await?;
        self.take("incremental snapshot", false).await?;
        let expected = compare::scan(dir)?;
        let surprises = surprises(source, &expected, &edits);
        self.report.check(
            "the machine has the source and exactly three edits",
            surprises.is_empty(),
            listed(&surprises, "as planned"),
        );
        self.check_incremental(source, &edits);
        Ok(expected)
    }

    async fn take(&mut self, what: &str, full: bool) -> Result<()> {
        let wanted = CreateSnapshot {
            full,
            ..CreateSnapshot::default()
        };
        let s = self
            .timed(what, async |d| {
                snapshot::create(&d.world.client, &d.name, &wanted, d.quiet).await
            })
            .await?;
        self.say(&format!("  {}", output::green_err(&snapshot::headline(&s))));
        self.report.uploaded_bytes += s.uploaded_bytes;
        self.report.snapshots.push(s);
        Ok(())
    }

    async fn kill(&mut self, instance: &str) -> Result<i64> {
        self.say(&format!("== kill instance {instance} hard"));
        Ok(self.world.admin.kill(instance).await?.killed_ms)
    }

    /// Watches until the failover that began after the kill has its row.
    async fn wait_for_failover(&mut self, killed_ms: i64) -> Result<FailoverEvent> {
        let mut shown: Option<(String, Show)> = None;
        let mut said_why = None;
        loop {
            if let Some(status) = self.world.server_ended() {
                self.server_ended(&status).await?;
            }
            match self.look(killed_ms, &mut shown).await {
                Ok(Some(event)) => return Ok(event),
                Ok(None) => {}
                Err(e) if is_unreachable(&e) => said_why = Some(e),
                Err(e) => return Err(said_why.map_or(e, |before| before.context("earlier"))),
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn server_ended(&mut self, status: &str) -> Result<()> {
        if !self.crash || self.report.server_killed {
            return Err(fail(
                "server_ended",
                format!("the server ended by itself: {status}"),
                self.world.tails(),
            ));
        }
        self.say(&format!("== the server is dead ({status}); starting it again"));
        self.report.server_killed = true;
        self.world.restart_server().await
    }

    async fn look(
        &self,
        killed_ms: i64,
        shown: &mut Option<(String, Show)>,
    ) -> Result<Option<FailoverEvent>> {
        let client = &self.world.client;
        let w = self.show().await?;
        if let Some(id) = &w.workflow_id {
            let wf: Workflow = client.get(&format!("/workflows/{}", encode(id))).await?;
            let fresh = shown.as_ref().is_none_or(|(there, _)| there != id);
            if fresh {
                *shown = Some((id.clone(), Show::new(self.quiet)));
            }
            if let Some((_, show)) = shown {
                show.workflow(&wf);
            }
        }
        let event = failover::newest(client, &self.name).await?;
        let event = event.filter(|e| e.finished_at.0 / 1_000 >= killed_ms);
        match event {
            Some(e) if w.state != WorkspaceState::FailingOver => {
                if let Some((id, mut show)) = shown.take() {
                    show.workflow(&client.get(&format!("/workflows/{}", encode(&id))).await?);
                }
                Ok(Some(e))
            }
            None if w.state == WorkspaceState::Failed => Err(fail(
                "failover_failed",
                format!("the workspace is failed: {}", w.message.unwrap_or_default()),
                "see the server's log",
            )),
            _ => Ok(None),
        }
    }
}
