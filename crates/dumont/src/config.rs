//! Where the CLI keeps its files and how it finds its server.

use crate::client::{Client, is_loopback};
use crate::fail::{fail, usage};
use crate::output::{self, Styled, safe};
use crate::settings::{Settings, Source, Surroundings, Value};
use anyhow::{Context, Result};
use clap::Args;
use dumont_core::level::Colour;
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
    /// [env: DUMONT_URL]
    #[arg(long, value_name = "URL", global = true, help_heading = "Common options")]
    pub url: Option<String>,
    /// API token; the variable is better, others can read a command line [env: DUMONT_TOKEN]
    #[arg(long, value_name = "TOKEN", global = true, help_heading = "Common options")]
    pub token: Option<String>,
    /// Trust only this authority's certificates (PEM) for a server with https
    /// [env: DUMONT_CA_FILE]
    #[arg(long, value_name = "FILE", global = true, help_heading = "Common options")]
    pub ca_file: Option<PathBuf>,
    /// Where data, keys and the server's address are kept [default: $XDG_DATA_HOME/dumont]
    /// [env: DUMONT_DATA_DIR]
    #[arg(long, value_name = "DIR", global = true, help_heading = "Common options")]
    pub data_dir: Option<PathBuf>,
    /// Settings to read instead of config.toml in the data directory and in
    /// $XDG_CONFIG_HOME/dumont [env: DUMONT_CONFIG]
    #[arg(long, value_name = "FILE", global = true, help_heading = "Common options")]
    pub config: Option<PathBuf>,
    /// Read instead of this process's environment, `.env` and files (the drill's world).
    #[arg(skip)]
    pub surroundings: Option<Surroundings>,
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

    /// Everything that is set, by anybody.
    pub fn settings(&self) -> Result<Settings> {
        let mut surroundings = self.surroundings.clone().unwrap_or_else(Surroundings::of_process);
        if let Some(dir) = &self.data_dir {
            surroundings.data_dir = Some(dir.clone());
        }
        if let Some(file) = &self.config {
            surroundings.config = Some(file.clone());
        }
        let mut settings = Settings::load(&surroundings)?;
        settings.given("DUMONT_URL", "--url", given(&self.url));
        settings.given("DUMONT_TOKEN", "--token", given(&self.token));
        let ca_file = self.ca_file.as_ref().map(|p| p.display().to_string());
        settings.given("DUMONT_CA_FILE", "--ca-file", ca_file);
        Ok(settings)
    }

    /// `--data-dir`, else what is set, else what the XDG rules say.
    pub fn data_dir(&self) -> Result<PathBuf> {
        let settings = self.settings()?;
        let dir = settings.text("DUMONT_DATA_DIR").ok_or_else(|| {
            usage(
                "neither XDG_DATA_HOME nor HOME is set",
                "pass --data-dir or set DUMONT_DATA_DIR",
            )
        })?;
        std::path::absolute(dir).with_context(|| format!("data directory {dir}"))
    }

    /// A client of the server these options lead to.
    pub fn client(&self) -> Result<Client> {
        let url = self.server_url()?;
        let token = self.server_token()?;
        if !self.quiet && crosses_in_the_clear(&url) {
            output::note(&output::paint_err(&Styled::new(
                format!(
                    "warning: the API token goes to {} unencrypted; use https, or a tunnel to this machine (ssh -L)",
                    safe(&url)
                ),
                Colour::Orange,
            )));
        }
        let ca = self.settings()?.text("DUMONT_CA_FILE").map(PathBuf::from);
        Client::new(&url, &token, ca.as_deref())
    }

    fn server_url(&self) -> Result<String> {
        if let Some(url) = self.settings()?.text("DUMONT_URL") {
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
        let settings = self.settings()?;
        if let Some(token) = settings.value("DUMONT_TOKEN") {
            for name in ["DUMONT_URL", "DUMONT_CA_FILE"] {
                refuse_planted(name, settings.value(name), settings.text("DUMONT_URL"), token)?;
            }
            return Ok(token.text.trim().to_owned());
        }
        self.refuse_foreign_url(settings.text("DUMONT_URL"))?;
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
    fn refuse_foreign_url(&self, url: Option<&str>) -> Result<()> {
        let Some(url) = url else {
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

/// A `.env` comes with whatever folder one happens to be in: it may not send a token that it
/// does not hold itself to another host, nor say who vouches for that host.
fn refuse_planted(name: &str, value: Option<&Value>, url: Option<&str>, token: &Value) -> Result<()> {
    match value {
        Some(value) if matches!(value.source, Source::DotEnv(_)) => {
            if value.source == token.source || url.is_none_or(is_loopback) {
                return Ok(());
            }
            Err(fail(
                "foreign_url",
                format!(
                    "{} sets {name}, but the token comes from elsewhere ({})",
                    value.source, token.source
                ),
                "set both in the same place, or pass it as an option",
            ))
        }
        _ => Ok(()),
    }
}

/// Whether somebody between here and there could read what is sent.
fn crosses_in_the_clear(url: &str) -> bool {
    url.trim().to_ascii_lowercase().starts_with("http:") && !is_loopback(url)
}

/// An option's value; an empty one counts as none.
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
            config: None,
            surroundings: Some(Surroundings::default()),
            die_with_parent: false,
        }
    }

    #[test]
    fn a_token_that_crosses_a_network_in_the_clear_is_noticed() {
        for (url, clear) in [
            ("http://10.0.0.7:7070", true),
            ("HTTP://dumont.example.org", true),
            ("https://dumont.example.org", false),
            ("http://127.0.0.1:7070", false),
            ("http://localhost:7070", false),
            ("http://[::1]:7070", false),
        ] {
            assert_eq!(crosses_in_the_clear(url), clear, "{url}");
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
