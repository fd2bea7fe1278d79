//! `dumont doctor`, as a user runs it: on nothing, on an installation, and with a real try on
//! the marketplace emulator, ended in every way a try can end.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot run the binary fails"
)]

#[path = "../../server/tests/world/bucket.rs"]
#[allow(dead_code, reason = "the server's tests use the rest")]
mod bucket;

use bucket::InProcess;
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

struct Market {
    dir: TempDir,
    child: Child,
    url: String,
    admin: String,
}

impl Drop for Market {
    fn drop(&mut self) {
        // Asked to, so that it ends its machines.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

fn dumont(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dumont"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    command
        .env_clear()
        .env("PATH", path)
        .env("HOME", dir)
        .env("DUMONT_DATA_DIR", dir);
    command.current_dir(dir).stdin(Stdio::null());
    command
}

fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} in vain");
        std::thread::sleep(Duration::from_millis(50));
    }
}

impl Market {
    /// Boots take as long as real ones times `time_scale`.
    fn open(time_scale: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let child = dumont(dir.path())
            .args([
                "market",
                "--listen",
                "127.0.0.1:0",
                "--admin-listen",
                "127.0.0.1:0",
            ])
            .args(["--machines", "30", "--time-scale", time_scale])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let file = dir.path().join("market/market.json");
        let about: Value = wait_for("the market opens", || {
            serde_json::from_str(&std::fs::read_to_string(&file).ok()?).ok()
        });
        let text = |key: &str| about[key].as_str().unwrap().to_owned();
        Self {
            url: text("url"),
            admin: text("admin_url"),
            dir,
            child,
        }
    }

    fn doctor(&self, args: &[&str]) -> Command {
        let mut command = dumont(&self.dir.path().join("home"));
        std::fs::create_dir_all(self.dir.path().join("home")).unwrap();
        command.arg("--json").arg("doctor").args(args);
        command.env("VAST_URL", &self.url).env("VAST_API_KEY", "test-key");
        command
    }

    /// The market's own book: `alive` and `created`.
    fn ledger(&self) -> (u64, u64) {
        use std::io::{Read, Write};
        let address = self.admin.strip_prefix("http://").unwrap();
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let request = format!("GET /admin/ledger HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        let ledger: Value = serde_json::from_str(body).unwrap();
        let totals = &ledger["totals"];
        (
            totals["alive"].as_u64().unwrap(),
            totals["created"].as_u64().unwrap(),
        )
    }
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

fn level<'a>(report: &'a Value, name: &str) -> Vec<&'a str> {
    let checks = report["checks"].as_array().unwrap();
    let named = checks.iter().filter(|c| c["name"] == name);
    named.map(|c| c["level"].as_str().unwrap()).collect()
}

