//! `dumont history blacklist`: add, remove, list.

use super::path_of;
use crate::client::query_of;
use crate::config::Globals;
use crate::output::{self, Styled, safe};
use anyhow::Result;
use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use dumont_core::blacklist::{BlacklistType, CudaVersion};
use dumont_core::id::MachineRef;
use dumont_core::level::Colour;
use dumont_core::time::Timestamp;
use dumont_wire::history::{AddBlacklist, BlacklistEntry, BlacklistQuery, Removed};

#[derive(Debug, Subcommand)]
pub enum BlacklistCommand {
    /// Block a machine: it is rented no more, and offers hide it
    Add(AddArgs),
    /// Lift every block on a machine
    Remove { machine: MachineRef },
    /// The blocks in force
    List(ListArgs),
}

#[derive(Debug, Args)]
pub struct AddArgs {
    pub machine: MachineRef,
    /// Why, for whoever wonders later
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// How long it lasts: manual is for good, automatic 7 days, temporary 24 hours
    #[arg(long = "type", value_name = "TYPE", value_parser = types(), default_value = "manual")]
    pub blacklist_type: String,
    /// Instead of the type's own time, e.g. 48h or 7d
    #[arg(long = "for", value_name = "TIME", allow_hyphen_values = true)]
    pub duration: Option<String>,
    /// Only for workloads that need this CUDA version or a newer one, e.g. 12.8
    #[arg(long, value_name = "VERSION")]
    pub cuda: Option<CudaVersion>,
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Blocks of this type only
    #[arg(long = "type", value_name = "TYPE", value_parser = types())]
    pub blacklist_type: Option<String>,
    /// Blocked within this long only, e.g. 7d
    #[arg(long, value_name = "TIME")]
    pub period: Option<String>,
    /// Removed and expired ones, too
    #[arg(long)]
    pub all: bool,
}

fn types() -> PossibleValuesParser {
    PossibleValuesParser::new(BlacklistType::ALL.iter().map(|t| t.as_str()))
}

pub async fn run(globals: &Globals, command: BlacklistCommand) -> Result<()> {
    match command {
        BlacklistCommand::Add(args) => add(globals, args).await,
        BlacklistCommand::Remove { machine } => remove(globals, &machine).await,
        BlacklistCommand::List(args) => list(globals, args).await,
    }
}

async fn add(globals: &Globals, args: AddArgs) -> Result<()> {
    let body = AddBlacklist {
        provider: args.machine.provider.clone(),
        machine_id: args.machine.machine_id.clone(),
        reason: args.reason,
        blacklist_type: Some(args.blacklist_type),
        duration: args.duration,
        cuda: args.cuda,
    };
    let entry: BlacklistEntry = globals
        .client()?
        .post("/machines/history/blacklist", &body)
        .await?;
    if globals.json {
        return output::json(&entry);
    }
    let scope = entry
        .scope
        .as_ref()
        .map_or(String::new(), |s| format!(" for {} and newer,", safe(s)));
    output::line(&format!(
        "{} is blocked{scope} {}.",
        args.machine,
        end(entry.expires_at).trim_end_matches(" more")
    ));
    Ok(())
}

async fn remove(globals: &Globals, machine: &MachineRef) -> Result<()> {
    let removed: Removed = globals.client()?.delete(&path_of("blacklist", machine)).await?;
    if globals.json {
        return output::json(&removed);
    }
    let blocks = output::count(removed.removed.len() as u64, "block");
    output::line(&format!("{machine} is free again ({blocks} lifted)."));
    Ok(())
}

async fn list(globals: &Globals, args: ListArgs) -> Result<()> {
    let query = BlacklistQuery {
        blacklist_type: args.blacklist_type,
        period: args.period,
        include_closed: args.all.then_some(true),
        ..BlacklistQuery::default()
    };
    let path = format!("/machines/history/blacklist{}", query_of(&query));
    let all: Vec<BlacklistEntry> = globals.client()?.list(&path).await?;
    if globals.json {
        return output::json(&all);
    }
    if all.is_empty() {
        output::note("No machine is blocked.");
        return Ok(());
    }
    output::styled_table(&HEADER, &RIGHT, &all.iter().map(row).collect::<Vec<_>>());
    Ok(())
}

const HEADER: [&str; 8] = [
    "MACHINE", "TYPE", "LASTS", "FOR", "FAILED", "BY", "SINCE", "REASON",
];
const RIGHT: [usize; 1] = [4];

fn row(e: &BlacklistEntry) -> Vec<Styled> {
    let (until, colour) = match (&e.closed_by, e.is_active) {
        (_, true) => (end(e.expires_at), Some(Colour::Red)),
        (Some(by), false) => (format!("lifted by {by}"), None),
        (None, false) => ("expired".into(), None),
    };
    let by = e.actor.as_deref().or(e.rule.as_deref()).unwrap_or("-");
    vec![
        Styled::plain(format!("{}:{}", e.provider, e.machine_id)),
        Styled {
            text: e.blacklist_type.to_string(),
            colour,
        },
        Styled::plain(until),
        Styled::plain(e.scope.as_deref().unwrap_or("everything")),
        Styled::plain(failed(e)),
        Styled::plain(by),
        Styled::plain(output::ago(e.blacklisted_at)),
        Styled::plain(e.reason.clone()),
    ]
}

/// `3 of 4` counted ones: those that say nothing about the machine are no successes.
fn failed(e: &BlacklistEntry) -> String {
    match e.failure_rate {
        Some(rate) if rate > 0.0 => {
            let counted = (e.failed_attempts as f64 / rate).round();
            format!("{} of {counted:.0}", e.failed_attempts)
        }
        Some(_) => "0".into(),
        None => "-".into(),
    }
}

/// `for good`, or `for 6 d more`.
pub fn end(expires_at: Option<Timestamp>) -> String {
    let Some(end) = expires_at else {
        return "for good".into();
    };
    let seconds = end.millis_since(output::now()) / 1_000;
    match seconds {
        ..=0 => "until now".into(),
        1..120 => format!("for {seconds} s more"),
        120..7_200 => format!("for {} min more", seconds / 60),
        7_200..172_800 => format!("for {} h more", (seconds + 1_800) / 3_600),
        _ => format!("for {} d more", (seconds + 43_200) / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn an_end_reads_as_a_person_would_say_it() {
        let after = |seconds| end(Some(output::now().plus(Duration::from_secs(seconds))));
        assert_eq!(end(None), "for good");
        assert_eq!(after(48 * 3_600 + 30), "for 2 d more");
        assert_eq!(after(24 * 3_600 - 5), "for 24 h more");
        assert_eq!(after(7 * 86_400 - 5), "for 7 d more");
        assert_eq!(after(630), "for 10 min more");
        assert_eq!(end(Some(Timestamp(1))), "until now");
    }
}
