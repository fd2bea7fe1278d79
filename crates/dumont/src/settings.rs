//! What dumont is told by its surroundings, and who said it.
//!
//! A setting has one name everywhere: the environment variable's. A line `NAME=value` of
//! `.env` in the working directory means the same, and so does `name = value` (small letters)
//! in a config file. Who wins: an option of the command line, the environment, `.env`, the
//! file, the default. An empty value counts as none, as people "unset" variables that way.
//!
//! [`table::SETTINGS`] lists them all; a new one is a line there and a `get` where it is used.
//! Everything is read and checked at once, before anything starts, so a wrong number in
//! a file is found when it is written and not in the night it is needed. Errors name the
//! place and never repeat a secret.
//!
//! The process's own environment is not changed: that is unsound once there are threads, and
//! the source of a value would be lost.

mod database;
mod layers;
mod redact;
mod table;
#[cfg(test)]
mod tests;

pub use layers::Surroundings;
pub use redact::redacted;
pub use table::{SETTINGS, Setting};

use crate::fail::{fail, usage};
use anyhow::Result;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Who said it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    CommandLine(&'static str),
    Environment,
    DotEnv(PathBuf),
    File(PathBuf),
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine(option) => f.write_str(option),
            Self::Environment => f.write_str("environment"),
            Self::DotEnv(path) | Self::File(path) => write!(f, "{}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    pub text: String,
    pub source: Source,
}

/// Everything that is in force.
#[derive(Clone)]
pub struct Settings {
    values: BTreeMap<&'static str, Value>,
    /// The config files that were read.
    pub files: Vec<PathBuf>,
}

impl Settings {
    /// Reads and checks all of it.
    pub fn load(surroundings: &Surroundings) -> Result<Self> {
        let (values, files) = layers::read(surroundings)?;
        for setting in SETTINGS {
            if let Some(value) = values.get(setting.name) {
                setting.check(value)?;
            }
        }
        Ok(Self { values, files })
    }

    /// An option of the command line wins over everything.
    pub fn given<T: ToString>(&mut self, name: &'static str, option: &'static str, value: Option<T>) {
        if let Some(value) = value {
            let text = value.to_string();
            let source = Source::CommandLine(option);
            self.values.insert(name, Value { text, source });
        }
    }

    /// The value and who said it; `None` where nobody did and there is no default.
    pub fn value(&self, name: &str) -> Option<&Value> {
        debug_assert!(
            SETTINGS.iter().any(|s| s.name == name),
            "{name} is not in the table"
        );
        self.values.get(name)
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.value(name).map(|v| v.text.as_str())
    }

    /// As a number, an address, or anything else that a text can be read as.
    pub fn optional<T: FromStr>(&self, name: &str) -> Result<Option<T>> {
        let Some(value) = self.value(name) else {
            return Ok(None);
        };
        match value.text.parse() {
            Ok(parsed) => Ok(Some(parsed)),
            Err(_) => Err(wrong(name, value, "has a value that cannot be read")),
        }
    }

    /// The same of one that has a default, or that nothing works without.
    pub fn required<T: FromStr>(&self, name: &str) -> Result<T> {
        self.optional(name)?
            .ok_or_else(|| fail("no_setting", format!("{name} is not set"), format!("set {name}")))
    }
}

/// An error about a value, which may be a secret and is not repeated.
fn wrong(name: &str, value: &Value, reason: &str) -> anyhow::Error {
    usage(
        format!("{name} (from {}) {reason}", value.source),
        "`dumont config show` prints every setting and where it comes from",
    )
}
