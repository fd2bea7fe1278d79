//! The live acceptance: one real machine, everything dumont does with one, and its end.
//!
//! It runs a private server on `doctor/` below the data directory: the very code that serves
//! does the renting, and neither the user's database nor a running server is touched. What is
//! rented carries that server's label, so whatever happens to this process (`kill -9`, a power
//! cut), the next run finds the same directory and destroys first what the last one left;
//! `--spend 0` does only that.
//!
//! The cap holds twice: no offer may cost so much that the deadline could exceed it, and while
//! it runs the cost so far is watched, with enough kept back to destroy.

use crate::cli::{import, snapshot, workspace};
use crate::client::Client;
use crate::config::{Globals, TOKEN_FILE, private_dir, read_if_there};
use crate::fail::{body_of, fail};
use crate::output;
use anyhow::{Context, Result};
use dumont_core::id::WorkspaceName;
use dumont_core::spec::WorkspaceSpec;
use dumont_core::time::Timestamp;
use dumont_server::{Database, Server, ServerConfig};
use dumont_wire::rest::{
    CreateSnapshot, CreateWorkspace, DeployWorkspace, ErrorBody, Instance, RestoreSnapshot, Started,
    Workspace,
};
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

/// What destroying may take; the cost of this long is kept back from the cap.
const RESERVE_H: f64 = 3.0 / 60.0;
/// How long the end is waited for. What is left then is named, for a person to destroy.
const PATIENCE: Duration = Duration::from_secs(300);

pub struct Wish {
    /// Dollars.
    pub spend: f64,
    pub deadline: Duration,
    pub image: String,
}

#[derive(Debug, Serialize)]
pub struct Step {
    step: &'static str,
    elapsed_ms: u64,
    detail: String,
}

#[derive(Debug, Serialize)]
pub struct Report {
    pub steps: Vec<Step>,
    /// What it cost by price and time, dollars; the provider's bill decides.
    pub cost: f64,
    pub error: Option<ErrorBody>,
    /// Contracts that could not be seen to end.
    pub left_rented: u64,
}

impl Report {
    pub fn show(&self) {
        for s in &self.steps {
            let ms = i64::try_from(s.elapsed_ms).unwrap_or(i64::MAX);
            output::line(&format!(
                "{}    {:<9} {:>10}  {}",
                output::green("OK"),
                s.step,
                output::millis(ms),
                s.detail
            ));
        }
        if let Some(e) = &self.error {
            // Both may quote the provider.
            output::line(&format!("{}  {}", output::red("FAIL"), output::safe(&e.message)));
            output::line(&format!("      {}", output::dim(&output::safe(&e.hint))));
        }
        let rented = match self.left_rented {
            0 => "nothing is rented any more".to_owned(),
            n => output::red(&format!("{} may still be rented", output::count(n, "contract"))),
        };
        output::line(&format!("      cost about ${:.4}; {rented}", self.cost));
    }
}

pub async fn run(globals: &Globals, config: ServerConfig, wish: &Wish) -> Result<Report> {
    let dir = config.data_dir.join("doctor");
    private_dir(&dir)?;
    // In place before anything is rented: from here Ctrl-C ends the try, not this process.
    let stop = crate::cli::until_stopped()?;
    let private = ServerConfig {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        tls: None,
        public_url: None,
        data_dir: dir.clone(),
        // Never the database of the real one: its workspaces are none of the try's.
        database: Database::Embedded,
        ..config
    };
    let server = dumont_server::start(private).await.map_err(|e| {
        fail(
            "doctor_not_started",
            e.to_string(),
            "another `dumont doctor` may be at work; wait for it",
        )
    })?;
    let token = read_if_there(&dir.join(TOKEN_FILE))?.context("the private server has no token")?;
    let client = Client::new(server.url(), token.trim(), None)?;
    let mut trial = Trial {
        client,
        server: &server,
        quiet: globals.quiet,
        steps: Vec::new(),
        seen: BTreeMap::new(),
    };
    let mut ended = trial.clean_up("leftovers").await;
    if ended.is_ok() && wish.spend > 0.0 {
        ended = trial.guarded(wish, stop).await;
        // Whatever happened: nothing stays rented.
        ended = match (ended, trial.clean_up("destroy").await) {
            (Ok(()), after) => after,
            (before, Ok(())) => before,
            (Err(before), Err(after)) => Err(after.context(format!("after {}", body_of(&before).message))),
        };
    }
    let left_rented = server.owes().await.unwrap_or(u64::MAX);
    let report = Report {
        cost: trial.cost(),
        error: ended.err().map(|e| body_of(&e)),
        left_rented,
        steps: std::mem::take(&mut trial.steps),
    };
    server.shutdown().await;
    Ok(report)
}

