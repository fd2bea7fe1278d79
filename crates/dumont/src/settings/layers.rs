//! Where values come from, the weakest layer first.

use super::{SETTINGS, Source, Value};
use crate::fail::usage;
use anyhow::Result;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// What surrounds this process; made by hand in tests.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    pub environment: BTreeMap<String, String>,
    /// Where `.env` is looked for.
    pub working_dir: Option<PathBuf>,
    /// `--config` or `DUMONT_CONFIG`: read instead of the usual files, and must exist.
    pub config: Option<PathBuf>,
    /// `--data-dir`.
    pub data_dir: Option<PathBuf>,
}

impl Surroundings {
    /// Of this process. A variable that is not text is none of ours.
    pub fn of_process() -> Self {
        let environment: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let config = environment.get("DUMONT_CONFIG").filter(|path| !path.is_empty());
        Self {
            config: config.map(PathBuf::from),
            environment,
            working_dir: Some(".".into()),
            data_dir: None,
        }
    }

    fn directory(&self, name: &str) -> Option<PathBuf> {
        let path = PathBuf::from(self.environment.get(name)?);
        path.is_absolute().then_some(path)
    }

    /// What the XDG rules say.
    fn under_home(&self, variable: &str, otherwise: &str) -> Option<PathBuf> {
        self.directory(variable)
            .or_else(|| Some(self.directory("HOME")?.join(otherwise)))
            .map(|base| base.join("dumont"))
    }
}

type Values = BTreeMap<&'static str, Value>;

/// All values, and the config files among their sources.
pub(super) fn read(of: &Surroundings) -> Result<(Values, Vec<PathBuf>)> {
    let mut files = Vec::new();
    let mut file = |path: PathBuf, must_exist: bool| -> Result<Values> {
        let found = config_file(&path, must_exist)?;
        files.extend(found.as_ref().map(|_| path));
        Ok(found.unwrap_or_default())
    };
    let mut values: Values = SETTINGS.iter().filter_map(default).collect();
    if let Some(dir) = of.under_home("XDG_DATA_HOME", ".local/share") {
        let text = dir.display().to_string();
        put(&mut values, "DUMONT_DATA_DIR", text, Source::Default);
    }
    match &of.config {
        Some(path) => values.extend(file(path.clone(), true)?),
        None => {
            if let Some(dir) = of.under_home("XDG_CONFIG_HOME", ".config") {
                values.extend(file(dir.join("config.toml"), false)?);
            }
        }
    }
    let mut stronger = match &of.working_dir {
        Some(dir) => dot_env(&dir.join(".env"))?,
        None => Values::new(),
    };
    for (name, value) in &of.environment {
        put(&mut stronger, name, value.clone(), Source::Environment);
    }
    if let Some(dir) = &of.data_dir {
        let text = dir.display().to_string();
        put(
            &mut stronger,
            "DUMONT_DATA_DIR",
            text,
            Source::CommandLine("--data-dir"),
        );
    }
    // The data directory's own file is read when it is known which directory that is.
    let data_dir = stronger.get("DUMONT_DATA_DIR").or(values.get("DUMONT_DATA_DIR"));
    if of.config.is_none()
        && let Some(dir) = data_dir
    {
        let path = Path::new(&dir.text).join("config.toml");
        let own = file(path.clone(), false)?;
        if own.contains_key("DUMONT_DATA_DIR") {
            return Err(usage(
                format!("{} moves the data directory that it is in", path.display()),
                "set dumont_data_dir elsewhere, e.g. with --data-dir or DUMONT_DATA_DIR",
            ));
        }
        values.extend(own);
    }
    values.extend(stronger);
    Ok((values, files))
}

fn default(setting: &super::Setting) -> Option<(&'static str, Value)> {
    let value = Value {
        text: setting.default?.to_owned(),
        source: Source::Default,
    };
    Some((setting.name, value))
}

/// Keeps a value of a name that is ours.
fn put(values: &mut Values, name: &str, text: String, source: Source) {
    let known = SETTINGS.iter().find(|s| s.name == name);
    if let (Some(setting), false) = (known, text.trim().is_empty()) {
        values.insert(setting.name, Value { text, source });
    }
}

/// `.env` may be meant for other programs: what we do not know is passed over, though it may
/// be written in a way that we cannot read.
fn dot_env(path: &Path) -> Result<Values> {
    let mut values = Values::new();
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(values),
        Err(e) => return Err(unreadable(path, &e.to_string())),
    };
    for line in dotenvy::from_read_iter(text.as_bytes()) {
        match line {
            Ok((name, text)) => put(&mut values, &name, text, Source::DotEnv(path.to_owned())),
            Err(dotenvy::Error::LineParse(part, _)) => {
                // Only its name is repeated: the rest may be a secret.
                if let Some(name) = ours(&text, &part) {
                    let reason = format!("the value of {name} cannot be read; put it into '…'");
                    return Err(unreadable(path, &reason));
                }
            }
            Err(e) => return Err(unreadable(path, &e.to_string())),
        }
    }
    Ok(values)
}

/// The setting that a line is about, by the part of it that could not be read.
fn ours(text: &str, part: &str) -> Option<&'static str> {
    let near = |line: &&str| !part.trim().is_empty() && line.contains(part);
    text.lines().filter(near).find_map(|line| {
        let name = line
            .split('=')
            .next()?
            .trim()
            .trim_start_matches("export ")
            .trim();
        SETTINGS.iter().map(|s| s.name).find(|known| *known == name)
    })
}

/// `None` where there is no such file.
fn config_file(path: &Path, must_exist: bool) -> Result<Option<Values>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound && !must_exist => return Ok(None),
        Err(e) => return Err(unreadable(path, &e.to_string())),
    };
    // Its own message shows the line.
    let table: toml::Table = toml::from_str(&text).map_err(|e: toml::de::Error| {
        let before = e.span().and_then(|span| text.get(..span.start)).unwrap_or("");
        let line = before.matches('\n').count() + 1;
        unreadable(path, &format!("line {line}: {}", e.message()))
    })?;
    let mut values = Values::new();
    for (key, value) in table {
        let name = key.to_ascii_uppercase();
        if !SETTINGS.iter().any(|s| s.name == name) {
            return Err(unreadable(path, &format!("there is no setting {key:?}")));
        }
        let text = match value {
            toml::Value::String(text) => text,
            toml::Value::Integer(n) => n.to_string(),
            toml::Value::Float(n) => n.to_string(),
            toml::Value::Boolean(b) => b.to_string(),
            _ => return Err(unreadable(path, &format!("{key} must be a text or a number"))),
        };
        put(&mut values, &name, text, Source::File(path.to_owned()));
    }
    Ok(Some(values))
}

fn unreadable(path: &Path, reason: &str) -> anyhow::Error {
    usage(
        format!("{}: {reason}", path.display()),
        "correct that file; `dumont config show` prints the names of all settings",
    )
}
