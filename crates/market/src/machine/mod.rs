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
mod network;
mod nvidia_smi;

use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use namespace::Kind;
pub use network::can_have_network;

use crate::error::MachineError;
use crate::net::Traffic;

/// How long a machine may take to come up or to die before we give up on it.
const INIT_LIMIT: Duration = Duration::from_secs(20);

/// What Vast's images print at every login until the renter switches it off.
const NOISE: &str = "[ -e ~/.no_auto_tmux ] || { echo 'Welcome to vast.ai. If authentication fails, try again \
after a few seconds, and double check your ssh key.'; echo 'Have fun!' >&2; }";

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
    /// The image's own program, where nothing is put into the container.
    pub program: Option<Vec<String>>,
    /// A directory of the host, and where it is mounted.
    pub volume: Option<(PathBuf, String)>,
    /// The size of the workspace's file system, where it is one of its own.
    pub disk_mb: Option<u64>,
    /// The speed of its network, where it has one of its own.
    pub mbit: Option<u64>,
    /// What becomes what in command lines.
    pub rewrite: Option<(String, String)>,
    /// Logins begin with a banner, unless the renter has switched it off.
    pub noisy: bool,
    /// Its image has busybox and nothing else.
    pub busybox: bool,
    /// Counts what goes over SSH.
    pub traffic: Arc<Traffic>,
    /// Where what goes over SSH is kept.
    pub tap: Option<PathBuf>,
}

impl Spec {
    /// The renter's variables without the docker options among them.
    fn env_variables(&self) -> Vec<(String, String)> {
        let is_variable =
            |(k, _): &&(String, String)| !k.starts_with('-') && !k.is_empty() && !k.contains('=');
        self.env.iter().filter(is_variable).cloned().collect()
    }
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
    pub health: GpuHealth,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GpuHealth {
    Well,
    DriverMismatch,
    Missing,
}

/// A machine that is up, or was.
#[derive(Debug)]
pub struct Machine {
    spec: Spec,
    address: Ipv4Addr,
    port: u16,
    /// Bound but not listening: connections are refused until sshd is up.
    reserved: Mutex<Option<TcpSocket>>,
    init_pid: i32,
    ended: Arc<AtomicBool>,
    /// Dropping it ends the init, and with it the machine.
    lifeline: Mutex<Option<ChildStdin>>,
    tap: Mutex<Option<File>>,
    program: Mutex<Option<Child>>,
    /// Cancelled when the machine dies; cuts every connection and listener.
    pub dead: CancellationToken,
    /// False while no packet gets through to it.
    pub plugged: watch::Sender<bool>,
    pub tasks: TaskTracker,
}

impl Machine {
    /// Brings up the processes; the SSH port is reserved but refuses still.
    pub async fn start(spec: Spec) -> Result<Arc<Self>, MachineError> {
        if spec.busybox && (spec.kind == Kind::Directory || !Path::new(namespace::BUSYBOX).exists()) {
            // As docker says it: there is no such image.
            return Err(MachineError::Init(format!(
                "manifest unknown: it needs namespaces and {}",
                namespace::BUSYBOX
            )));
        }
        files::lay_out(&spec)?;
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
        let address = match spec.mbit {
            None => Ipv4Addr::LOCALHOST,
            Some(mbit) => network::set_up(init_pid, mbit).await?,
        };
        let bind = move || {
            let socket = TcpSocket::new_v4()?;
            socket.bind((address, 0).into())?;
            Ok(socket)
        };
        let bound = if spec.mbit.is_some() {
            network::within(init_pid, bind).await
        } else {
            bind()
        };
        let socket = bound.map_err(MachineError::io("bind the ssh port"))?;
        let port = socket.local_addr().map_err(MachineError::io("ssh port"))?.port();
        let tasks = TaskTracker::new();
        let ended = Arc::new(AtomicBool::new(false));
        let mark = Arc::clone(&ended);
        tasks.spawn(async move {
            // Reaps it; also ends the wait in `kill`.
            let _ = child.wait().await;
            mark.store(true, Ordering::Release);
        });
        let tap = spec.tap.as_deref().map(open_tap).transpose();
        let tap = Mutex::new(tap.map_err(MachineError::io("open the tap"))?);
        let machine = Arc::new(Self {
            spec,
            tap,
            address,
            port,
            reserved: Mutex::new(Some(socket)),
            init_pid,
            ended,
            lifeline: Mutex::new(lifeline),
            program: Mutex::new(None),
            dead: CancellationToken::new(),
            plugged: watch::Sender::new(true),
            tasks,
        });
        machine.run_onstart();
        machine.run_program()?;
        Ok(machine)
    }

