//! `dumont ssh`: the system's `ssh`, with our key and the host key the controller pinned.

use super::keys::{self, Key};
use super::workspace::path_of;
use crate::client::Client;
use crate::config::{Globals, read_if_there, write_private};
use crate::fail::fail;
use crate::output;
use anyhow::{Context, Result};
use clap::Args;
use dumont_core::id::WorkspaceName;
use dumont_wire::rest::{SshAccess, SshTarget};
use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[derive(Debug, Args)]
pub struct SshArgs {
    pub name: WorkspaceName,
    /// Command to run instead of a shell. One word is a shell line (`-- 'ls | wc -l'`),
    /// several words arrive as they are
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<String>,
}

/// How long the machine may take to answer.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a new key may take until the machine lets it in (reported: up to 180 s).
const PROPAGATION: Duration = Duration::from_secs(180);

pub async fn run(globals: &Globals, args: SshArgs) -> Result<()> {
    let client = globals.client()?;
    let access = Access::get(&client, &globals.data_dir()?, &args.name).await?;
    if globals.json {
        return output::json(&access.target);
    }
    let mut ssh = access.command();
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    ssh.arg(if args.command.is_empty() && terminal {
        "-t"
    } else {
        "-T"
    });
    ssh.arg("--")
        .arg(access.destination())
        .arg(remote(&access.target.path, &args.command));
    // Only returns when it could not start.
    Err(no_ssh(&ssh.exec()))
}

/// The way into a workspace's machine, tried.
pub struct Access {
    pub target: SshTarget,
    key: Key,
    known_hosts: PathBuf,
    alias: String,
}

impl Access {
    /// Asks the server to let our key in, pins the host key, and waits until the key works.
    pub async fn get(client: &Client, data_dir: &Path, name: &WorkspaceName) -> Result<Self> {
        let dir = data_dir.join("ssh");
        let key = keys::ensure(&dir)?;
        let body = SshAccess {
            public_key: key.public.clone(),
        };
        let target: SshTarget = client.post(&format!("{}/ssh", path_of(name)), &body).await?;
        check(&target)?;
        let alias = format!("dumont-{name}");
        let known_hosts = dir.join(format!("known_hosts.{name}"));
        let line = format!("{alias} {}\n", target.host_key.trim());
        // The file is left behind only by a connection that worked, so it also says that the
        // machine knows our key already. The address is part of it.
        let worked = dir.join(format!("reached.{name}"));
        let stamp = format!("{}:{} {line}{}", target.host, target.port, key.public);
        let known = read_if_there(&worked)?.is_some_and(|there| there == stamp);
        write_private(&known_hosts, &line)?;
        let access = Self {
            target,
            key,
            known_hosts,
            alias,
        };
        if !known {
            access.wait_until_let_in().await?;
            write_private(&worked, &stamp)?;
        }
        Ok(access)
    }

    fn destination(&self) -> String {
        format!("{}@{}", self.target.user, self.target.host)
    }

    /// `ssh` with every option but the terminal's, the destination and the command.
    fn command(&self) -> Command {
        let mut ssh = Command::new("ssh");
        let port = self.target.port.to_string();
        // Nobody's configuration: a ProxyCommand or a key in there would be for other hosts.
        ssh.args(["-F", "none"])
            .arg("-p")
            .arg(port)
            .arg("-i")
            .arg(&self.key.file);
        let mut known = OsString::from("UserKnownHostsFile=\"");
        known.push(&self.known_hosts);
        known.push("\"");
        ssh.arg("-o").arg(known);
        for option in [
            "GlobalKnownHostsFile=/dev/null",
            "StrictHostKeyChecking=yes",
            "UpdateHostKeys=no",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "PreferredAuthentications=publickey",
            "ControlMaster=no",
            "ControlPath=none",
            "ConnectTimeout=10",
            "ConnectionAttempts=3",
            "ServerAliveInterval=15",
            "LogLevel=ERROR",
        ] {
            ssh.arg("-o").arg(option);
        }
        ssh.arg("-o").arg(format!("HostKeyAlias={}", self.alias));
        ssh
    }

