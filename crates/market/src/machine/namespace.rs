//! How a machine's processes are fenced in, per kind of isolation.
//!
//! With namespaces, `unshare` makes them and a shell script builds the root:
//! a tmpfs with the host's `/usr` read-only, the instance's own `/etc`,
//! `/root`, `/tmp` and `/workspace`, its own `/proc` and terminals. Commands
//! enter with `nsenter`. Both come with util-linux; doing it here would need
//! code between fork and exec, which is unsafe. The network is the host's: a
//! machine's loopback is ours, which is what makes its ports reachable.
//!
//! Without namespaces, processes are found by a mark in their environment:
//! process groups lose those that call setsid, a mark is inherited.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};

use super::{Machine, Spec};
use crate::config::Isolation;
use crate::error::{MachineError, MarketError};

/// The isolation in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Namespaces, made as root.
    Namespace,
    /// Namespaces below a user namespace, made without privileges.
    UserNamespace,
    Directory,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::UserNamespace => "user-namespace",
            Self::Directory => "directory",
        }
    }
}

/// Static, as Debian's `busybox-static` has it.
pub(super) const BUSYBOX: &str = "/bin/busybox";

const UNSHARE: &[&str] = &[
    "--mount",
    "--uts",
    "--ipc",
    "--pid",
    "--fork",
    "--kill-child=KILL",
    "--propagation",
    "private",
];
const AS_USER: &[&str] = &["--user", "--map-root-user"];

/// `$1` is the instance's directory, `$2` its host name, `$3` the MB of a small workspace, if it
/// has one, `$4` the busybox that is all of its programs, `$5` a volume and `$6` where it is mounted.
/// Ends as the init.
const INIT: &str = r#"
set -e
D=$1; R=$1/mnt
mount -t tmpfs -o mode=755 machine "$R"
for d in usr proc sys dev etc root tmp workspace opt run run/sshd home var var/tmp var/log .old; do mkdir "$R/$d"; done
chmod 1777 "$R/var/tmp"
if [ -n "$4" ]; then
  mkdir "$R/bin"; cp "$4" "$R/bin/busybox"
else
  mount --rbind /usr "$R/usr"
  mount -o remount,bind,ro "$R/usr" 2>/dev/null || :
  for d in bin sbin lib lib32 lib64 libx32; do
    if [ -L /$d ]; then ln -s "$(readlink /$d)" "$R/$d"
    elif [ -d /$d ]; then mkdir "$R/$d"; mount --rbind /$d "$R/$d"; fi
  done
fi
for d in etc root tmp workspace opt; do mount --bind "$D/$d" "$R/$d"; done
[ -z "$3" ] || mount -t tmpfs -o "size=${3}m,mode=755" small "$R/workspace"
for d in ssl alternatives ca-certificates; do
  if [ -d /etc/$d ]; then mkdir -p "$R/etc/$d"; mount --bind /etc/$d "$R/etc/$d"; fi
done
mount -t proc proc "$R/proc"
[ -z "$4" ] || chroot "$R" /bin/busybox --install -s /bin
mkdir "$R/dev/pts" "$R/dev/shm"
for n in null zero full random urandom tty; do touch "$R/dev/$n"; mount --bind /dev/$n "$R/dev/$n"; done
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$R/dev/pts" 2>/dev/null || :
ln -s pts/ptmx "$R/dev/ptmx"
ln -s /proc/self/fd "$R/dev/fd"; ln -s fd/0 "$R/dev/stdin"
ln -s fd/1 "$R/dev/stdout"; ln -s fd/2 "$R/dev/stderr"
mount -t tmpfs -o mode=1777 shm "$R/dev/shm"
[ -z "$5" ] || { mkdir "$R/.volume"; mount --bind "$5" "$R/.volume"; }
cd "$R"
pivot_root . .old
umount -l /.old; rmdir /.old
# Only here: before, a link of the renter's on the way would have led to the host's files.
[ -z "$5" ] || { mkdir -p "$6"; mount -o bind /.volume "$6"; umount -l /.volume; rmdir /.volume; }
echo "$2" > /proc/sys/kernel/hostname || :
cd /root
trap '' CHLD HUP INT TERM
echo ready
exec cat >/dev/null 2>&1
"#;