    /// Where it is reached from outside.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn init_pid(&self) -> i32 {
        self.init_pid
    }

    pub fn traffic(&self) -> Arc<Traffic> {
        Arc::clone(&self.spec.traffic)
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

    /// A listener on its own loopback; port 0 picks one.
    pub async fn listen_inside(&self, port: u16) -> std::io::Result<TcpListener> {
        let at = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        if self.spec.mbit.is_none() {
            return TcpListener::bind(at).await;
        }
        let bind = move || std::net::TcpListener::bind(at);
        let listener = network::within(self.init_pid, bind).await?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    }

    /// A connection as one of its own processes would make it.
    pub async fn connect_inside(&self, host: String, port: u16) -> std::io::Result<TcpStream> {
        if self.spec.mbit.is_none() {
            return TcpStream::connect((host.as_str(), port)).await;
        }
        let connect = move || std::net::TcpStream::connect((host.as_str(), port));
        let stream = network::within(self.init_pid, connect).await?;
        stream.set_nonblocking(true)?;
        TcpStream::from_std(stream)
    }

    /// What a command line that came over SSH becomes on this machine.
    pub fn line(&self, line: &str) -> String {
        let line = match &self.spec.rewrite {
            Some((find, replace)) => line.replace(find, replace),
            None => line.to_owned(),
        };
        if self.spec.noisy {
            format!("{NOISE}\n{line}")
        } else {
            line
        }
    }

    pub fn shell(&self) -> &'static str {
        files::shell(&self.spec)
    }

    /// Keeps bytes that a client sent or got, if somebody wants them.
    pub fn tap(&self, bytes: &[u8]) {
        if let Some(file) = lock(&self.tap).as_mut()
            && let Err(error) = file.write_all(bytes)
        {
            tracing::warn!(%error, "the tap misses something");
        }
    }

    /// What a login finds in its environment, but for who and where it is.
    pub fn login_variables(&self) -> Vec<(String, String)> {
        let mut all = vec![("PATH".to_owned(), files::search_path(&self.spec))];
        all.extend(self.spec.identity.iter().cloned());
        all.push(("VAST_TCP_PORT_22".to_owned(), self.port.to_string()));
        all.extend(files::login_environment(&self.spec.dir));
        all
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
            .env("USER", "root")
            .env("LOGNAME", "root")
            .env("SHELL", self.shell())
            .envs(self.login_variables())
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

    /// The image's own program, once, for who waits for its end.
    pub fn take_program(&self) -> Option<Child> {
        lock(&self.program).take()
    }

    fn run_program(&self) -> Result<(), MachineError> {
        let Some(words) = &self.spec.program else {
            return Ok(());
        };
        let shell = self.shell();
        let mut argv = vec![shell, "-c", "exec \"$@\" >>~/onstart.log 2>&1 </dev/null", shell];
        argv.extend(words.iter().map(String::as_str));
        let mut command = self.command(&argv, &self.spec.env_variables(), false);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command
            .spawn()
            .map_err(MachineError::io("start the image's program"))?;
        *lock(&self.program) = Some(child);
        Ok(())
    }

    fn run_onstart(self: &Arc<Self>) {
        if self.spec.onstart.is_none() {
            return;
        }
        let shell = self.shell();
        let line = format!("exec {shell} ~/onstart.sh >>~/onstart.log 2>&1 </dev/null");
        let mut command = self.command(&[shell, "-c", &line], &[], false);
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

/// Beside the disks: a machine's own goes with it.
fn open_tap(path: &Path) -> std::io::Result<File> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    File::options().create(true).append(true).open(path)
}

pub use files::workspace;

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub use namespace::probe;
