//! What rented machines get to know: their own workspace's files and environment, and nothing
//! else that the controller holds.
//!
//! Every secret is planted where it really lives (the provider's key in the server's
//! environment, the keys and tokens in its data directory, another workspace's files and
//! environment) and then looked for in everything a machine has: its processes' arguments and
//! environments, its files, its contract, and every byte that went to it or came from it on
//! SSH. What a machine must know is looked for in the same way, so that a search which finds
//! nothing anywhere fails.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot run the binary fails"
)]

#[path = "../../server/tests/world/bucket.rs"]
#[allow(dead_code, reason = "the server's tests use the rest")]
mod bucket;

use bucket::InProcess;
use dumont_market::{Market, MarketConfig};
use dumont_temp_postgres::Cluster;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PROVIDER_KEY: &str = "sentinel-provider-key-7d1b";
/// Of each workspace: in its environment, and in its files.
const ENVIRONMENTS: [&str; 2] = ["sentinel-own-environment-51", "sentinel-other-environment-52"];
const FILES: [&str; 2] = ["sentinel-own-file-61", "sentinel-other-file-62"];
const NAMES: [&str; 2] = ["own", "other"];

struct World {
    dir: tempfile::TempDir,
    market: Market,
    server: Child,
    http: reqwest::Client,
    /// Secrets of the parts that only some worlds have.
    more: Vec<(&'static str, String)>,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl World {
    /// State and objects in the data directory.
    async fn embedded() -> Self {
        Self::start(&[], Vec::new()).await
    }

    /// State in PostgreSQL, over the network with a password; objects in a bucket.
    async fn on_services(cluster: &Cluster, bucket: &InProcess) -> Self {
        cluster.create_database("secrets").unwrap();
        let (url, endpoint) = (cluster.tcp_url("secrets"), format!("http://{}", bucket.addr));
        let more = vec![
            ("the database's password", cluster.password().to_owned()),
            ("the database's URL", url.clone()),
            ("the bucket's key", bucket::SECRET.to_owned()),
        ];
        let environment = [
            ("DATABASE_URL", url.as_str()),
            ("S3_BUCKET", bucket::BUCKET),
            ("S3_ADDRESSING", "path"),
            ("AWS_ENDPOINT_URL", &endpoint),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", bucket::KEY),
            ("AWS_SECRET_ACCESS_KEY", bucket::SECRET),
        ];
        Self::start(&environment, more).await
    }

    async fn start(environment: &[(&str, &str)], more: Vec<(&'static str, String)>) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let mut config = MarketConfig::new(dir.path().join("market"));
        config.time_scale = 0.0;
        config.machines = 12;
        config.tap = true;
        config.api_keys = vec![PROVIDER_KEY.to_owned()];
        let market = dumont_market::start(config).await.unwrap();
        let log = fs::File::create(dir.path().join("server.log")).unwrap();
        let server = dumont(&dir.path().join("data"))
            .args(["serve", "--listen", "127.0.0.1:0"])
            .env("VAST_URL", market.url())
            .env("VAST_API_KEY", PROVIDER_KEY)
            .env("VAST_LIMITS", "off")
            .env("DUMONT_LOG", "debug")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let world = Self {
            dir,
            market,
            server,
            http: reqwest::Client::new(),
            more,
        };
        until("the server listens", || world.data().join("server.json").exists()).await;
        world
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    async fn cli(&self, args: &[&str]) -> Value {
        let output = tokio::process::Command::from(dumont(&self.data()))
            .arg("--json")
            .args(args)
            .output()
            .await
            .unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {err}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    async fn admin(&self, method: &str, path: &str) -> Value {
        let url = format!("{}{path}", self.market.admin_url());
        let request = self.http.request(method.parse().unwrap(), url);
        request.send().await.unwrap().json().await.unwrap()
    }

    /// The key that a workspace's snapshots are sealed with; none while there is no workspace.
    async fn key(&self, name: &str) -> String {
        let made = self.cli(&["workspace", "list"]).await;
        if made.as_array().unwrap().iter().all(|w| w["name"] != name) {
            return "no key yet".into();
        }
        let shown = self.cli(&["workspace", "key", name]).await;
        shown["key"].as_str().unwrap().to_owned()
    }

    async fn instance(&self, name: &str) -> String {
        let workspace = self.cli(&["workspace", "show", name]).await;
        let id = workspace["instance"]["instance_id"].as_str();
        id.unwrap_or_default().to_owned()
    }

    /// What the controller holds and no machine may ever see, by name.
    fn held(&self) -> Vec<(&'static str, String)> {
        let read = |name: &str| fs::read(self.data().join(name)).unwrap();
        let mut held = vec![("the provider's key", PROVIDER_KEY.to_owned())];
        held.push(("the admin token", text(read("admin.token").trim_ascii())));
        if self.more.is_empty() {
            let signing = read("objects.key");
            held.push(("the store's signing key, hex", hex(&signing)));
            held.push(("the store's signing key", text(&signing)));
        }
        held.extend(self.more.iter().cloned());
        let key = String::from_utf8(read("id_ed25519")).unwrap();
        let secret: Vec<&str> = key.lines().filter(|l| !l.starts_with("-----")).collect();
        // The last lines hold the private half; the first ones the public one, which all know.
        held.push(("the SSH key", secret[secret.len() - 2].to_owned()));
        assert!(
            held.iter().all(|(_, secret)| secret.len() >= 16),
            "too short to mean anything"
        );
        held
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn dumont(data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dumont"));
    command
        .env("DUMONT_DATA_DIR", data)
        .env_remove("DUMONT_URL")
        .env_remove("DUMONT_TOKEN")
        .arg("--die-with-parent");
    command
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: it never did");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Everything that one machine has, by where it was found.
async fn known(world: &World, id: &str) -> Vec<(String, String)> {
    let about = world.admin("GET", &format!("/admin/instances/{id}")).await;
    let mut found = vec![("its contract".to_owned(), about["order"].to_string())];
    let tap = world.dir.path().join(format!("market/taps/{id}.tap"));
    found.push(("its SSH sessions".to_owned(), text(&fs::read(tap).unwrap())));
    let init = about["init_pid"].to_string();
    let own_space = about["isolation"] != "directory";
    let space = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let mark = format!("MACHINE_MARK={id}-");
    for pid in fs::read_dir("/proc").unwrap().flatten() {
        let pid = pid.file_name().into_string().unwrap();
        if pid.parse::<u32>().is_err() {
            continue;
        }
        let read = |what: &str| text(&fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default());
        let environ = read("environ");
        let ours = if own_space {
            space(&pid).is_some_and(|s| Some(s) == space(&init))
        } else {
            environ.contains(&mark)
        };
        if ours {
            found.push((format!("environment of {pid}"), environ));
            found.push((format!("arguments of {pid}"), read("cmdline")));
        }
    }
    let root = if own_space {
        PathBuf::from(format!("/proc/{init}/root"))
    } else {
        about["dir"].as_str().unwrap().into()
    };
    for part in [
        "root",
        "tmp",
        "workspace",
        "etc",
        "opt",
        "run",
        "var",
        "home",
        "dev/shm",
    ] {
        files(&root.join(part), &mut found);
    }
    found
}

fn files(at: &Path, found: &mut Vec<(String, String)>) {
    let Ok(entries) = fs::read_dir(at) else { return };
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            files(&entry.path(), found);
        } else if kind.is_file() {
            found.push((
                entry.path().display().to_string(),
                text(&fs::read(entry.path()).unwrap_or_default()),
            ));
        }
    }
}

/// One character a byte: text is searched quickly even where nothing is optimised.
fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|b| char::from(*b)).collect()
}

fn places(known: &[(String, String)], needle: &str) -> Vec<String> {
    let holds = |k: &&(String, String)| k.1.contains(needle);
    known.iter().filter(holds).map(|k| k.0.clone()).collect()
}

async fn check_machine(world: &World, id: &str, whose: usize) {
    let known = known(world, id).await;
    for (what, secret) in world.held() {
        for (place, bytes) in &known {
            assert!(
                !bytes.contains(&secret),
                "{what} is in {place} of {}'s machine",
                NAMES[whose]
            );
        }
    }
    let stranger = 1 - whose;
    let (own, foreign) = (world.key(NAMES[whose]).await, world.key(NAMES[stranger]).await);
    for foreign in [ENVIRONMENTS[stranger], FILES[stranger], &foreign] {
        let places = places(&known, foreign);
        assert!(
            places.is_empty(),
            "{foreign} is in {places:?} of {}'s machine",
            NAMES[whose]
        );
    }
    // Its own key comes in the jobs of its sessions, and lies in no file, process or contract.
    let holders = places(&known, &own);
    assert!(
        holders.iter().all(|p| p == "its SSH sessions"),
        "the workspace's key is in {holders:?}"
    );
    // The search finds what is there.
    let environment = places(&known, ENVIRONMENTS[whose]);
    assert!(
        environment.iter().any(|p| p.starts_with("environment of")),
        "{environment:?}"
    );
    assert!(
        environment.iter().any(|p| p == "its SSH sessions"),
        "{environment:?}"
    );
    assert!(
        !environment.iter().any(|p| p == "its contract"),
        "{environment:?}"
    );
    assert!(
        places(&known, FILES[whose])
            .iter()
            .any(|p| p.ends_with("/workspace/data.txt")),
        "the file is there"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_know_their_own_workspace_and_nothing_else() {
    a_life_tells_no_secret(World::embedded().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_know_nothing_of_the_database_and_the_bucket() {
    let cluster = tokio::task::spawn_blocking(|| Cluster::start().unwrap())
        .await
        .unwrap();
    let bucket = InProcess::start().await;
    a_life_tells_no_secret(World::on_services(&cluster, &bucket).await).await;
    assert!(
        !bucket.requests.lock().unwrap().is_empty(),
        "the objects went to the bucket"
    );
}

async fn a_life_tells_no_secret(world: World) {
    for (at, name) in NAMES.into_iter().enumerate() {
        let env = format!("WORKSPACE_SECRET={}", ENVIRONMENTS[at]);
        let start = "exec sleep 100000";
        world
            .cli(&[
                "workspace",
                "create",
                name,
                "--start",
                start,
                "--env",
                &env,
                "--encrypt",
            ])
            .await;
        let id = world.instance(name).await;
        let about = world.admin("GET", &format!("/admin/instances/{id}")).await;
        let dir = PathBuf::from(about["workspace_dir"].as_str().unwrap());
        fs::write(dir.join("data.txt"), FILES[at]).unwrap();
        world.cli(&["snapshot", "create", name]).await;
        check_machine(&world, &id, at).await;
    }
    let lost = world.instance("own").await;
    world
        .admin("POST", &format!("/admin/instances/{lost}/kill"))
        .await;
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        let workspace = world.cli(&["workspace", "show", "own"]).await;
        let now = &workspace["instance"]["instance_id"];
        if workspace["state"] == "running" && now.is_string() && *now != json!(lost) {
            break;
        }
        assert!(Instant::now() < deadline, "no failover: {workspace:#}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for (at, name) in NAMES.into_iter().enumerate() {
        let id = world.instance(name).await;
        check_machine(&world, &id, at).await;
    }
    let keys = [world.key(NAMES[0]).await, world.key(NAMES[1]).await];
    let mut with_key = 0;
    // Those that are gone, and the losers of races: what went over their SSH.
    for tap in fs::read_dir(world.dir.path().join("market/taps"))
        .unwrap()
        .flatten()
    {
        let bytes = text(&fs::read(tap.path()).unwrap());
        for (what, secret) in world.held() {
            assert!(!bytes.contains(&secret), "{what} is in {:?}", tap.path());
        }
        let both = ENVIRONMENTS.iter().all(|e| bytes.contains(e));
        assert!(!both, "{:?} has both environments", tap.path());
        let both = keys.iter().all(|k| bytes.contains(k));
        assert!(!both, "{:?} has both workspaces' keys", tap.path());
        with_key += keys.iter().filter(|k| bytes.contains(*k)).count();
    }
    assert!(
        with_key >= 3,
        "two machines and the one after the failover: {with_key}"
    );
    // What lies in the store shows neither a file nor a key.
    let mut stored = Vec::new();
    files(&world.data().join("objects"), &mut stored);
    for secret in FILES.iter().copied().chain(keys.iter().map(String::as_str)) {
        assert_eq!(places(&stored, secret), Vec::<String>::new(), "{secret}");
    }
    // The server's own log, with what it says to developers, too.
    let log = text(&fs::read(world.dir.path().join("server.log")).unwrap());
    assert!(!log.is_empty());
    for (what, secret) in world.held() {
        assert!(!log.contains(&secret), "{what} is in the server's log");
    }
    let shown = ENVIRONMENTS.iter().chain(&FILES).copied();
    for secret in shown.chain(keys.iter().map(String::as_str)) {
        assert!(!log.contains(secret), "{secret} is in the server's log");
    }
}