/// `$1` is the mark. Lives in the host's namespaces; kills all that bear it.
const DIRECTORY_INIT: &str = r#"
trap '' HUP INT TERM
echo ready
cat >/dev/null
while :; do
  found=
  for f in $(grep -lzsxF -e "$1" /proc/[0-9]*/environ); do
    p=${f#/proc/}; kill -KILL "${p%/environ}" 2>/dev/null && found=1
  done
  [ -n "$found" ] || exit 0
done
"#;

/// Finds out what this host allows.
pub async fn probe(wanted: Isolation) -> Result<Kind, MarketError> {
    if wanted == Isolation::Directory {
        return Ok(Kind::Directory);
    }
    let mut why = String::new();
    for kind in [Kind::Namespace, Kind::UserNamespace] {
        let mut command = unshare(kind);
        command
            .args(["--mount-proc", "true"])
            .stdin(Stdio::null())
            .kill_on_drop(true);
        match command.output().await {
            Ok(output) if output.status.success() => return Ok(kind),
            Ok(output) => why = String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => why = error.to_string(),
        }
    }
    match wanted {
        Isolation::Namespace => Err(MarketError::NoNamespaces(why)),
        _ => {
            tracing::warn!(%why, "no namespaces here: machines are plain processes");
            Ok(Kind::Directory)
        }
    }
}

fn unshare(kind: Kind) -> Command {
    let mut command = Command::new("unshare");
    if kind == Kind::UserNamespace {
        command.args(AS_USER);
    }
    command.args(UNSHARE);
    command
}

pub(super) fn init_command(spec: &Spec) -> Command {
    let mut command = match spec.kind {
        Kind::Directory => {
            let mut command = Command::new("sh");
            command.args(["-c", DIRECTORY_INIT, "init"]);
            if let Some((key, value)) = mark(spec) {
                command.arg(format!("{key}={value}"));
            }
            command
        }
        kind => {
            let mut command = unshare(kind);
            if spec.mbit.is_some() {
                command.arg("--net");
            }
            command
                .args(["sh", "-c", INIT, "init"])
                .arg(&spec.dir)
                .arg(format!("C.{}", spec.instance))
                .arg(spec.disk_mb.map(|mb| mb.to_string()).unwrap_or_default())
                .arg(if spec.busybox { BUSYBOX } else { "" });
            if let Some((volume, path)) = &spec.volume {
                command.arg(volume).arg(path);
            }
            command
        }
    };
    // What the market was started with is no renter's business.
    command.env_clear().env(
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    );
    // A ^C at the market's terminal is for the market, which then ends them in order.
    command.process_group(0).current_dir("/");
    command
}

/// The host's pid of the machine's init.
pub(super) fn init_pid(kind: Kind, child: &Child) -> Result<i32, MachineError> {
    let missing = || MachineError::Init("it ended at once".to_owned());
    let outer = child.id().ok_or_else(missing)?;
    if kind == Kind::Directory {
        return i32::try_from(outer).map_err(|_| missing());
    }
    // `unshare --fork` stays outside; its only child is the init.
    let children = std::fs::read_to_string(format!("/proc/{outer}/task/{outer}/children"))
        .map_err(MachineError::io("read the init's pid"))?;
    children
        .split_whitespace()
        .next()
        .and_then(|pid| pid.parse().ok())
        .ok_or_else(missing)
}

/// Drops the one capability by which a machine could change the whole host's clock; a rented
/// container does not have it either. Before entering, since a machine need not have the tool.
const NO_CLOCK: &[&str] = &["--bounding-set=-sys_time", "--inh-caps=-sys_time"];

fn program(name: &str) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(name);
    }
    let mut command = Command::new("setpriv");
    command.args(NO_CLOCK).arg("--").arg(name);
    command
}

/// The start of a command line that runs inside.
pub(super) fn enter(machine: &Machine, on_tty: bool) -> Command {
    let tty = &["setsid", "--ctty", "--wait"];
    if machine.kind() == Kind::Directory {
        let mut words: Vec<&str> = Vec::new();
        if on_tty {
            words.extend(tty);
        }
        words.extend(["env", "--"]);
        let mut command = program(words[0]);
        command.args(&words[1..]).current_dir(machine.dir().join("root"));
        return command;
    }
    let mut command = program("nsenter");
    command
        .arg("-t")
        .arg(machine.init_pid.to_string())
        .args(["-m", "-u", "-i", "-p", "-r", "-w"]);
    if machine.spec.mbit.is_some() {
        command.arg("-n");
    }
    if machine.kind() == Kind::UserNamespace {
        command.args(["-U", "--preserve-credentials"]);
    }
    command.arg("--");
    if on_tty {
        command.args(tty);
    }
    command.current_dir("/");
    command
}

pub(super) fn mark(spec: &Spec) -> Option<(&'static str, String)> {
    (spec.kind == Kind::Directory).then(|| {
        (
            "MACHINE_MARK",
            format!("{}-{}", spec.instance, spec.dir.to_string_lossy()),
        )
    })
}

pub(super) fn kill_init(machine: &Machine) {
    // A directory's init must do its work: closing the lifeline tells it to.
    if machine.kind() != Kind::Directory
        && let Some(pid) = Pid::from_raw(machine.init_pid)
        && !machine.tasks_ended()
    {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

pub(super) fn open_pty(machine: &Machine) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    if machine.kind() != Kind::Directory {
        // Opened through the machine's own devpts, so that `tty` inside names it.
        let path = PathBuf::from(format!("/proc/{}/root/dev/pts/ptmx", machine.init_pid));
        if let Ok(fd) = rustix::fs::open(path, flags, Mode::empty()) {
            return Ok(fd);
        }
    }
    let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
    Ok(rustix::pty::openpt(flags | rustix::pty::OpenptFlags::CLOEXEC)?)
}
