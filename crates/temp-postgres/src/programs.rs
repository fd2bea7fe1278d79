//! Where PostgreSQL is installed, and as whom it runs.

use crate::{Error, Result, at};
use std::ffi::OsStr;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The installed programs of the newest version.
#[derive(Debug, Clone)]
pub struct Programs {
    bin: PathBuf,
    /// Whom to run as, where we are root.
    user: Option<User>,
}

#[derive(Debug, Clone, Copy)]
struct User {
    uid: u32,
    gid: u32,
}

impl Programs {
    pub fn find() -> Result<Self> {
        let user = if rustix::process::geteuid().is_root() {
            Some(postgres_user().ok_or(Error::NoUser)?)
        } else {
            None
        };
        let bin = debian().or_else(on_path).ok_or(Error::NotInstalled)?;
        Ok(Self { bin, user })
    }

    /// The program, as the user that it accepts.
    pub(crate) fn command(&self, program: &str) -> Command {
        self.with(program, &[])
    }

    /// One that the kernel ends when the calling thread ends.
    pub(crate) fn bound_command(&self, program: &str) -> Command {
        self.with(program, &["--pdeathsig", "QUIT"])
    }

    fn with(&self, program: &str, options: &[&str]) -> Command {
        let path = self.bin.join(program);
        let mut command = if options.is_empty() && self.user.is_none() {
            Command::new(path)
        } else {
            let mut setpriv = Command::new("setpriv");
            if let Some(user) = self.user {
                setpriv
                    .arg(format!("--reuid={}", user.uid))
                    .arg(format!("--regid={}", user.gid))
                    .arg("--clear-groups");
            }
            setpriv.args(options).arg(path);
            setpriv
        };
        // The caller's own settings of libpq are not meant for this cluster, and its
        // directory may not be this user's to enter.
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_libpq(name)) {
            command.env_remove(name);
        }
        command.env("LC_ALL", "C.UTF-8").current_dir("/");
        command
    }

    /// Makes a file the server's own.
    pub(crate) fn give(&self, path: &Path) -> Result<()> {
        match self.user {
            Some(user) => chown(path, Some(user.uid), Some(user.gid))
                .map_err(at(format!("give {} to postgres", path.display()))),
            None => Ok(()),
        }
    }
}

fn is_libpq(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b"PG")
}

/// Debian keeps every version apart, off the usual path.
fn debian() -> Option<PathBuf> {
    std::fs::read_dir("/usr/lib/postgresql")
        .ok()?
        .flatten()
        .filter_map(|entry| {
            Some((
                entry.file_name().to_str()?.parse::<u32>().ok()?,
                entry.path().join("bin"),
            ))
        })
        .filter(|(_, bin)| bin.join("initdb").is_file())
        .max()
        .map(|(_, bin)| bin)
}

fn on_path() -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).find(|dir| dir.join("initdb").is_file())
}

fn postgres_user() -> Option<User> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    let line = passwd.lines().find(|line| line.starts_with("postgres:"))?;
    let mut fields = line.split(':').skip(2);
    Some(User {
        uid: fields.next()?.parse().ok()?,
        gid: fields.next()?.parse().ok()?,
    })
}

/// What a program says, if it succeeds.
pub(crate) fn run(program: &'static str, mut command: Command) -> Result<String> {
    let done = command.output().map_err(at(format!("run {program}")))?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).trim_end().to_owned());
    }
    Err(Error::Failed {
        program,
        output: String::from_utf8_lossy(&done.stderr).trim_end().to_owned(),
    })
}
