//! The official `vastai` command line, as PyPI has it, pointed at a market.

use std::path::PathBuf;

use tokio::process::Command;

pub struct Vastai {
    url: String,
    key: String,
    home: tempfile::TempDir,
}

#[derive(Debug)]
pub struct Said {
    pub stdout: String,
    pub stderr: String,
}

/// `scripts/setup --tests` installs it.
fn program() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache"));
    let installed = cache.join("dumont-tests/venv/bin/vastai");
    if installed.exists() {
        installed
    } else {
        PathBuf::from("vastai")
    }
}

impl Vastai {
    pub fn new(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            key: "some-key".to_owned(),
            home: tempfile::tempdir().unwrap(),
        }
    }

    pub fn with_key(url: &str, key: &str) -> Self {
        Self {
            key: key.to_owned(),
            ..Self::new(url)
        }
    }

    /// Its exit code says nothing, so nobody asks for it.
    pub async fn run(&self, line: &str) -> Said {
        self.args(&line.split_whitespace().collect::<Vec<_>>()).await
    }

    pub async fn args(&self, args: &[&str]) -> Said {
        let home = self.home.path();
        let output = Command::new(program())
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", home)
            .env("XDG_CACHE_HOME", home.join("cache"))
            .env("XDG_CONFIG_HOME", home.join("config"))
            .env("XDG_STATE_HOME", home.join("state"))
            .env("COLUMNS", "250")
            .env("LANG", "C.UTF-8")
            .env("VASTAI_NO_UPDATE_CHECK", "1")
            .env("VAST_URL", &self.url)
            .env("VAST_API_KEY", &self.key)
            .kill_on_drop(true)
            .output()
            .await
            .expect("vastai is installed: run scripts/setup --tests");
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Said {
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// What it prints with `--raw`.
    pub async fn raw(&self, line: &str) -> serde_json::Value {
        let said = self.run(&format!("{line} --raw")).await;
        serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{line}: {error}: {said:?}"))
    }
}
