//! `dumont config`: the settings in force, and who said so.

use crate::config::Globals;
use crate::output;
use crate::settings::{SETTINGS, Setting, Settings};
use anyhow::Result;
use clap::Subcommand;
use serde::Serialize;
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print every setting in force and where it comes from; secrets are hidden
    ///
    /// Who wins: options of the command line, the environment, `.env` in the working directory,
    /// the config file (--config, else config.toml in the data directory and in
    /// $XDG_CONFIG_HOME/dumont), the default. A config file names settings in small letters.
    Show,
}

#[derive(Serialize)]
struct Shown {
    database: String,
    files: Vec<PathBuf>,
    settings: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    name: &'static str,
    /// `null` where nobody set it and there is no default.
    value: Option<String>,
    source: Option<String>,
    about: &'static str,
}

pub fn run(globals: &Globals, command: &ConfigCommand) -> Result<()> {
    let ConfigCommand::Show = command;
    let settings = globals.settings()?;
    let shown = Shown {
        database: settings.database_in_words()?,
        files: settings.files.clone(),
        settings: SETTINGS.iter().map(|s| line(&settings, s)).collect(),
    };
    if globals.json {
        return output::json(&shown);
    }
    let rows: Vec<_> = shown
        .settings
        .iter()
        .map(|line| {
            vec![
                line.name.to_owned(),
                output::or_dash(line.value.as_ref()),
                output::or_dash(line.source.as_ref()),
                line.about.to_owned(),
            ]
        })
        .collect();
    output::table(&["SETTING", "VALUE", "FROM", "WHAT IT IS"], &[], &rows);
    output::line("");
    output::facts(&[("database", shown.database)]);
    Ok(())
}

fn line(settings: &Settings, setting: &Setting) -> Line {
    let value = settings.value(setting.name);
    Line {
        name: setting.name,
        value: value.map(|v| setting.shown(&v.text)),
        source: value.map(|v| v.source.to_string()),
        about: setting.about,
    }
}