    async fn wait_until_let_in(&self) -> Result<()> {
        let begin = Instant::now();
        let (mut told, mut pause) = (false, Duration::from_millis(200));
        loop {
            let mut ssh = tokio::process::Command::from(self.command());
            ssh.args(["-T", "-o", "BatchMode=yes", "--"])
                .arg(self.destination())
                .arg("true");
            ssh.stdin(Stdio::null()).kill_on_drop(true);
            let said = ssh.output().await.map_err(|e| no_ssh(&e))?;
            if said.status.success() {
                return Ok(());
            }
            let words = String::from_utf8_lossy(&said.stderr).trim().to_owned();
            if words.contains("Host key verification failed")
                || words.contains("HOST IDENTIFICATION HAS CHANGED")
            {
                return Err(fail(
                    "host_key_changed",
                    format!(
                        "{} answers with another host key than the controller pinned",
                        self.destination()
                    ),
                    "somebody may be in between; do not go on. A fresh machine: `dumont failover run NAME`",
                ));
            }
            let denied = words.contains("Permission denied");
            if denied && !told && begin.elapsed() > Duration::from_secs(5) {
                output::note("The machine answers, but does not have your key yet; waiting for it.");
                told = true;
            }
            let limit = if denied { PROPAGATION } else { ANSWER };
            if begin.elapsed() + pause > limit {
                return Err(fail(
                    "ssh_refused",
                    format!(
                        "no SSH connection to {}:{}: {words}",
                        self.destination(),
                        self.target.port
                    ),
                    "is the machine up? `dumont workspace show NAME`; then try again",
                ));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }

    /// Runs a shell line in the workspace's directory; its output, and the exit code if not 0.
    pub async fn output(&self, line: &str) -> Result<std::process::Output> {
        let mut ssh = tokio::process::Command::from(self.command());
        ssh.args(["-T", "-o", "BatchMode=yes", "--"])
            .arg(self.destination());
        ssh.arg(remote(&self.target.path, std::slice::from_ref(&line.to_owned())));
        ssh.stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .context("run ssh")
    }
}

/// What comes from the server goes onto a command line: nothing that could be an option.
fn check(target: &SshTarget) -> Result<()> {
    let plain = |s: &str| {
        !s.is_empty()
            && !s.starts_with('-')
            && s.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-:[]".contains(&b))
    };
    let key_is_one_line = !target.host_key.trim().contains(['\n', '\r']);
    if plain(&target.host) && plain(&target.user) && key_is_one_line {
        return Ok(());
    }
    Err(fail(
        "unexpected_answer",
        format!("the server named a strange SSH target: {target:?}"),
        "report this",
    ))
}

fn no_ssh(e: &std::io::Error) -> anyhow::Error {
    fail(
        "no_ssh",
        format!("`ssh` did not start: {e}"),
        "install an OpenSSH client (Debian: openssh-client)",
    )
}

/// The remote shell line: in the workspace's directory, a login shell or the command.
fn remote(path: &str, command: &[String]) -> String {
    let line = match command {
        [] => "exec \"${SHELL:-/bin/sh}\" -l".to_owned(),
        [line] => line.clone(),
        words => words.iter().map(|w| quote(w)).collect::<Vec<_>>().join(" "),
    };
    format!("cd {} 2>/dev/null; {line}", quote(path))
}

/// One word for a POSIX shell.
pub fn quote(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-./:=@%+,".contains(&b);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_arrive_as_they_were_typed() {
        let words = ["printf", "%s|", "a b", "it's", "$HOME", ""].map(String::from);
        let out = Command::new("sh")
            .arg("-c")
            .arg(remote("/", &words))
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(out.stdout).unwrap(), "a b|it's|$HOME||");
        let out = Command::new("sh")
            .arg("-c")
            .arg(remote("/", &["echo a | tr a b".into()]))
            .output()
            .unwrap();
        assert_eq!(out.stdout, b"b\n");
    }

    #[test]
    fn a_target_that_could_be_an_option_is_refused() {
        let good = SshTarget {
            host: "127.0.0.1".into(),
            port: 22,
            user: "root".into(),
            host_key: "ssh-ed25519 AAAA".into(),
            path: "/workspace".into(),
        };
        assert!(check(&good).is_ok());
        for bad in ["-oProxyCommand=x", "", "a b", "a;b", "a\nb"] {
            assert!(
                check(&SshTarget {
                    host: bad.into(),
                    ..good.clone()
                })
                .is_err(),
                "{bad:?}"
            );
            assert!(
                check(&SshTarget {
                    user: bad.into(),
                    ..good.clone()
                })
                .is_err(),
                "{bad:?}"
            );
        }
        assert!(
            check(&SshTarget {
                host_key: "a b\n* c d".into(),
                ..good
            })
            .is_err()
        );
    }
}