struct Trial<'a> {
    client: Client,
    server: &'a Server,
    quiet: bool,
    steps: Vec<Step>,
    /// Every contract seen: dollars per hour, since when, and until when it was seen.
    seen: BTreeMap<String, (f64, Timestamp, Timestamp)>,
}

impl Trial<'_> {
    /// The try, ended early by the cap, the deadline or a signal.
    async fn guarded(&mut self, wish: &Wish, stop: impl Future<Output = ()>) -> Result<()> {
        let hours = wish.deadline.as_secs_f64() / 3600.0;
        let most = wish.spend / (hours + RESERVE_H);
        let watcher = Watcher {
            client: self.client.clone(),
            spend: wish.spend,
        };
        let mut seen = std::mem::take(&mut self.seen);
        let ended = tokio::select! {
            ended = self.all(wish, most) => ended,
            error = watcher.until_spent(&mut seen) => Err(error),
            () = tokio::time::sleep(wish.deadline) => Err(fail(
                "deadline",
                format!("the try has not ended within {} minutes", wish.deadline.as_secs() / 60),
                "the marketplace may be slow today; allow more with --deadline",
            )),
            () = stop => Err(fail("interrupted", "the try was interrupted", "run it again when you like")),
        };
        self.seen = seen;
        ended
    }

    async fn all(&mut self, wish: &Wish, most: f64) -> Result<()> {
        let name = format!("doctor-{:08x}", rand::random::<u32>());
        let name: WorkspaceName = name.parse()?;
        let files = tempfile::tempdir().context("make a temporary directory")?;
        write_files(files.path())?;

        let spec = spec(&name, &wish.image, most)?;
        let begin = CreateWorkspace {
            spec,
            deploy: false,
            machine: None,
            allow_blacklisted: false,
        };
        let began = Instant::now();
        let _: Workspace = self.client.post("/workspaces", &begin).await?;
        let imported = import::import(&self.client, &name, files.path(), self.quiet).await?;
        self.did("import", began, import::summary(&imported));

        let began = Instant::now();
        workspace::deploy(&self.client, &name, &DeployWorkspace::default(), true, self.quiet)
            .await
            .map_err(|e| no_offers(e, most))?;
        let deployed: Workspace = self.client.get(&workspace::path_of(&name)).await?;
        let home = deployed
            .instance
            .context("a deployed workspace has no instance")?;
        self.did(
            "deploy",
            began,
            format!(
                "rented {}: hello, GPU, restore and files compared",
                described(&home)
            ),
        );

        let began = Instant::now();
        let taken = snapshot::create(&self.client, &name, &CreateSnapshot::default(), self.quiet).await?;
        if taken.files_changed == 0 {
            return Err(fail(
                "snapshot_missed_a_change",
                "the workload wrote a file and the snapshot has not seen it",
                "this is a fault of dumont; please report it with the server's log",
            ));
        }
        self.did("snapshot", began, snapshot::headline(&taken));

        let began = Instant::now();
        let wanted = RestoreSnapshot {
            snapshot_id: Some(imported.snapshot_id.clone()),
            delete: true,
            ..RestoreSnapshot::default()
        };
        snapshot::restore(&self.client, &name, &wanted, self.quiet).await?;
        self.did(
            "restore",
            began,
            format!("{} again, every file compared", imported.snapshot_id),
        );
        Ok(())
    }

    fn did(&mut self, step: &'static str, began: Instant, detail: String) {
        let elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.steps.push(Step {
            step,
            elapsed_ms,
            detail,
        });
    }

    /// Deletes every workspace of the private server and waits until nothing costs money.
    async fn clean_up(&mut self, step: &'static str) -> Result<()> {
        let began = Instant::now();
        let all: Vec<Workspace> = self.client.list("/workspaces").await?;
        for workspace in &all {
            // One that is being deleted already is as good.
            let asked = self
                .client
                .delete::<Started>(&workspace::path_of(&workspace.name))
                .await;
            if let Err(e) = asked
                && body_of(&e).code != "workspace_busy"
            {
                return Err(e);
            }
        }
        let mut owed = self.server.owes().await?;
        while owed > 0 {
            look(&self.client, &mut self.seen).await;
            if began.elapsed() > PATIENCE {
                return Err(fail(
                    "still_rented",
                    format!(
                        "{owed} contracts could not be seen to end: {}",
                        self.seen.keys().cloned().collect::<Vec<_>>().join(", ")
                    ),
                    "destroy them at https://cloud.vast.ai/instances/, or run `dumont doctor --provider vast --spend 0` again",
                ));
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
            owed = self.server.owes().await?;
        }
        if !all.is_empty() {
            self.did(
                step,
                began,
                format!(
                    "{} and what it rented",
                    output::count(all.len() as u64, "workspace")
                ),
            );
        }
        Ok(())
    }

    fn cost(&self) -> f64 {
        cost(&self.seen)
    }
}

