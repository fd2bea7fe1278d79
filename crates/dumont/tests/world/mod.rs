//! A market and a server as a user starts them, and the command line against them.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "each test file uses a part, and a world that does not start fails its test"
)]

use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub const BINARY: &str = env!("CARGO_BIN_EXE_dumont");

/// What a person's own environment must not change.
const HIDDEN: [&str; 8] = [
    "NO_COLOR",
    "CLICOLOR_FORCE",
    "DUMONT_URL",
    "DUMONT_TOKEN",
    "DATABASE_URL",
    "VAST_URL",
    "VAST_API_KEY",
    "VAST_LIMITS",
];

pub struct World {
    pub dir: TempDir,
    market: Option<Child>,
    server: Option<Child>,
    pub admin_url: String,
    pub market_url: String,
    /// Of the server.
    env: Vec<(String, String)>,
}

impl World {
    /// Machines boot at once.
    pub fn start(machines: u32) -> Self {
        let mut world = Self::without_server(machines, Vec::new());
        world.serve();
        world
    }

    /// The market alone; `env` is for the server that comes.
    pub fn without_server(machines: u32, env: Vec<(String, String)>) -> Self {
        let machines = machines.to_string();
        Self::on_market(
            &["--time-scale", "0", "--seed", "7", "--machines", &machines],
            env,
        )
    }

    /// The same with a market of these arguments.
    pub fn on_market(args: &[&str], env: Vec<(String, String)>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let market = child(dir.path(), "market")
            .args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
            .args(args)
            .spawn()
            .unwrap();
        let at = wait_for(&dir.path().join("market/market.json"));
        let mut all = vec![
            ("VAST_URL".to_owned(), at["url"].as_str().unwrap().to_owned()),
            ("VAST_API_KEY".to_owned(), "test-key".to_owned()),
            ("VAST_LIMITS".to_owned(), "off".to_owned()),
        ];
        all.extend(env);
        Self {
            admin_url: at["admin_url"].as_str().unwrap().to_owned(),
            market_url: at["url"].as_str().unwrap().to_owned(),
            dir,
            market: Some(market),
            server: None,
            env: all,
        }
    }

    /// A server by itself, without an account anywhere.
    pub fn without_market() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            market: None,
            server: None,
            admin_url: String::new(),
            market_url: String::new(),
            env: Vec::new(),
        }
    }

    /// For the server that comes next.
    pub fn set_env(&mut self, name: &str, value: String) {
        self.env.retain(|(n, _)| n != name);
        self.env.push((name.to_owned(), value));
    }

    /// What it was.
    pub fn forget_env(&mut self, name: &str) -> String {
        let at = self.env.iter().position(|(n, _)| n == name).expect("it is set");
        self.env.swap_remove(at).1
    }

    pub fn serve(&mut self) {
        assert!(
            self.try_serve(&[]),
            "the server does not start: {}",
            self.log("serve")
        );
    }

    /// False if it ended instead of serving.
    pub fn try_serve(&mut self, args: &[&str]) -> bool {
        let file = self.dir.path().join("server.json");
        let _ = std::fs::remove_file(&file);
        let mut server = child(self.dir.path(), "serve")
            .args(["--listen", "127.0.0.1:0"])
            .args(args)
            .envs(self.env.iter().cloned())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(120);
        while read_json(&file).is_none() {
            if server.try_wait().unwrap().is_some() {
                return false;
            }
            assert!(
                Instant::now() < deadline,
                "the server hangs: {}",
                self.log("serve")
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        self.server = Some(server);
        true
    }

    /// `kill -9`, if it runs.
    pub fn kill_server(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().unwrap();
            server.wait().unwrap();
        }
    }

    /// Whether it runs and has not killed itself.
    pub fn serves(&mut self) -> bool {
        let ended = |server: &mut Child| server.try_wait().unwrap().is_some();
        if self.server.as_mut().is_some_and(ended) {
            self.server = None;
        }
        self.server.is_some()
    }

    pub fn market_pid(&self) -> u32 {
        self.market.as_ref().expect("a market").id()
    }

    /// What one of the two has written.
    pub fn log(&self, verb: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(format!("{verb}.log"))).unwrap_or_default()
    }

    /// The world's own directory, and nothing of the person who runs the tests.
    pub fn clean<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        clean(self.dir.path(), command)
    }

    /// The binary with a clean environment, in the world's own directory.
    pub fn command(&self) -> Command {
        command(self.dir.path())
    }

    pub fn run(&self, args: &[&str]) -> Run {
        Run::of(self.command().args(args))
    }

    /// It must succeed; what it printed, as JSON.
    pub fn json(&self, args: &[&str]) -> Value {
        let run = self.run(&[args, &["--json"]].concat());
        assert_eq!(run.code, 0, "{args:?}: {run:?}");
        serde_json::from_str(&run.out).unwrap_or_else(|e| panic!("{args:?}: {e}: {run:?}"))
    }

    /// Machines on offer, best first, as `vast:12345`.
    pub fn machines(&self) -> Vec<String> {
        let page = self.json(&["offers"]);
        let items = page["items"].as_array().unwrap();
        items
            .iter()
            .map(|o| format!("vast:{}", o["machine_id"].as_str().unwrap()))
            .collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for child in self.server.iter_mut().chain(&mut self.market) {
            // The market ends its machines when it is told to end, not when it is killed.
            if let Some(pid) = i32::try_from(child.id())
                .ok()
                .and_then(rustix::process::Pid::from_raw)
            {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
            let _ = child.wait();
        }
    }
}

/// What a command did.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Run {
    pub fn of(command: &mut Command) -> Self {
        let output = command.stdin(Stdio::null()).output().unwrap();
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new(BINARY);
    clean(dir, &mut command);
    command
}

fn clean<'a>(dir: &Path, command: &'a mut Command) -> &'a mut Command {
    for name in HIDDEN {
        command.env_remove(name);
    }
    command.current_dir(dir).env("DUMONT_DATA_DIR", dir)
}

fn child(dir: &Path, verb: &str) -> Command {
    let log = dir.join(format!("{verb}.log"));
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(log)
        .unwrap();
    let mut command = command(dir);
    command
        .args(["--die-with-parent", "--quiet", verb])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    command
}

fn wait_for(file: &Path) -> Value {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        if let Some(value) = read_json(file) {
            return value;
        }
        assert!(Instant::now() < deadline, "{} does not appear", file.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn read_json(file: &Path) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}
