//! Which machines there are: those of the file, then those told over the API.
//!
//! The file is read at each use, so a change of it is in force at once; one that cannot be read is
//! an error, never an empty inventory.

use super::{OwnMachines, bare_key, database, failed};
use crate::providers::{ErrorClass, ProviderError};
use dumont_core::own_machine::OwnMachine;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const PAGE: u32 = 500;

/// Who told us of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    File,
    Api,
}

/// A machine and who told us of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Known {
    pub machine: OwnMachine,
    pub source: Source,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    machines: Vec<OwnMachine>,
}

impl OwnMachines {
    /// All of them, by name. What the file says wins.
    pub async fn known(&self) -> Result<Vec<Known>, ProviderError> {
        let mut all = BTreeMap::new();
        let mut after = None;
        loop {
            let page = self.store.list_own_machines(after.as_deref(), PAGE).await;
            let page = page.map_err(database)?;
            for row in page.items {
                let (machine, source) = (row.machine, Source::Api);
                all.insert(row.name, Known { machine, source });
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        for machine in self.in_file()? {
            let (name, source) = (machine.name().to_owned(), Source::File);
            all.insert(name, Known { machine, source });
        }
        Ok(all.into_values().collect())
    }

    /// Whether the file can be read, before anything depends on it.
    pub fn check_file(&self) -> Result<(), String> {
        self.in_file().map(drop).map_err(|e| e.message)
    }

    fn in_file(&self) -> Result<Vec<OwnMachine>, ProviderError> {
        let Some(path) = &self.file else {
            return Ok(Vec::new());
        };
        read(path).map_err(|why| failed(ErrorClass::Transient, format!("{}: {why}", path.display())))
    }
}

fn read(path: &Path) -> Result<Vec<OwnMachine>, String> {
    let text = fs::read_to_string(path).map_err(|e| e.to_string())?;
    let file: File = toml::from_str(&text).map_err(|e| e.to_string().replace('\n', " "))?;
    let mut names = BTreeMap::new();
    for machine in &file.machines {
        check(machine)?;
        if names.insert(machine.name(), ()).is_some() {
            return Err(format!("{} is there twice", machine.machine));
        }
    }
    Ok(file.machines)
}

/// What `core` checks, and that the host key is one.
pub fn check(machine: &OwnMachine) -> Result<(), String> {
    machine.check().map_err(|e| e.to_string())?;
    if machine.host_key.as_deref().is_some_and(|k| bare_key(k).is_none()) {
        return Err(format!(
            "host_key of {} is not an OpenSSH public key; `ssh-keyscan -t ed25519 {}` prints one",
            machine.machine, machine.host
        ));
    }
    Ok(())
}
