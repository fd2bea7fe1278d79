//! One run: a workspace, some days of work on it in bad weather, and then the question whether
//! everything that is visible comes back.
//!
//! What a snapshot must hold is known because nobody works while one is taken: whatever becomes
//! visible holds what the directory held when it was asked for. What happens in between is up to
//! the dice: faults on the way to the bucket, `kill -9` of the server (at some moment or at the
//! worst one of a step) and of the agent, the loss of the machine, rollbacks, pruning.

use crate::agents;
use crate::bucket::{self, InProcess, Weed};
use crate::compare::{self, Tree};
use crate::procs;
use crate::proxy::{Fault, Proxy, Request, Weather};
use crate::tree;
use crate::world::{Run as Done, World};
use dumont_server::objects::s3::S3Config;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest wait for anything; no run that is well comes near.
const PATIENCE: Duration = Duration::from_secs(180);

/// Worst moments of the work on snapshots.
const CRASHES: [&str; 6] = [
    "snapshot:capture:begin",
    "snapshot:capture",
    "snapshot:commit:begin",
    "snapshot:commit",
    "restore:restore",
    "restore:validate",
];

/// Where objects are, beside the proxy.
pub enum Bucket {
    /// Files of `s3s-fs` in a directory.
    Files(InProcess),
    /// SeaweedFS; it keeps versions.
    Versions(Weed),
}

impl Bucket {
    pub fn config(&self) -> S3Config {
        let mut config = match self {
            Self::Files(server) => server.config(),
            Self::Versions(server) => server.config(),
        };
        if matches!(self, Self::Versions(_)) {
            config.bucket = bucket::VERSIONED.into();
        }
        config
    }
}

/// A market, a server, a bucket and the weather between them; runs follow each other in it.
pub struct Place {
    pub world: World,
    pub proxy: Proxy,
    pub runtime: tokio::runtime::Handle,
    pub bucket: std::sync::Arc<Bucket>,
}

/// What a run saw.
#[derive(Debug, Default)]
pub struct Story {
    pub visible: usize,
    pub damaged: usize,
    pub kills: usize,
    pub lost: usize,
    pub lines: Vec<String>,
}

pub struct Run<'a> {
    place: &'a mut Place,
    name: String,
    dice: StdRng,
    permille: u32,
    /// Every second time the seed is past both buckets; it changes nothing else.
    encrypt: bool,
    /// Whether objects may be damaged on their way up, and how many were before this run.
    rot: bool,
    rotten_before: u64,
    /// By snapshot.
    expected: BTreeMap<String, Tree>,
    pub story: Story,
}

type Held<T = ()> = Result<T, String>;

impl<'a> Run<'a> {
    pub fn new(place: &'a mut Place, seed: u64) -> Self {
        let mut dice = StdRng::seed_from_u64(seed);
        Self {
            rotten_before: place.proxy.counts()[2],
            place,
            name: format!("s{seed}"),
            permille: [20, 80, 150, 300, 500][dice.random_range(0..5)],
            encrypt: seed / 4 % 2 == 1,
            rot: dice.random_range(0..4) == 0,
            dice,
            expected: BTreeMap::new(),
            story: Story::default(),
        }
    }