#[test]
fn on_nothing_it_says_what_the_first_start_will_make() {
    let market = Market::open("0");
    let output = market
        .doctor(&[])
        .env("DUMONT_DATA_DIR", market.dir.path().join("new"))
        .output()
        .unwrap();
    let report = report(&output);
    assert!(output.status.success(), "{report:#}");
    assert_eq!(level(&report, "data directory"), ["warning"], "{report:#}");
    assert_eq!(level(&report, "database"), ["warning"]);
    assert_eq!(level(&report, "provider key"), ["ok"]);
    assert_eq!(level(&report, "provider balance"), ["ok"]);
    assert_eq!(level(&report, "provider clock"), ["ok"]);
    assert!(!market.dir.path().join("new").exists(), "it makes nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bucket_that_is_set_is_looked_at() {
    let market = Market::open("0");
    let store = InProcess::start().await;
    let looked = |secret: &str| {
        let mut doctor = market.doctor(&[]);
        doctor
            .env("S3_BUCKET", bucket::BUCKET)
            .env("S3_ADDRESSING", "path")
            .env("AWS_ENDPOINT_URL", format!("http://{}", store.addr))
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", bucket::KEY)
            .env("AWS_SECRET_ACCESS_KEY", secret);
        doctor.output().unwrap()
    };
    let output = looked(bucket::SECRET);
    let found = report(&output);
    assert!(output.status.success(), "{found:#}");
    for name in [
        "store",
        "store list",
        "store put",
        "store get",
        "store delete",
        "store clock",
        "store conditions",
        "store versions",
        "store lengths",
    ] {
        assert_eq!(level(&found, name).len(), 1, "{name}: {found:#}");
        assert_ne!(level(&found, name), ["failed"], "{name}: {found:#}");
    }
    let output = looked("not-the-secret");
    let found = report(&output);
    assert_eq!(output.status.code(), Some(1), "{found:#}");
    assert_eq!(level(&found, "store list"), ["failed"], "{found:#}");
}

#[test]
fn what_is_wrong_is_named_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    // No key: enough for machines of one's own, and it says that this is all.
    let output = dumont(dir.path()).args(["--json", "doctor"]).output().unwrap();
    let found = report(&output);
    assert_eq!(output.status.code(), Some(0), "{found:#}");
    assert_eq!(level(&found, "provider key"), ["warning"], "{found:#}");
    let checks = found["checks"].as_array().unwrap();
    let key = checks.iter().find(|c| c["name"] == "provider key").unwrap();
    let text = |field: &str| key[field].as_str().unwrap().to_owned();
    assert!(text("detail").contains("machines of your own only"), "{key:#}");
    assert!(text("hint").contains("export VAST_API_KEY"), "{key:#}");
    // An address without a key is a slip.
    let mut slip = dumont(dir.path());
    slip.args(["--json", "doctor"])
        .env("VAST_URL", "http://127.0.0.1:9");
    let output = slip.output().unwrap();
    let found = report(&output);
    assert_eq!(output.status.code(), Some(1), "{found:#}");
    assert_eq!(level(&found, "settings"), ["failed"], "{found:#}");
    // What rents needs an account.
    let mut rents = dumont(dir.path());
    let output = rents
        .args(["doctor", "--provider", "vast", "--spend", "1"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("VAST_API_KEY"),
        "{output:?}"
    );

    // A provider that is not there, and a file that is no database.
    std::fs::write(
        dir.path().join("dumont.db"),
        "this is no database, it is a text file",
    )
    .unwrap();
    let mut doctor = dumont(dir.path());
    doctor
        .args(["--json", "doctor"])
        .env("VAST_URL", "http://127.0.0.1:9");
    let output = doctor.env("VAST_API_KEY", "test-key").output().unwrap();
    let found = report(&output);
    assert_eq!(output.status.code(), Some(1), "{found:#}");
    assert_eq!(level(&found, "provider key"), ["failed"], "{found:#}");
    assert_eq!(level(&found, "database"), ["failed"], "{found:#}");
    let failed = found["checks"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|c| c["level"] == "failed");
    for check in failed {
        assert!(!check["hint"].as_str().unwrap().is_empty(), "{check}");
    }
}

#[test]
fn a_try_rents_snapshots_restores_and_destroys() {
    let market = Market::open("0");
    let args = ["--provider", "vast", "--spend", "5"];
    let output = market.doctor(&args).output().unwrap();
    let found = report(&output);
    assert!(
        output.status.success(),
        "{found:#}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let steps: Vec<_> = found["live"]["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["step"].as_str().unwrap())
        .collect();
    assert_eq!(
        steps,
        ["import", "deploy", "snapshot", "restore", "destroy"],
        "{found:#}"
    );
    assert_eq!(found["live"]["left_rented"], 0);
    let (alive, created) = market.ledger();
    assert_eq!(alive, 0, "{found:#}");
    assert!(created >= 1);

    // The private installation is whole: its own database, schema and store.
    let inside = market.dir.path().join("home/doctor");
    let output = market
        .doctor(&[])
        .env("DUMONT_DATA_DIR", inside)
        .output()
        .unwrap();
    let found = report(&output);
    for name in [
        "database",
        "database schema",
        "database clock",
        "store put",
        "store list",
        "store get",
        "store conditions",
        "store delete",
        "provider SSH key",
    ] {
        assert_eq!(level(&found, name), ["ok"], "{name}: {found:#}");
    }
}

#[test]
fn too_little_money_rents_nothing() {
    let market = Market::open("0");
    let output = market
        .doctor(&["--provider", "vast", "--spend", "0.0001"])
        .output()
        .unwrap();
    let found = report(&output);
    assert_eq!(output.status.code(), Some(1), "{found:#}");
    assert_eq!(found["live"]["error"]["code"], "no_offers", "{found:#}");
    assert_eq!(market.ledger(), (0, 0));
}

/// Boots take long here, so that the end comes while a machine is paid for.
#[test]
fn a_try_that_is_interrupted_or_killed_leaves_nothing_rented() {
    let market = Market::open("1");
    let args = ["--provider", "vast", "--spend", "5"];
    let begin = || {
        let mut command = market.doctor(&args);
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let renting = |before: u64| {
        wait_for("a machine is rented", || {
            let (alive, created) = market.ledger();
            (alive > 0 && created > before).then_some(created)
        })
    };

    // Ctrl-C: it destroys, and says so.
    let child = begin();
    let created = renting(0);
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    let output = child.wait_with_output().unwrap();
    let found = report(&output);
    assert_eq!(output.status.code(), Some(1), "{found:#}");
    assert_eq!(found["live"]["error"]["code"], "interrupted", "{found:#}");
    assert_eq!(market.ledger().0, 0, "{found:#}");

    // kill -9: nobody destroys, until the next run.
    let mut child = begin();
    renting(created);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(market.ledger().0 > 0);
    let output = market
        .doctor(&["--provider", "vast", "--spend", "0"])
        .output()
        .unwrap();
    let found = report(&output);
    assert!(output.status.success(), "{found:#}");
    assert_eq!(found["live"]["left_rented"], 0);
    assert_eq!(market.ledger().0, 0, "{found:#}");
}
