//! One thing that was looked at, by `dumont doctor` or by a store that looks at itself.

use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    Ok,
    /// It works, but less safely or less well than it could.
    Warning,
    Failed,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at, e.g. `database clock`.
    pub name: &'static str,
    pub level: Level,
    pub detail: String,
    /// What to do; empty where nothing is.
    pub hint: String,
}

impl Check {
    pub fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self::new(name, Level::Ok, detail, "")
    }

    pub fn warning(name: &'static str, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(name, Level::Warning, detail, hint)
    }

    pub fn failed(name: &'static str, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(name, Level::Failed, detail, hint)
    }

    fn new(name: &'static str, level: Level, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            name,
            level,
            detail: detail.into(),
            hint: hint.into(),
        }
    }
}