    /// All of it; the error says what does not hold.
    pub fn go(&mut self) -> Held {
        let policy = format!(
            r#"{{"encrypt":{},"keep":{{"last":3,"hourly":0,"daily":0,"weekly":0}}}}"#,
            self.encrypt
        );
        let spec = self.place.world.dir.path().join(format!("{}.json", self.name));
        std::fs::write(
            &spec,
            format!(r#"{{"name":"{}","snapshot":{policy}}}"#, self.name),
        )
        .map_err(text)?;
        let spec = spec.display().to_string();
        let name = self.name.clone();
        self.json(&[
            "workspace",
            "create",
            &name,
            "--spec",
            &spec,
            "--start",
            "exec sleep 100000",
        ])?;
        let dir = self.dir()?;
        tree::fill(&dir, &mut self.dice);
        for round in 0..self.dice.random_range(3..6) {
            if round > 0 {
                let dir = self.dir()?;
                tree::edit(&dir, &mut self.dice);
            }
            self.take_a_snapshot()?;
            match self.dice.random_range(0..6) {
                0 => self.roll_back()?,
                // What went up damaged may be all there is to come back with.
                1 if !self.rot => self.lose_the_machine()?,
                2 => self.prune()?,
                _ => {}
            }
        }
        self.calm()?;
        let harmed = self.harm()?;
        self.judge(&harmed)?;
        self.json(&["workspace", "delete", &name, "--yes"])?;
        Ok(())
    }

    fn say(&mut self, line: impl Into<String>) {
        self.story.lines.push(line.into());
    }

    fn command(&self, args: &[&str]) -> Done {
        Done::of(self.place.world.command().arg("--json").args(args))
    }

    fn json(&self, args: &[&str]) -> Held<Value> {
        let run = self.command(args);
        if run.code != 0 {
            return Err(format!("{args:?}: {run:?}"));
        }
        serde_json::from_str(&run.out).map_err(|e| format!("{args:?}: {e}: {run:?}"))
    }

    /// Until it holds; the server may be restarted meanwhile.
    fn until<T>(&mut self, what: &str, mut look: impl FnMut(&mut Self) -> Option<T>) -> Held<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.revive(&[]);
            if let Some(found) = look(self) {
                return Ok(found);
            }
            if Instant::now() > deadline {
                let state = self.command(&["workspace", "show", &self.name.clone()]);
                return Err(format!("{what} does not come: {state:?}"));
            }
            std::thread::sleep(Duration::from_millis(60));
        }
    }

    /// A server that does not run is started, as often as the weather wants.
    fn revive(&mut self, args: &[&str]) {
        for _ in 0..50 {
            if self.place.world.serves() {
                return;
            }
            self.place.world.try_serve(args);
        }
    }

    fn storm(&mut self) {
        let rot = self.rot;
        let faults = move |dice: &mut StdRng, request: &Request| of_a_bucket(dice, request, rot);
        let weather = Weather::new(self.dice.random(), self.permille, faults);
        self.place.proxy.set(Some(weather));
    }

    /// No more faults, and nothing is under way.
    fn calm(&mut self) -> Held {
        self.place.proxy.set(None);
        self.idle().map(drop)
    }

    /// The workspace as it is when no workflow works on it.
    fn idle(&mut self) -> Held<Value> {
        let name = self.name.clone();
        self.until("rest", |run| {
            let shown = run.json(&["workspace", "show", &name]).ok()?;
            shown["workflow_id"].is_null().then_some(shown)
        })
    }

    fn instance(&mut self) -> Held<String> {
        let shown = self.idle()?;
        let id = shown["instance"]["instance_id"].as_str();
        id.map(str::to_owned)
            .ok_or_else(|| format!("no instance: {shown:#}"))
    }

    fn admin(&self, method: &str, path: &str) -> Held<Value> {
        let url = format!("{}{path}", self.place.world.admin_url);
        let method: reqwest::Method = method.parse().map_err(text)?;
        self.place.runtime.block_on(async {
            let sent = reqwest::Client::new().request(method, &url).send().await;
            sent.map_err(text)?.json().await.map_err(text)
        })
    }

    /// Where the files are, on whatever machine it is now.
    fn dir(&mut self) -> Held<PathBuf> {
        let instance = self.instance()?;
        let about = self.admin("GET", &format!("/admin/instances/{instance}"))?;
        let dir = about["workspace_dir"].as_str();
        dir.map(PathBuf::from).ok_or_else(|| format!("{about:#}"))
    }

    fn listed(&mut self) -> Held<Vec<String>> {
        let name = self.name.clone();
        let list = self.until("the list of snapshots", |run| {
            run.json(&["snapshot", "list", &name]).ok()
        })?;
        let ids = list
            .as_array()
            .into_iter()
            .flatten()
            .map(|s| s["snapshot_id"].as_str());
        Ok(ids.flatten().map(str::to_owned).collect())
    }

    /// Lets something happen to the servers while work runs.
    fn strike(&mut self) {
        let pause = Duration::from_millis(self.dice.random_range(0..900));
        match self.dice.random_range(0..8) {
            0 | 1 => {
                std::thread::sleep(pause);
                self.place.world.kill_server();
                self.story.kills += 1;
                self.say(format!("killed the server after {pause:?}"));
            }
            2 | 3 => {
                std::thread::sleep(pause);
                let killed = agents::kill_agents(self.place.world.market_pid());
                self.story.kills += killed;
                self.say(format!("killed {killed} agents after {pause:?}"));
            }
            _ => {}
        }
    }

    /// Now and then the server is one that will kill itself at a bad moment.
    fn maybe_doom(&mut self) {
        if self.dice.random_range(0..6) == 0 {
            let at = CRASHES[self.dice.random_range(0..CRASHES.len())];
            self.say(format!("a server that dies at {at}"));
            self.place.world.kill_server();
            self.revive(&["--crash-at", at]);
        }
    }

    fn take_a_snapshot(&mut self) -> Held {
        let dir = self.dir()?;
        let now = compare::scan(&dir).map_err(text)?;
        self.maybe_doom();
        self.storm();
        let name = self.name.clone();
        let full = self.dice.random_range(0..8) == 0;
        let mut args = vec!["snapshot", "create", &name, "--no-wait"];
        args.extend(full.then_some("--full"));
        let asked = self.command(&args);
        self.strike();
        self.idle()?;
        let known: Vec<String> = self.expected.keys().cloned().collect();
        let new: Vec<_> = self
            .listed()?
            .into_iter()
            .filter(|id| !known.contains(id))
            .collect();
        self.say(format!("snapshot (asked: {}): {new:?}", asked.code));
        if new.len() > 1 {
            return Err(format!("one was asked for, and there are {new:?}"));
        }
        self.expected.extend(new.into_iter().map(|id| (id, now.clone())));
        Ok(())
    }

    /// The files go back to some snapshot; broken off, again until they are.
    fn roll_back(&mut self) -> Held {
        let ids = self.listed()?;
        if ids.is_empty() {
            return Ok(());
        }
        let id = ids[self.dice.random_range(0..ids.len())].clone();
        let name = self.name.clone();
        let args = [
            "snapshot",
            "restore",
            &name,
            "--snapshot",
            &id,
            "--delete",
            "--no-wait",
        ];
        self.maybe_doom();
        self.storm();
        self.command(&args);
        self.strike();
        self.idle()?;
        self.calm()?;
        // A session whose agent was killed may end under the first try.
        let mut run = self.command(&args[..6]);
        for _ in 0..3 {
            if run.code == 0 || self.is_damaged(&id, &run).is_ok() {
                break;
            }
            self.say(format!("again, after {}", run.err));
            self.idle()?;
            run = self.command(&args[..6]);
        }
        self.say(format!("back to {id}: {}", run.code));
        if run.code == 0 {
            let dir = self.dir()?;
            return self.same(&id, &dir);
        }
        self.is_damaged(&id, &run)
    }

    /// The machine is gone, and the workspace comes back on another.
    fn lose_the_machine(&mut self) -> Held {
        let instance = self.instance()?;
        let name = self.name.clone();
        self.storm();
        self.admin("POST", &format!("/admin/instances/{instance}/kill"))?;
        self.story.lost += 1;
        let event = self.until("the failover", |run| {
            let list = run.json(&["failover", "list", "--workspace", &name]).ok()?;
            let all = list.as_array().cloned().unwrap_or_default();
            all.into_iter().find(|e| e["original_instance_id"] == *instance)
        })?;
        self.calm()?;
        let mut restored = event["snapshot_id"].as_str().map(str::to_owned);
        if event["success"] != true {
            self.say(format!("failover failed: {}", event["failure_reason"]));
            // The person does what the message says; where the newest is damaged, with an older one.
            let mut ids: Vec<Option<String>> = self.listed()?.into_iter().map(Some).collect();
            ids.push(None);
            let mut last = None;
            for id in ids {
                let mut args = vec!["failover", "run", &name];
                args.extend(id.iter().flat_map(|id| ["--snapshot", id.as_str()]));
                let run = self.command(&args);
                if run.code == 0 {
                    restored = id;
                    last = None;
                    break;
                }
                if let Some(id) = &id {
                    self.is_damaged(id, &run)?;
                }
                last = Some(run);
            }
            if let Some(run) = last {
                return Err(format!("no failover succeeds: {run:?}"));
            }
        }
        self.say(format!("on another machine, with {restored:?}"));
        let dir = self.dir()?;
        match restored {
            Some(id) => self.same(&id, &dir),
            // It had none yet: it begins anew.
            None => {
                tree::fill(&dir, &mut self.dice);
                Ok(())
            }
        }
    }

    fn prune(&mut self) -> Held {
        self.storm();
        let name = self.name.clone();
        let kill = self.dice.random_range(0..2) == 0;
        if kill {
            // The command line waits, and the server dies under it.
            let mut waiting = self.place.world.command();
            let child = waiting
                .args(["snapshot", "prune", &name])
                .stdin(std::process::Stdio::null());
            let child = child
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null());
            let mut child = child.spawn().map_err(text)?;
            std::thread::sleep(Duration::from_millis(self.dice.random_range(0..600)));
            self.place.world.kill_server();
            self.story.kills += 1;
            child.wait().map_err(text)?;
        } else {
            self.command(&["snapshot", "prune", &name]);
        }
        self.idle()?;
        self.say(format!("pruned (killed: {kill})"));
        Ok(())
    }

    fn same(&self, id: &str, dir: &Path) -> Held {
        let found = compare::scan(dir).map_err(text)?;
        let expected = self
            .expected
            .get(id)
            .ok_or_else(|| format!("{id} is none of ours"))?;
        let wrong = compare::diff(expected, &found);
        if wrong.is_empty() {
            return Ok(());
        }
        let all: Vec<_> = wrong.iter().map(ToString::to_string).collect();
        Err(format!("{id} came back wrong: {}", all.join("; ")))
    }

    /// A refusal is right only where the check says why.
    fn is_damaged(&mut self, id: &str, run: &Done) -> Held {
        if !self
            .checked()?
            .iter()
            .any(|d| d.snapshots.iter().any(|s| s == id))
        {
            return Err(format!(
                "{id} does not restore, and the check names nothing: {run:?}"
            ));
        }
        Ok(())
    }

    /// Somebody else with the bucket's key damages an object, now and then.
    fn harm(&mut self) -> Held<Vec<String>> {
        if self.dice.random_range(0..2) == 0 {
            return Ok(Vec::new());
        }
        let (bucket, prefix) = (self.place.bucket.clone(), self.prefix()?);
        let all = procs::objects(&self.place.runtime, &bucket.config(), &format!("{prefix}/"))?;
        let some: Vec<_> = all
            .into_iter()
            .filter(|k| k.contains("/packs/") || k.contains("/indexes/"))
            .collect();
        if some.is_empty() {
            return Ok(Vec::new());
        }
        let key = some[self.dice.random_range(0..some.len())].clone();
        let harm = self.dice.random_range(0..3);
        procs::harm(&self.place.runtime, &bucket.config(), &key, harm)?;
        self.say(format!("harmed {key} ({harm})"));
        Ok(vec![key])
    }

    /// `workspaces/{id}`, from the key of any object that a snapshot leads to.
    fn prefix(&mut self) -> Held<String> {
        let name = self.name.clone();
        let shown = self.json(&["workspace", "show", &name])?;
        let id = shown["id"].as_str().ok_or_else(|| format!("{shown:#}"))?;
        Ok(format!("workspaces/{id}"))
    }

    fn checked(&mut self) -> Held<Vec<Damage>> {
        let name = self.name.clone();
        let run = self.command(&["snapshot", "check", &name]);
        let report: Value = serde_json::from_str(&run.out).map_err(|e| format!("check: {e}: {run:?}"))?;
        let damaged: Vec<Damage> = serde_json::from_value(report["damaged"].clone()).map_err(text)?;
        if (run.code == 0) != damaged.is_empty() {
            return Err(format!("check leaves with {} and says {report:#}", run.code));
        }
        Ok(damaged)
    }

    /// Every visible snapshot comes back, or the check names it with an object that is damaged.
    fn judge(&mut self, harmed: &[String]) -> Held {
        let ids = self.listed()?;
        self.story.visible = ids.len();
        if ids.is_empty() {
            return Ok(());
        }
        let versions = matches!(*self.place.bucket, Bucket::Versions(_));
        let damaged = self.checked()?;
        let rotten = self.place.proxy.counts()[2] > self.rotten_before;
        for d in &damaged {
            // Where versions are kept, nobody can take away what was written first.
            let explained = rotten || (!versions && harmed.contains(&d.object));
            if !explained {
                return Err(format!("nobody harmed this: {d:?}"));
            }
        }
        for id in &ids {
            let to = tempfile::tempdir().map_err(text)?;
            let dir = to.path().join("tree");
            let (name, path) = (self.name.clone(), dir.display().to_string());
            let run = self.command(&["snapshot", "read", &name, "--snapshot", id, "--to", &path]);
            let named = damaged.iter().any(|d| d.snapshots.contains(id));
            match (run.code, named) {
                (0, false) => self.same(id, &dir)?,
                (0, true) => return Err(format!("{id} is called damaged and restores: {damaged:?}")),
                (_, true) => self.story.damaged += 1,
                (_, false) => {
                    return Err(format!(
                        "{id} does not restore and is not called damaged: {run:?}"
                    ));
                }
            }
        }
        Ok(())
    }
}