/// Watches what is spent.
struct Watcher {
    client: Client,
    spend: f64,
}

impl Watcher {
    /// Returns when the cap is near.
    async fn until_spent(&self, seen: &mut BTreeMap<String, (f64, Timestamp, Timestamp)>) -> anyhow::Error {
        loop {
            let rate = look(&self.client, seen).await;
            let so_far = cost(seen);
            if so_far + rate * RESERVE_H > self.spend {
                return fail(
                    "spending_cap",
                    format!("the cap of ${} is near: about ${so_far:.4} are spent", self.spend),
                    "allow more with --spend, or try again when the market is cheaper",
                );
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

/// Notes what is rented now; its dollars per hour together.
async fn look(client: &Client, seen: &mut BTreeMap<String, (f64, Timestamp, Timestamp)>) -> f64 {
    // A listing that fails changes nothing: what was seen goes on costing, as far as we know.
    let open: Vec<Instance> = client.list("/instances").await.unwrap_or_default();
    let now = output::now();
    for i in &open {
        let entry = seen
            .entry(format!("{}:{}", i.provider, i.instance_id))
            .or_insert((i.price, i.created_at, now));
        entry.2 = now;
    }
    open.iter().fold(0.0, |sum, i| sum + i.price)
}

fn cost(seen: &BTreeMap<String, (f64, Timestamp, Timestamp)>) -> f64 {
    seen.values()
        .map(|(price, from, until)| price * (until.millis_since(*from).max(0) as f64) / 3_600_000.0)
        .fold(0.0, |sum, one| sum + one)
}

fn described(i: &Instance) -> String {
    format!(
        "{} ({}, ${:.3} per hour)",
        i.machine,
        workspace::gpu(&i.gpu_name, i.gpu_count),
        i.price
    )
}

/// One GPU of any kind, and a workload that changes a file.
fn spec(name: &WorkspaceName, image: &str, max_price: f64) -> Result<WorkspaceSpec> {
    let spec = serde_json::json!({
        "name": name,
        "image": image,
        "disk_gb": 8,
        "max_price": max_price,
        "start": "head -c 1048576 /dev/urandom > written-on-the-machine; exec sleep 100000",
        "probe": { "kind": "command", "command": "test -s written-on-the-machine", "timeout_s": 60 },
        "failover": { "automatic": false, "racers": 1 },
    });
    serde_json::from_value(spec).context("the specification of the try")
}

/// Something to carry: a text, an empty directory, and a few MB that do not compress.
fn write_files(dir: &Path) -> Result<()> {
    std::fs::create_dir(dir.join("empty"))?;
    std::fs::write(dir.join("README"), "This is a try of `dumont doctor`.\n")?;
    let noise: Vec<u8> = (0..4 << 20).map(|_| rand::random::<u8>()).collect();
    std::fs::write(dir.join("noise.bin"), noise)?;
    Ok(())
}

fn no_offers(e: anyhow::Error, most: f64) -> anyhow::Error {
    let body = body_of(&e);
    if body.code != "no_offers" {
        return e;
    }
    fail(
        "no_offers",
        format!("no machine is offered for at most ${most:.3} per hour"),
        "allow more with --spend, or less time with --deadline: their quotient is the highest price",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cost_is_price_times_time_of_every_contract() {
        let hour = 3_600_000_000;
        let seen = BTreeMap::from([
            ("a".to_owned(), (0.3, Timestamp(0), Timestamp(hour / 2))),
            (
                "b".to_owned(),
                (1.0, Timestamp(hour), Timestamp(hour + hour / 10)),
            ),
            // A clock that was set back costs nothing.
            ("c".to_owned(), (9.0, Timestamp(hour), Timestamp(0))),
        ]);
        assert!((cost(&seen) - 0.25).abs() < 1e-9);
    }

    #[test]
    fn the_try_is_a_valid_specification() {
        let name = "doctor-1".parse().unwrap();
        assert_eq!(spec(&name, "ubuntu:22.04", 0.3).unwrap().check(), Ok(()));
    }
}
