//! The agent at work, as a controller drives it, and what that costs.
//!
//! The time runs from the start of the process to its report, for a snapshot until the
//! controller has looked at every object that the report names. The controller's own share is
//! signatures.

use crate::fail::fail;
use anyhow::{Context, Result};
use async_trait::async_trait;
use dumont_core::snapshot::{RestoreReport, SnapshotHead, SnapshotReport, Verdict};
use dumont_server::link::{Fence, Granter};
use dumont_server::objects::ObjectStore;
use dumont_wire::agent::{
    Event, FromAgent, Outcome, PROTOCOL, Request, RestoreRequest, SnapshotRequest, ToAgent, objects_of,
};
use dumont_wire::frame::{Decoder, encode};
use serde::{Deserialize, Serialize};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// Objects looked at together, as the controller does.
const LOOKS_AT_ONCE: usize = 16;

/// In a second; Linux tells programs no other number, whatever its own clock does.
const TICKS: f64 = 100.0;

/// What one run took.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Cost {
    pub wall_s: f64,
    /// Of the agent, in user and kernel mode.
    pub user_s: f64,
    pub system_s: f64,
    /// Most memory that the agent had resident.
    pub peak_bytes: u64,
    pub sent_bytes: u64,
    pub received_bytes: u64,
    /// Objects or ranges of objects that were sent or received.
    pub requests: u64,
}

/// Where the agent lies and what it remembers of one directory.
pub struct Bench {
    pub store: Arc<dyn ObjectStore>,
    /// Whose objects they are in the bucket.
    workspace: String,
    program: PathBuf,
    dir: PathBuf,
    /// Ends of the names of files whose MD5 is taken.
    pub model_files: Vec<String>,
}

/// What is known of the last snapshot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Taken {
    pub head: SnapshotHead,
    pub report: SnapshotReport,
}

struct Open;

#[async_trait]
impl Fence for Open {
    async fn holds(&self) -> bool {
        true
    }
}

impl Bench {
    /// Keeps its files in `dir`; `agent` instead of the one that this program carries.
    pub async fn new(
        dir: &Path,
        agent: Option<&Path>,
        store: Arc<dyn ObjectStore>,
        workspace: String,
    ) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let program = match agent {
            Some(path) => path
                .canonicalize()
                .with_context(|| format!("find {}", path.display()))?,
            None => unpack(dir).await?,
        };
        Ok(Self {
            store,
            workspace,
            program,
            dir: dir.canonicalize()?,
            model_files: Vec::new(),
        })
    }

    /// An incremental snapshot where one was taken before.
    pub async fn take(&self, tree: &Path, before: Option<&Taken>) -> Result<(Cost, Taken)> {
        let stamp = format!("1-{}", before.map_or(1, |b| next_second(&b.head.snapshot_id)));
        let granter = Granter::writing(
            self.store.clone(),
            "",
            &self.workspace,
            &stamp,
            u64::MAX,
            Arc::new(Open),
        );
        let request = SnapshotRequest {
            path: utf8(tree)?,
            stamp,
            parent: before.map(|b| b.head.snapshot_id.clone()),
            full: false,
            hooks: None,
            model_files: self.model_files.clone(),
            key: None,
        };
        let begin = Instant::now();
        let mut session = Session::start(&self.program, &self.dir.join("home")).await?;
        let outcome = session.run(&granter, Request::Snapshot(request)).await?;
        let Outcome::Snapshot(mut report) = outcome else {
            return Err(unexpected("snapshot"));
        };
        let mut cost = session.cost();
        session.end().await;
        granter.finish(&mut report).await?;
        self.look_at(&report).await?;
        cost.wall_s = begin.elapsed().as_secs_f64();
        cost.sent_bytes = report.uploaded_bytes;
        cost.requests = objects_of(&report).count() as u64;
        let mut indexes = before.map(|b| b.head.indexes.clone()).unwrap_or_default();
        indexes.extend(report.index.clone());
        let head = SnapshotHead {
            snapshot_id: report.snapshot_id.clone(),
            root: report.root,
            indexes,
            files: report.files_total,
            bytes: report.total_bytes,
        };
        Ok((
            cost,
            Taken {
                head,
                report: *report,
            },
        ))
    }

    /// On a machine that has seen nothing yet.
    pub async fn restore(&self, taken: &Taken, to: &Path) -> Result<(Cost, RestoreReport)> {
        let granter = Granter::reading(self.store.clone(), "", &self.workspace, Arc::new(Open));
        let request = RestoreRequest {
            path: utf8(to)?,
            head: taken.head.clone(),
            delete: false,
            priority: Vec::new(),
            ready_when: Vec::new(),
            started: false,
            include: Vec::new(),
            exclude: Vec::new(),
            key: None,
        };
        let home = tempfile::tempdir_in(&self.dir)?;
        let begin = Instant::now();
        let mut session = Session::start(&self.program, home.path()).await?;
        let outcome = session.run(&granter, Request::Restore(request)).await?;
        let wall_s = begin.elapsed().as_secs_f64();
        let Outcome::Restore(report) = outcome else {
            return Err(unexpected("restore"));
        };
        let cost = Cost {
            wall_s,
            received_bytes: report.downloaded_bytes,
            requests: report.requests,
            ..session.cost()
        };
        session.end().await;
        if report.validation.validation != Verdict::Ok {
            return Err(fail(
                "validation_failed",
                format!(
                    "the restore is not good: {}",
                    report.validation.problems.join("; ")
                ),
                "report this",
            ));
        }
        Ok((cost, *report))
    }

    /// Removes all that was stored.
    pub async fn clean(&self) -> Result<()> {
        let prefix = format!("{}/", dumont_server::link::prefix(&self.workspace));
        for object in self.store.list(&prefix).await? {
            self.store.delete(&object.key).await?;
        }
        Ok(())
    }

    /// As the controller does before a snapshot becomes visible.
    async fn look_at(&self, report: &SnapshotReport) -> Result<()> {
        let objects: Vec<_> = objects_of(report).cloned().collect();
        for some in objects.chunks(LOOKS_AT_ONCE) {
            let mut looks = tokio::task::JoinSet::new();
            for object in some.iter().cloned() {
                let store = self.store.clone();
                looks.spawn(async move { (store.head(&object.key).await, object) });
            }
            while let Some(look) = looks.join_next().await {
                let (seen, object) = look?;
                if seen?.is_none_or(|seen| seen.size != object.size) {
                    return Err(fail("object_missing", object.key, "look at the store's log"));
                }
            }
        }
        Ok(())
    }
}