#[derive(Debug, serde::Deserialize)]
struct Damage {
    object: String,
    #[allow(dead_code, reason = "for messages")]
    problem: String,
    snapshots: Vec<String>,
}

fn text(e: impl std::fmt::Display) -> String {
    e.to_string()
}

/// What happens on the way to a bucket; `rot` allows to damage what is sent up.
fn of_a_bucket(dice: &mut StdRng, request: &Request, rot: bool) -> Option<Fault> {
    let of_an_object = ["/packs/", "/indexes/"]
        .iter()
        .any(|dir| request.target.contains(dir));
    let fault = match dice.random_range(0..14) {
        0 => Fault::Refuse(500, "InternalError"),
        1 | 2 => Fault::Refuse(503, "SlowDown"),
        3 => Fault::Refuse(502, "BadGateway"),
        4 => Fault::Refuse(403, "AccessDenied"),
        5 => Fault::Deny,
        6 => Fault::Cut,
        7 => Fault::CutRequest,
        8 => Fault::LoseAnswer,
        9 => Fault::Truncate,
        10 | 11 => Fault::Corrupt,
        12 => Fault::Rot,
        _ => Fault::Delay(dice.random_range(0..700)),
    };
    match fault {
        Fault::Corrupt => (of_an_object && request.method == "GET").then_some(fault),
        Fault::Rot => (rot && of_an_object && request.target.contains("partNumber=")).then_some(fault),
        other => Some(other),
    }
}
