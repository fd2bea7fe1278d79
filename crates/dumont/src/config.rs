//! Where the CLI keeps its files and how it finds its server.

use crate::client::{Client, is_loopback};
use crate::fail::{fail, usage};
use anyhow::{Context, Result};
use clap::Args;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Options that every command takes.
#[derive(Debug, Clone, Args)]
pub struct Globals {
    /// Print the API's own JSON instead of text
    #[arg(long, global = true, help_heading = "Common options")]
    pub json: bool,
    /// Print results and errors only, no progress
    #[arg(long, short, global = true, help_heading = "Common options")]
    pub quiet: bool,
    /// Where the server listens [default: the one that was started with this data directory]
    #[arg(
        long,
        env = "DUMONT_URL",
        value_name = "URL",
        global = true,
        help_heading = "Common options"
    )]
    pub url: Option<String>,
    /// API token; the variable is better, others can read a command line
    #[arg(
        long,
        env = "DUMONT_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN",
        global = true,
        help_heading = "Common options"
    )]
    pub token: Option<String>,
    /// Trust only this authority's certificates (PEM) for a server with https
    #[arg(
        long,
        env = "DUMONT_CA_FILE",
        value_name = "FILE",
        global = true,
        help_heading = "Common options"
    )]
    pub ca_file: Option<PathBuf>,
    /// Where data, keys and the server's address are kept [default: $XDG_DATA_HOME/dumont]
    #[arg(
        long,
        env = "DUMONT_DATA_DIR",
        value_name = "DIR",
        global = true,
        help_heading = "Common options"
    )]
    pub data_dir: Option<PathBuf>,
    /// End when the parent process ends (the drill's children)
    #[arg(long, hide = true, global = true)]
    pub die_with_parent: bool,
}

/// `server.json`: where the server of this data directory listens.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServerFile {
    pub url: String,
}

/// `market.json`: where the market of this data directory listens.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MarketFile {
    pub url: String,
    pub admin_url: String,
}

pub const SERVER_FILE: &str = "server.json";
pub const TOKEN_FILE: &str = "admin.token";
pub const MARKET_FILE: &str = "market.json";

impl Globals {
    /// Asks the kernel to end this process with its parent.
    pub fn die_with_parent(&self) -> Result<()> {
        if self.die_with_parent {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
                .context("ask to end with the parent")?;
        }
        Ok(())
    }

    /// `--data-dir`, else what the XDG rules say.
    pub fn data_dir(&self) -> Result<PathBuf> {
        if let Some(dir) = self.data_dir.as_ref().filter(|d| !d.as_os_str().is_empty()) {
            return std::path::absolute(dir).with_context(|| format!("data directory {}", dir.display()));
        }
        let absolute = |name| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|p| p.is_absolute())
        };
        absolute("XDG_DATA_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
            .map(|base| base.join("dumont"))
            .ok_or_else(|| {
                usage(
                    "neither XDG_DATA_HOME nor HOME is set",
                    "pass --data-dir or set DUMONT_DATA_DIR",
                )
            })
    }

    /// A client of the server these options lead to.
    pub fn client(&self) -> Result<Client> {
        Client::new(
            &self.server_url()?,
            &self.server_token()?,
            self.ca_file.as_deref(),
        )
    }

    fn server_url(&self) -> Result<String> {
        if let Some(url) = given(&self.url) {
            return Ok(url.to_owned());
        }
        let path = self.data_dir()?.join(SERVER_FILE);
        let text = read_if_there(&path)?.ok_or_else(|| {
            fail(
                "no_server",
                format!("no server is known: {} does not exist", path.display()),
                "start one with `dumont serve`, or point at another one with --url (DUMONT_URL)",
            )
        })?;
        let file: ServerFile = serde_json::from_str(&text)
            .with_context(|| format!("{} is not what `dumont serve` writes", path.display()))?;
        Ok(file.url)
    }

    fn server_token(&self) -> Result<String> {
        if let Some(token) = given(&self.token) {
            return Ok(token.trim().to_owned());
        }
        self.refuse_foreign_url()?;
        let path = self.data_dir()?.join(TOKEN_FILE);
        let text = read_if_there(&path)?.ok_or_else(|| {
            fail(
                "no_token",
                format!("no API token is known: {} does not exist", path.display()),
                "set DUMONT_TOKEN (the server's first run writes admin.token into its data directory)",
            )
        })?;
        Ok(text.trim().to_owned())
    }
}

impl Globals {
    /// The token in the data directory belongs to the server of that directory: it is not
    /// sent to another host that a `--url` happens to name.
    fn refuse_foreign_url(&self) -> Result<()> {
        let Some(url) = given(&self.url) else {
            return Ok(());
        };
        let known = read_if_there(&self.data_dir()?.join(SERVER_FILE))?
            .and_then(|text| serde_json::from_str::<ServerFile>(&text).ok());
        let same = known.is_some_and(|k| k.url.trim_end_matches('/') == url.trim_end_matches('/'));
        if same || is_loopback(url) {
            return Ok(());
        }
        Err(fail(
            "no_token",
            format!("no API token is given for {url}"),
            "set DUMONT_TOKEN to that server's token",
        ))
    }
}

/// An option's value; an empty variable counts as none.
fn given(option: &Option<String>) -> Option<&str> {
    option.as_deref().filter(|v| !v.trim().is_empty())
}

/// The text of a file, `None` where there is none.
pub fn read_if_there(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) if e.kind() == ErrorKind::PermissionDenied => Err(fail(
            "permission_denied",
            format!("{} may not be read: {e}", path.display()),
            "run as the user who started the server, or pass --url and DUMONT_TOKEN",
        )),
        Err(e) => Err(e).with_context(|| format!("read {}", path.display())),
    }
}

/// Makes a directory that only its owner may enter.
pub fn private_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
        .with_context(|| format!("restrict {}", path.display()))
}

/// Writes a file that only its owner may read, whole or not at all.
pub fn write_private(path: &Path, text: &str) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let write = || -> std::io::Result<()> {
        let mut options = fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&temporary, path)
    };
    write().with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn globals(dir: &Path) -> Globals {
        Globals {
            json: false,
            quiet: false,
            url: None,
            token: None,
            ca_file: None,
            data_dir: Some(dir.into()),
            die_with_parent: false,
        }
    }

    #[test]
    fn a_missing_server_names_the_file_and_the_next_step() {
        let dir = tempfile::tempdir().unwrap();
        let body = crate::fail::body_of(&globals(dir.path()).client().err().unwrap());
        assert_eq!(body.code, "no_server");
        assert!(
            body.message.contains("server.json") && body.hint.contains("dumont serve"),
            "{body:?}"
        );
        write_private(&dir.path().join(SERVER_FILE), r#"{"url":"http://127.0.0.1:1"}"#).unwrap();
        let body = crate::fail::body_of(&globals(dir.path()).client().err().unwrap());
        assert_eq!(body.code, "no_token");
        write_private(&dir.path().join(TOKEN_FILE), "abc\n").unwrap();
        assert!(globals(dir.path()).client().is_ok());
        let mode = fs::metadata(dir.path().join(TOKEN_FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let elsewhere = Globals {
            url: Some("https://example.org".into()),
            ..globals(dir.path())
        };
        assert_eq!(
            crate::fail::body_of(&elsewhere.client().err().unwrap()).code,
            "no_token"
        );
    }
}
