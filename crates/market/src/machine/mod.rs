//! One rented machine: real processes, a real disk, an SSH server of its own.
//!
//! The hard part is dying. A machine must vanish *at once* when it is killed,
//! and it must not outlive the market even if the market itself is killed with
//! SIGKILL. Parent-death signals do not do it: they are bound to the *thread*
//! that forked and are lost on changes of credentials. Instead each machine has
//! an init whose standard input is a pipe that only the market holds. The
//! kernel closes the pipe however the market ends, the init reads end-of-file
//! and exits, and with the init of a PID namespace everything inside dies.

mod files;
mod namespace;
mod nvidia_smi;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::{TcpListener, TcpSocket};
use tokio::process::{Child, ChildStdin, Command};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use namespace::Kind;

use crate::error::MachineError;

/// How long a machine may take to come up or to die before we give up on it.
const INIT_LIMIT: Duration = Duration::from_secs(20);

/// What a machine is made of.
#[derive(Debug, Clone)]
pub struct Spec {
    pub instance: u64,
    pub dir: PathBuf,
    pub kind: Kind,
    pub gpus: Gpus,
    /// Variables of every process (identity), then those of the renter.
    pub identity: Vec<(String, String)>,
    pub env: Vec<(String, String)>,
    pub onstart: Option<String>,
}

/// The GPUs that were promised.
#[derive(Debug, Clone)]
pub struct Gpus {
    pub name: String,
    pub memory_mb: u64,
    pub driver: String,
    pub cuda: f64,
    pub watts: u32,
    pub compute_cap: u32,
    pub machine_id: u64,
    pub indices: Vec<u32>,
}

/// A machine that is up, or was.
#[derive(Debug)]
pub struct Machine {
    spec: Spec,
    port: u16,
    /// Bound but not listening: connections are refused until sshd is up.
    reserved: Mutex<Option<TcpSocket>>,
    init_pid: i32,
    ended: Arc<AtomicBool>,
    /// Dropping it ends the init, and with it the machine.
    lifeline: Mutex<Option<ChildStdin>>,
    /// Cancelled when the machine dies; cuts every connection and listener.
    pub dead: CancellationToken,
    pub tasks: TaskTracker,
}

impl Machine {
    /// Brings up the processes; the SSH port is reserved but refuses still.
    pub async fn start(spec: Spec) -> Result<Arc<Self>, MachineError> {
        files::lay_out(&spec)?;
        let socket = TcpSocket::new_v4().map_err(MachineError::io("socket"))?;
        socket
            .bind(([127, 0, 0, 1], 0).into())
            .map_err(MachineError::io("bind the ssh port"))?;
        let port = socket.local_addr().map_err(MachineError::io("ssh port"))?.port();
        let mut child = namespace::init_command(&spec)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(MachineError::io("start the machine's init"))?;
        let lifeline = child.stdin.take();
        wait_ready(&mut child).await?;
        let init_pid = namespace::init_pid(spec.kind, &child)?;
        let tasks = TaskTracker::new();
        let ended = Arc::new(AtomicBool::new(false));
        let mark = Arc::clone(&ended);
        tasks.spawn(async move {
            // Reaps it; also ends the wait in `kill`.
            let _ = child.wait().await;
            mark.store(true, Ordering::Release);
        });
        let machine = Arc::new(Self {
            spec,
            port,
            reserved: Mutex::new(Some(socket)),
            init_pid,
            ended,
            lifeline: Mutex::new(lifeline),
            dead: CancellationToken::new(),
            tasks,
        });
        machine.run_onstart();
        Ok(machine)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn init_pid(&self) -> i32 {
        self.init_pid
    }

    pub fn kind(&self) -> Kind {
        self.spec.kind
    }

    pub fn dir(&self) -> &Path {
        &self.spec.dir
    }

    /// The port, once, to accept on.
    pub fn listen(&self) -> Option<TcpListener> {
        lock(&self.reserved)
            .take()
            .and_then(|socket| socket.listen(256).ok())
    }

    /// A command inside: the environment of a login and the home directory.
    ///
    /// `env` is what the client sent and `on_tty` gives it a controlling terminal
    /// (the one on its standard input).
    pub fn command(&self, program: &[&str], env: &[(String, String)], on_tty: bool) -> Command {
        let mut command = namespace::enter(self, on_tty);
        command.args(program).env_clear();
        command
            .env("HOME", files::home(&self.spec))
            .env("PATH", files::search_path(&self.spec));
        command
            .env("USER", "root")
            .env("LOGNAME", "root")
            .env("SHELL", files::SHELL);
        command.envs(self.spec.identity.iter().map(|(k, v)| (k, v)));
        command.env("VAST_TCP_PORT_22", self.port.to_string());
        command
            .envs(files::login_environment(&self.spec.dir))
            .envs(env.iter().map(|(k, v)| (k, v)));
        if let Some((key, value)) = namespace::mark(&self.spec) {
            command.env(key, value);
        }
        command.process_group(0);
        command
    }

    /// The terminal multiplexer of the machine, else the host's.
    pub fn open_pty(&self) -> std::io::Result<std::os::fd::OwnedFd> {
        namespace::open_pty(self)
    }

    /// Ends everything at once; returns when nothing of it is left. Idempotent.
    pub async fn kill(&self) {
        self.abandon();
        self.tasks.close();
        if tokio::time::timeout(INIT_LIMIT, self.tasks.wait()).await.is_err() {
            tracing::warn!(
                instance = self.spec.instance,
                "something of the machine does not end"
            );
        }
    }

    /// As [`Self::kill`] where nobody can wait for the end.
    pub fn abandon(&self) {
        self.dead.cancel();
        lock(&self.reserved).take();
        namespace::kill_init(self);
        lock(&self.lifeline).take();
    }

    /// Whether the init is known to be gone, so that its pid may be another's.
    fn tasks_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    fn run_onstart(self: &Arc<Self>) {
        if self.spec.onstart.is_none() {
            return;
        }
        let line = "exec bash ~/onstart.sh >>~/onstart.log 2>&1 </dev/null";
        let mut command = self.command(&[files::SHELL, "-c", line], &[], false);
        let spawned = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match spawned {
            Ok(mut child) => {
                self.tasks.spawn(async move {
                    let _ = child.wait().await;
                });
            }
            Err(error) => tracing::warn!(instance = self.spec.instance, %error, "onstart did not start"),
        }
    }
}

async fn wait_ready(child: &mut Child) -> Result<(), MachineError> {
    let Some(stdout) = child.stdout.take() else {
        return Err(MachineError::Init("it has no output".to_owned()));
    };
    let mut line = String::new();
    let read = tokio::time::timeout(INIT_LIMIT, BufReader::new(stdout).read_line(&mut line)).await;
    if matches!(read, Ok(Ok(_))) && line.trim() == "ready" {
        return Ok(());
    }
    let mut why = String::new();
    if let Some(stderr) = child.stderr.take() {
        let _ =
            tokio::time::timeout(Duration::from_secs(1), stderr.take(4096).read_to_string(&mut why)).await;
    }
    Err(MachineError::Init(why.trim().to_owned()))
}

pub fn shell() -> &'static str {
    files::SHELL
}

pub use files::workspace;

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub use namespace::probe;
