//! A real PostgreSQL of one's own, from the programs that the system has installed.
//!
//! A cluster belongs to the process that starts it, and is nobody else's: making and starting
//! one takes well under a second, less than any scheme to share one between test processes
//! costs in care. What must hold is that none outlives its process, however that ends:
//!
//! - dropped, it is stopped and its directory removed;
//! - its process killed, the kernel kills it: `setpriv --pdeathsig`, asked for from a thread
//!   that lives as long as the cluster, since the kernel means the thread, not the process;
//! - the directory that is left then is swept by the next start: its owner held a lock on a
//!   file in it, which ended with the owner. A server that slipped through notices within a
//!   minute that its directory is gone, and ends.
//!
//! `initdb` and `postgres` refuse to run as root; as root they run as the user `postgres`,
//! which the Debian package makes. Data is not synced to disk (unless asked for): it survives
//! a kill of every process, which is what tests do, not a power cut.

mod programs;
mod sweep;

pub use programs::Programs;

use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};
use tempfile::TempDir;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "no PostgreSQL server is installed (initdb was looked for in /usr/lib/postgresql/*/bin and on PATH); \
         install it, for example with: apt-get install postgresql"
    )]
    NotInstalled,
    #[error("PostgreSQL does not run as root, and there is no user postgres to run it as")]
    NoUser,
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    #[error("{program} failed: {output}")]
    Failed { program: &'static str, output: String },
    #[error("postgres did not become ready: {log}")]
    NotReady { log: String },
}

pub type Result<T> = std::result::Result<T, Error>;

fn at(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |source| Error::Io { what, source }
}

/// How a cluster is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Undoes what is open, tells its clients, and closes its files.
    Fast,
    /// As a crash: the next start recovers.
    Immediate,
}

/// A cluster that ends with this value.
#[derive(Debug)]
pub struct Cluster {
    programs: Programs,
    /// Holds the data, the socket and the log; outlived by the server.
    dir: TempDir,
    _owner: fs::File,
    port: u16,
    password: String,
    settings: Vec<String>,
    server: Mutex<Option<Server>>,
}

impl Cluster {
    /// Makes a cluster and starts it.
    pub fn start() -> Result<Self> {
        // Small segments: a new cluster writes one whole.
        Self::start_as(&["--wal-segsize=1"], &[HASTY, SHARED].concat())
    }

    /// One that syncs to disk as PostgreSQL does by itself, for measurements. `settings` are
    /// `name=value`.
    pub fn start_durable(settings: &[&str]) -> Result<Self> {
        Self::start_as(&[], &[settings, SHARED].concat())
    }

    fn start_as(initdb: &[&str], settings: &[&str]) -> Result<Self> {
        let programs = Programs::find()?;
        let (dir, owner) = sweep::owned_dir(&programs)?;
        let password = password();
        init(&programs, dir.path(), &password, initdb)?;
        let settings: Vec<String> = settings.iter().map(|s| (*s).to_owned()).collect();
        let (port, server) = serve_anywhere(&programs, dir.path(), &settings)?;
        Ok(Self {
            programs,
            dir,
            _owner: owner,
            port,
            password,
            settings,
            server: Mutex::new(Some(server)),
        })
    }

    /// Starts it again after [`Self::stop`], at the same address.
    pub fn resume(&self) -> Result<()> {
        let mut server = self.server.lock().unwrap_or_else(|e| e.into_inner());
        if server.is_none() {
            *server = Some(Server::start(
                &self.programs,
                self.dir.path(),
                self.port,
                &self.settings,
            )?);
        }
        Ok(())
    }

    /// Stops it; waits until it has ended.
    pub fn stop(&self, how: Stop) {
        let server = self.server.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(server) = server {
            server.end(match how {
                Stop::Fast => Signal::INT,
                Stop::Immediate => Signal::QUIT,
            });
        }
    }

    /// A new database without tables, and its URL.
    pub fn create_database(&self, name: &str) -> Result<String> {
        self.sql("postgres", &format!("CREATE DATABASE \"{name}\""))?;
        Ok(self.url(name))
    }

    /// Through the socket that only this user can reach.
    pub fn url(&self, database: &str) -> String {
        format!(
            "postgres://postgres@localhost:{}/{database}?host={}",
            self.port,
            self.dir.path().display()
        )
    }

