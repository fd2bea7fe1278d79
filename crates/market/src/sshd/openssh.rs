//! OpenSSH's own server on a machine, for those who want the real one.
//!
//! One `sshd -i` per connection, inside the machine, with the accepted socket as its input and
//! output: the port stays ours, so a machine refuses until its SSH is up and dies at once, and
//! everything that is spoken is OpenSSH's. It resets the environment of a login, so what a
//! rented container has there is set by its configuration, as Vast's images do it.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, PrivateKey};
use tokio::net::TcpStream;

use crate::error::MachineError;
use crate::machine::Machine;

/// The keys that may log in now, one line each.
pub type KeyLines = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

const PROGRAM: &str = "/usr/sbin/sshd";

/// Says why a machine here cannot have it.
pub fn available() -> Result<(), String> {
    if Path::new(PROGRAM).exists() {
        Ok(())
    } else {
        Err(format!("{PROGRAM} is not there: install openssh-server"))
    }
}

/// Starts to accept on the machine's port; ends when the machine dies.
pub fn open(machine: &Arc<Machine>, keys: KeyLines, options: &[String]) -> Result<(), MachineError> {
    lay_out(machine, options).map_err(MachineError::io("lay out sshd's files"))?;
    let Some(listener) = machine.listen() else {
        return Err(MachineError::Init("its ssh port is gone".to_owned()));
    };
    let machine = Arc::clone(machine);
    machine.clone().tasks.spawn(async move {
        loop {
            let accepted = tokio::select! {
                () = machine.dead.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let served = match accepted {
                Ok((stream, _)) => serve(&machine, &keys, stream),
                Err(error) => Err(error),
            };
            if let Err(error) = served {
                tracing::warn!(%error, "sshd did not start");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    });
    Ok(())
}

fn serve(machine: &Arc<Machine>, keys: &KeyLines, stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    let (input, output) = (OwnedFd::from(stream.try_clone()?), OwnedFd::from(stream));
    let lines = keys().join("\n") + "\n";
    replace(&machine.dir().join("root/.ssh/authorized_keys"), lines.as_bytes())?;
    let log = File::options()
        .create(true)
        .append(true)
        .open(machine.dir().join("sshd.log"))?;
    let mut command = machine.command(&[PROGRAM, "-i", "-e", "-f", "/etc/ssh/sshd_config"], &[], false);
    let mut child = command
        .stdin(Stdio::from(input))
        .stdout(Stdio::from(output))
        .stderr(Stdio::from(log))
        .spawn()?;
    machine.tasks.spawn(async move {
        let _ = child.wait().await;
    });
    Ok(())
}

/// The host key stays that of the machine when it is stopped and started again.
fn lay_out(machine: &Machine, options: &[String]) -> io::Result<()> {
    let dir = machine.dir();
    let (etc, ssh) = (dir.join("etc/ssh"), dir.join("root/.ssh"));
    fs::create_dir_all(&etc)?;
    fs::create_dir_all(&ssh)?;
    fs::set_permissions(&ssh, Permissions::from_mode(0o700))?;
    let key = etc.join("ssh_host_ed25519_key");
    if !key.exists() {
        let made = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519)
            .and_then(|key| key.to_openssh(LineEnding::LF))
            .map_err(io::Error::other)?;
        replace(&key, made.as_bytes())?;
    }
    let environment: Vec<String> = machine
        .login_variables()
        .into_iter()
        .map(|(k, v)| format!("\"{k}={v}\""))
        .collect();
    let config = format!(
        "HostKey /etc/ssh/ssh_host_ed25519_key\n\
         AuthorizedKeysFile /root/.ssh/authorized_keys\n\
         PermitRootLogin prohibit-password\n\
         PasswordAuthentication no\n\
         KbdInteractiveAuthentication no\n\
         UsePAM no\n\
         StrictModes no\n\
         PrintMotd no\n\
         PidFile none\n\
         Subsystem sftp /usr/lib/openssh/sftp-server\n\
         SetEnv {}\n{}\n",
        environment.join(" "),
        options.join("\n")
    );
    replace(&etc.join("sshd_config"), config.as_bytes())
}

/// Whole or not at all: a login may be reading it.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(bytes)?;
    fs::rename(new, path)
}