fn utf8(path: &Path) -> Result<String> {
    let path = std::path::absolute(path)?;
    let text = path.to_str().map(str::to_owned);
    text.with_context(|| format!("{} is not UTF-8", path.display()))
}

fn next_second(snapshot_id: &str) -> i64 {
    let unix = snapshot_id.rsplit('-').next().and_then(|s| s.parse::<i64>().ok());
    unix.unwrap_or(0) + 1
}

fn unexpected(what: &str) -> anyhow::Error {
    fail(
        "internal",
        format!("the agent answered a {what} with something else"),
        "report this",
    )
}

async fn unpack(dir: &Path) -> Result<PathBuf> {
    let path = dir.join("agent");
    let mut gzip = Command::new("gzip")
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(fs::File::create(&path)?)
        .spawn()
        .context("start gzip")?;
    let mut stdin = gzip.stdin.take().context("gzip has no input")?;
    stdin.write_all(dumont_agent_embed::AGENT_GZ).await?;
    drop(stdin);
    gzip.wait().await?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// One session with the agent.
struct Session {
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    decoder: Decoder,
}

impl Session {
    async fn start(program: &Path, home: &Path) -> Result<Self> {
        fs::create_dir_all(home)?;
        let mut child = Command::new(program)
            .arg("session")
            .env("HOME", home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let stdin = child.stdin.take().context("the agent has no input")?;
        let stdout = child.stdout.take().context("the agent has no output")?;
        let mut session = Self {
            child,
            stdin,
            stdout,
            decoder: Decoder::after_marker(),
        };
        let hello = Request::Hello {
            protocol: PROTOCOL,
            now: crate::output::now(),
            path: "/".into(),
            heartbeat_ms: 0,
            store_ca: None,
        };
        session.send(1, hello).await?;
        match session.frame().await?.body {
            Event::Done(Outcome::Hello(_)) => Ok(session),
            _ => Err(unexpected("hello")),
        }
    }

    async fn send(&mut self, id: u64, body: Request) -> Result<()> {
        self.stdin.write_all(&encode(&ToAgent { id, body })?).await?;
        Ok(self.stdin.flush().await?)
    }

    async fn frame(&mut self) -> Result<FromAgent> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(frame);
            }
            let n = self.stdout.read(&mut buffer).await?;
            if n == 0 {
                return Err(fail(
                    "agent_ended",
                    "the agent ended",
                    "look at what it said above",
                ));
            }
            self.decoder.push(&buffer[..n]);
        }
    }

    async fn run(&mut self, granter: &Granter, request: Request) -> Result<Outcome> {
        self.send(2, request).await?;
        loop {
            match self.frame().await?.body {
                Event::Done(outcome) => return Ok(outcome),
                Event::Failed(failure) => return Err(failure.into()),
                Event::UploadsWanted { objects } => {
                    let grants = granter.uploads(&objects).await?;
                    self.send(2, Request::Uploads { grants }).await?;
                }
                Event::DownloadsWanted { keys } => {
                    let grants = granter.downloads(&keys).await?;
                    self.send(2, Request::Downloads { grants }).await?;
                }
                Event::Uploaded { key, parts } => granter.uploaded(key, parts).await?,
                _ => {}
            }
        }
    }

    /// Time and memory until now, by what the kernel counted.
    fn cost(&self) -> Cost {
        let about = format!("/proc/{}", self.child.id().unwrap_or(0));
        let status = fs::read_to_string(format!("{about}/status")).unwrap_or_default();
        let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
        let stat = fs::read_to_string(format!("{about}/stat")).unwrap_or_default();
        // After the name, which may hold anything: state is the first, utime the twelfth.
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .map_or("", |s| s.1)
            .split_whitespace()
            .collect();
        let seconds = |i: usize| fields.get(i).and_then(|t| t.parse::<f64>().ok()).unwrap_or(0.0) / TICKS;
        Cost {
            user_s: seconds(11),
            system_s: seconds(12),
            peak_bytes: peak.unwrap_or(0) * 1024,
            ..Cost::default()
        }
    }

    async fn end(self) {
        let Self { mut child, stdin, .. } = self;
        drop(stdin);
        let _ = tokio::time::timeout(Duration::from_secs(10), child.wait()).await;
    }
}