    /// Over the network, with the password.
    pub fn tcp_url(&self, database: &str) -> String {
        let password: String = self.password.bytes().map(|b| format!("%{b:02x}")).collect();
        format!(
            "postgres://postgres:{password}@127.0.0.1:{}/{database}",
            self.port
        )
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Of the user `postgres`; holds characters that URLs do not like.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// Runs SQL text as another program would; the answer as `psql` prints it, bare.
    pub fn sql(&self, database: &str, text: &str) -> Result<String> {
        let mut psql = self.programs.command("psql");
        psql.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align"])
            .args(["--set=ON_ERROR_STOP=1", "--username=postgres"])
            .arg(format!("--host={}", self.dir.path().display()))
            .arg(format!("--port={}", self.port))
            .arg(format!("--dbname={database}"))
            .arg(format!("--command={text}"));
        programs::run("psql", psql)
    }

    fn log(dir: &Path) -> PathBuf {
        dir.join("log")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop(Stop::Immediate);
    }
}

/// Trusts the socket, whose directory is private; asks everybody else for the password.
fn init(programs: &Programs, dir: &Path, password: &str, more: &[&str]) -> Result<()> {
    let file = dir.join("password");
    fs::write(&file, password).map_err(at("write the password"))?;
    programs.give(&file)?;
    let mut initdb = programs.command("initdb");
    initdb
        .arg(format!("--pgdata={}", dir.join("data").display()))
        .arg(format!("--pwfile={}", file.display()))
        .args([
            "--username=postgres",
            "--auth-local=trust",
            "--auth-host=scram-sha-256",
        ])
        // A locale whose order is not that of bytes, as most users' databases have.
        .args([
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--locale-provider=icu",
            "--icu-locale=en-US",
        ])
        .arg("--no-sync")
        .args(more);
    programs::run("initdb", initdb).map(drop)
}

/// On a free port; another one where somebody was faster.
fn serve_anywhere(programs: &Programs, dir: &Path, settings: &[String]) -> Result<(u16, Server)> {
    let mut tries = 0;
    loop {
        let port = free_port()?;
        match Server::start(programs, dir, port, settings) {
            Err(Error::NotReady { log }) if log.contains("could not bind") && tries < 10 => tries += 1,
            started => return started.map(|server| (port, server)),
        }
    }
}

/// For tests: what is lost with the power is lost with the test.
const HASTY: &[&str] = &["fsync=off", "full_page_writes=off", "shared_buffers=16MB"];
const SHARED: &[&str] = &[
    "max_connections=100",
    "dynamic_shared_memory_type=mmap",
    "listen_addresses=127.0.0.1",
];

/// A running server, watched by the thread that started it.
#[derive(Debug)]
struct Server {
    pid: Pid,
    ended: mpsc::Receiver<io::Result<ExitStatus>>,
}

impl Server {
    /// Starts it and waits until it answers.
    fn start(programs: &Programs, dir: &Path, port: u16, settings: &[String]) -> Result<Self> {
        let data = dir.join("data");
        let log = fs::File::create(Cluster::log(dir)).map_err(at("create the server's log"))?;
        let mut postgres = programs.bound_command("postgres");
        postgres.arg("-D").arg(&data).arg("-p").arg(port.to_string());
        for setting in settings {
            postgres.arg("-c").arg(setting);
        }
        postgres
            .arg("-c")
            .arg(format!("unix_socket_directories={}", dir.display()))
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone().map_err(at("open the server's log"))?)
            .stderr(log);
        let (started, start) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        std::thread::spawn(move || match postgres.spawn() {
            Ok(mut child) => {
                let _ = started.send(Ok(Pid::from_child(&child)));
                let _ = end.send(child.wait());
            }
            Err(e) => drop(started.send(Err(e))),
        });
        let pid = start
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("its thread ended")))
            .map_err(at("start postgres"))?;
        let server = Self { pid, ended };
        server.until_ready(dir)?;
        Ok(server)
    }

    /// The server says so itself, in the last line of its pid file.
    fn until_ready(&self, dir: &Path) -> Result<()> {
        let (pid_file, give_up) = (dir.join("data/postmaster.pid"), Instant::now() + READY_WITHIN);
        loop {
            let text = fs::read_to_string(&pid_file).unwrap_or_default();
            let mut lines = text.lines();
            let own = lines.next() == Some(&self.pid.as_raw_nonzero().to_string());
            if own && lines.nth(6).is_some_and(|status| status.trim() == "ready") {
                return Ok(());
            }
            let ended = self.ended.recv_timeout(Duration::from_millis(10));
            let running = matches!(ended, Err(mpsc::RecvTimeoutError::Timeout));
            if !running || Instant::now() > give_up {
                if running {
                    let _ = kill_process(self.pid, Signal::QUIT);
                }
                let log = fs::read_to_string(Cluster::log(dir)).unwrap_or_default();
                return Err(Error::NotReady { log });
            }
        }
    }

    fn end(self, signal: Signal) {
        let _ = kill_process(self.pid, signal);
        let _ = self.ended.recv();
    }
}

/// Longer than any machine needs that is not stuck.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// Below the range from which the kernel takes the ports of outgoing connections, so that a
/// restart finds its port free.
fn free_port() -> Result<u16> {
    loop {
        let port = rand::random_range(15_000..32_000);
        match std::net::TcpListener::bind(("127.0.0.1", port)) {
            Ok(_) => return Ok(port),
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {}
            Err(e) => return Err(at("look for a free port")(e)),
        }
    }
}

fn password() -> String {
    format!("p@ss:/ %?#&{:016x}", rand::random::<u64>())
}
