//! `kill -9` of the server in workflows that the drill does not kill: snapshots and deploys.
//! Everything runs as a user would run it: the real binary, one process each.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot run the binary fails"
)]

use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A market and, now and then, a server; both end with the test.
struct World {
    dir: TempDir,
    vast_url: String,
    admin_url: String,
    market: Child,
    server: Option<Child>,
}

impl World {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let args = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
        let market = child(dumont(dir.path()).arg("market").args(args).args([
            "--machines",
            "12",
            "--time-scale",
            "0",
        ]));
        let file = read_when_there(&dir.path().join("market/market.json"));
        let about: Value = serde_json::from_str(&file).unwrap();
        let text = |key: &str| about[key].as_str().unwrap().to_owned();
        Self {
            vast_url: text("url"),
            admin_url: text("admin_url"),
            dir,
            market,
            server: None,
        }
    }

    fn serve(&mut self, crash_at: Option<&str>) {
        let _ = std::fs::remove_file(self.dir.path().join("server.json"));
        let mut command = dumont(self.dir.path());
        command
            .args(["serve", "--listen", "127.0.0.1:0"])
            .env("VAST_URL", &self.vast_url)
            .env("VAST_API_KEY", "test-key")
            .env("VAST_LIMITS", "off");
        if let Some(step) = crash_at {
            command.args(["--crash-at", step]);
        }
        self.server = Some(child(&mut command));
        read_when_there(&self.dir.path().join("server.json"));
    }

    /// Waits until the server has killed itself.
    fn dies(&mut self) {
        let mut server = self.server.take().expect("a server");
        let deadline = Instant::now() + Duration::from_secs(60);
        while server.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the server did not die");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().unwrap();
            server.wait().unwrap();
        }
    }

    fn cli(&self, args: &[&str]) -> Output {
        dumont(self.dir.path()).arg("--json").args(args).output().unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        let output = self.cli(args);
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {err}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn until(&self, what: &str, args: &[&str], holds: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let value = self.json(args);
            if holds(&value) {
                return;
            }
            assert!(Instant::now() < deadline, "{what}: {value:#}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// As the database has it; the server may be dead.
    fn half_restored(&self, name: &str) -> bool {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let store = dumont_store::Store::open(self.dir.path().join("dumont.db"))
                .await
                .unwrap();
            let row = store.workspace_by_name(&name.parse().unwrap()).await.unwrap();
            store.close().await;
            row.unwrap().half_restored.is_some()
        })
    }

    fn alive(&self) -> u64 {
        let url = format!("{}/admin/ledger", self.admin_url);
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let ledger: Value =
            runtime.block_on(async { reqwest::get(url).await.unwrap().json().await.unwrap() });
        ledger["alive"].as_u64().unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            let _ = server.kill();
            let _ = server.wait();
        }
        let _ = self.market.kill();
        let _ = self.market.wait();
    }
}

fn dumont(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dumont"));
    command
        .env("DUMONT_DATA_DIR", dir)
        .env_remove("DUMONT_URL")
        .env_remove("DUMONT_TOKEN");
    command.arg("--die-with-parent");
    command
}

fn child(command: &mut Command) -> Child {
    let quiet = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    quiet.spawn().unwrap()
}

fn read_when_there(path: &Path) -> String {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Ok(text) = std::fs::read_to_string(path) {
            return text;
        }
        assert!(Instant::now() < deadline, "{} never came", path.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn snapshots(value: &Value) -> usize {
    value["items"].as_array().or(value.as_array()).map_or(0, Vec::len)
}

#[test]
fn a_snapshot_whose_commit_was_not_written_down_is_there_once() {
    let mut world = World::start();
    world.serve(None);
    world.json(&["workspace", "create", "w", "--start", "exec sleep 100000"]);
    for (already, step) in [
        (0, "snapshot:commit"),
        (1, "snapshot:capture"),
        (2, "snapshot:commit:begin"),
    ] {
        world.stop();
        world.serve(Some(step));
        let output = world.cli(&["snapshot", "create", "w", "--no-wait"]);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        world.dies();
        world.serve(None);
        world.until(step, &["snapshot", "list", "w"], |list| {
            snapshots(list) == already + 1
        });
    }
    // Nothing is left in the way of the next one.
    world.until("idle", &["workspace", "show", "w"], |w| {
        w["workflow_id"].is_null()
    });
    world.json(&["snapshot", "create", "w"]);
    world.json(&["workspace", "delete", "w", "--yes"]);
    assert_eq!(world.alive(), 0);
}

/// The files are a mixture from the first write to the last proof, and the database says so whenever
/// the server dies in between.
#[test]
fn a_restore_that_dies_with_the_server_is_marked_until_it_is_whole() {
    let mut world = World::start();
    world.serve(None);
    world.json(&["workspace", "create", "w", "--start", "exec sleep 100000"]);
    world.json(&["snapshot", "create", "w"]);
    let steps = [
        ("restore:stop", false),
        ("restore:restore:begin", true),
        ("restore:restore", true),
        ("restore:validate", true),
        ("restore:start:begin", false),
    ];
    for (step, marked) in steps {
        world.stop();
        world.serve(Some(step));
        world.cli(&["snapshot", "restore", "w", "--no-wait"]);
        world.dies();
        assert_eq!(world.half_restored("w"), marked, "{step}");
        world.serve(None);
        world.until(step, &["workspace", "show", "w"], |w| w["workflow_id"].is_null());
        assert!(!world.half_restored("w"), "{step} went on and ended well");
        world.json(&["snapshot", "create", "w"]);
    }
    world.json(&["workspace", "delete", "w", "--yes"]);
}

#[test]
fn a_deploy_goes_on_after_the_servers_death_and_rents_no_more_than_it_needs() {
    let mut world = World::start();
    // Each at the end of the step, before its commit; `race` at its begin as well.
    let steps = [
        ("a", "deploy:search"),
        ("b", "deploy:race:begin"),
        ("c", "deploy:race"),
        ("d", "deploy:restore"),
        ("e", "deploy:validate"),
        ("f", "deploy:start"),
        ("g", "deploy:probe"),
        ("h", "deploy:switch"),
    ];
    for (name, step) in steps {
        world.serve(Some(step));
        world.cli(&[
            "workspace",
            "create",
            name,
            "--start",
            "exec sleep 100000",
            "--probe",
            "true",
            "--no-wait",
        ]);
        world.dies();
        world.serve(None);
        world.until(step, &["workspace", "show", name], |w| w["state"] == "running");
        world.stop();
    }
    // The teardown dies as well, once.
    world.serve(Some("teardown:destroy"));
    world.cli(&["workspace", "delete", "a", "--yes", "--no-wait"]);
    world.dies();
    world.serve(None);
    for (name, _) in &steps[1..] {
        world.json(&["workspace", "delete", name, "--yes"]);
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    while world.alive() > 0 {
        assert!(Instant::now() < deadline, "{} instances are left", world.alive());
        std::thread::sleep(Duration::from_millis(100));
    }
}
