//! Looking into snapshots with the engine, here and not on a machine.

use super::place::{Place, Wanted};
use crate::cli::workspace_key::KeyArgs;
use crate::config::Globals;
use crate::fail::{fail, silent};
use crate::output;
use crate::progress::Show;
use anyhow::Result;
use clap::Args;
use dumont_core::snapshot::{Progress, Verdict};
use dumont_snapshot::{
    ChangeKind, Damage, Entry, EntryKind, Error, Events, Reader, RestoreOptions, printable,
};
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

/// Ctrl-C ends the program, and with it the engine.
static NEVER: AtomicBool = AtomicBool::new(false);

#[derive(Debug, Args)]
pub struct ReadArgs {
    /// Workspace, or a directory of objects (with a slash: ./objects)
    place: String,
    /// Directory to restore into
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Which snapshot [default: the newest]
    #[arg(long, value_name = "ID")]
    snapshot: Option<String>,
    /// Only paths that match, e.g. 'src/**'; may be repeated
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// Not paths that match; may be repeated
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// Remove files the snapshot does not have
    #[arg(long, conflicts_with_all = ["include", "exclude"])]
    delete: bool,
    #[command(flatten)]
    key: KeyArgs,
}

#[derive(Debug, Args)]
pub struct LsArgs {
    /// Workspace, or a directory of objects (with a slash: ./objects)
    place: String,
    /// File or directory in the snapshot [default: all]
    path: Option<String>,
    /// Which snapshot [default: the newest]
    #[arg(long, value_name = "ID")]
    snapshot: Option<String>,
    #[command(flatten)]
    key: KeyArgs,
}

#[derive(Debug, Args)]
pub struct CatArgs {
    /// Workspace, or a directory of objects (with a slash: ./objects)
    place: String,
    /// File in the snapshot
    path: String,
    /// Which snapshot [default: the newest]
    #[arg(long, value_name = "ID")]
    snapshot: Option<String>,
    #[command(flatten)]
    key: KeyArgs,
}

#[derive(Debug, Args)]
pub struct DiffArgs {
    /// Workspace, or a directory of objects (with a slash: ./objects)
    place: String,
    /// Earlier snapshot
    #[arg(value_name = "ID")]
    from: String,
    /// Later snapshot
    #[arg(value_name = "ID")]
    to: String,
    #[command(flatten)]
    key: KeyArgs,
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Workspace, or a directory of objects (with a slash: ./objects)
    place: String,
    /// Which snapshot [default: all]
    #[arg(long, value_name = "ID")]
    snapshot: Option<String>,
    #[command(flatten)]
    key: KeyArgs,
}

fn chosen(snapshot: &Option<String>) -> Wanted<'_> {
    snapshot
        .as_ref()
        .map_or(Wanted::Newest, |id| Wanted::These(std::slice::from_ref(id)))
}

/// Runs the engine on a thread of its own: it waits for transfers.
async fn engine<T: Send + 'static>(
    place: Place,
    work: impl FnOnce(&Place) -> Result<T, Error> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(move || work(&place)).await?;
    done.map_err(|e| explained(&e))
}

/// An error of the engine, with what to do about it.
pub fn explained(e: &Error) -> anyhow::Error {
    let (code, hint) = match e {
        Error::Invalid { .. } => ("invalid", "`dumont snapshot ls` shows what the snapshot has"),
        Error::ObjectMissing { .. } | Error::Corrupt { .. } => {
            ("corrupt", "`dumont snapshot check` names all that is damaged")
        }
        Error::Key { .. } => (
            "key",
            "name the workspace's own key with --key-file or DUMONT_SNAPSHOT_KEY; `dumont workspace key NAME` shows it",
        ),
        Error::Version { .. } => ("version", "use the dumont that wrote it, or a newer one"),
        Error::NoSpace { .. } | Error::DiskFull { .. } => {
            ("disk_full", "free some space, or use another disk")
        }
        Error::Io { .. } | Error::NoSuchPath { .. } => ("io", "check the path and its permissions"),
        _ => ("failed", "run it again"),
    };
    fail(code, e.to_string(), hint)
}

/// The engine's progress on the terminal.
struct Shown(Show);

impl Events for Shown {
    fn progress(&self, progress: Progress) {
        self.0.bytes("read", &progress);
    }
    fn log(&self, line: &str) {
        self.0.line(line);
    }
}

pub async fn read(globals: &Globals, args: ReadArgs) -> Result<()> {
    let place = Place::open(globals, &args.place, chosen(&args.snapshot), &args.key).await?;
    let quiet = globals.quiet;
    let report = engine(place, move |place| {
        let options = RestoreOptions {
            delete: args.delete,
            include: args.include,
            exclude: args.exclude,
            key: place.key.clone(),
            ..RestoreOptions::new(args.to, &NEVER)
        };
        dumont_snapshot::restore(
            &options,
            &place.heads[0],
            &*place.source,
            &Shown(Show::new(quiet)),
        )
    })
    .await?;
    if globals.json {
        output::json(&report)?;
    }
    if report.validation.validation == Verdict::Ok {
        return Ok(());
    }
    Err(fail(
        "validation_failed",
        format!(
            "{} of {} files are as the snapshot has them: {}",
            report.validation.files_restored,
            report.validation.files_expected,
            report.validation.problems.join("; ")
        ),
        "run it again: what is right already is kept",
    ))
}

pub async fn ls(globals: &Globals, args: LsArgs) -> Result<()> {
    let place = Place::open(globals, &args.place, chosen(&args.snapshot), &args.key).await?;
    let path = args.path.unwrap_or_default();
    let wanted = path.trim_matches('/').to_owned();
    let (entries, head) = engine(place, move |place| {
        let reader = Reader::open(&place.heads[0], &*place.source, place.key.as_ref(), &NEVER)?;
        Ok((reader.list(wanted.as_bytes()), place.heads[0].snapshot_id.clone()))
    })
    .await?;
    if entries.is_empty() && !path.is_empty() {
        return Err(fail(
            "no_such_path",
            format!("{head} has nothing at {path}"),
            "leave the path out to see all of it",
        ));
    }
    if globals.json {
        let all: Vec<_> = entries.iter().map(entry_json).collect();
        return output::json(&all);
    }
    let rows: Vec<Vec<String>> = entries.iter().map(entry_row).collect();
    output::table(&["MODE", "SIZE", "MODIFIED", "PATH"], &[1], &rows);
    Ok(())
}

fn entry_json(e: &Entry) -> serde_json::Value {
    let (kind, size, target) = match &e.kind {
        EntryKind::Dir => ("dir", None, None),
        EntryKind::File { size, .. } => ("file", Some(*size), None),
        EntryKind::Symlink(target) => ("symlink", None, Some(printable(target))),
        EntryKind::Fifo => ("fifo", None, None),
    };
    json!({
        "path": printable(&e.path), "kind": kind, "size": size, "target": target,
        "mode": format!("{:o}", e.mode), "uid": e.uid, "gid": e.gid,
        "mtime": e.mtime.0, "mtime_ns": e.mtime.1,
    })
}

fn entry_row(e: &Entry) -> Vec<String> {
    let (letter, size, tail) = match &e.kind {
        EntryKind::Dir => ('d', String::new(), "/".into()),
        EntryKind::File { size, links: 1 } => ('-', output::bytes(*size), String::new()),
        EntryKind::File { size, links } => ('-', output::bytes(*size), format!(" ({links} names)")),
        EntryKind::Symlink(target) => ('l', String::new(), format!(" -> {}", printable(target))),
        EntryKind::Fifo => ('p', String::new(), String::new()),
    };
    let bit = |n: u32, c: char| if e.mode >> n & 1 == 1 { c } else { '-' };
    let mode: String = (0..9)
        .rev()
        .map(|n| bit(n, ['x', 'w', 'r'][n as usize % 3]))
        .collect();
    vec![
        format!("{letter}{mode}"),
        size,
        output::ago(dumont_core::time::Timestamp(e.mtime.0.saturating_mul(1_000_000))),
        format!("{}{tail}", printable(&e.path)),
    ]
}

pub async fn cat(globals: &Globals, args: CatArgs) -> Result<()> {
    let place = Place::open(globals, &args.place, chosen(&args.snapshot), &args.key).await?;
    engine(place, move |place| {
        let reader = Reader::open(&place.heads[0], &*place.source, place.key.as_ref(), &NEVER)?;
        let mut out = std::io::stdout().lock();
        reader.cat(args.path.trim_matches('/').as_bytes(), &mut out)?;
        // A reader that went away has read what it wanted.
        _ = out.flush();
        Ok(())
    })
    .await
}

pub async fn diff(globals: &Globals, args: DiffArgs) -> Result<()> {
    let ids = [args.from, args.to];
    let place = Place::open(globals, &args.place, Wanted::These(&ids), &args.key).await?;
    let changes = engine(place, |place| {
        let open = |i: usize| Reader::open(&place.heads[i], &*place.source, place.key.as_ref(), &NEVER);
        Ok(open(0)?.diff(&open(1)?))
    })
    .await?;
    let word = |kind| match kind {
        ChangeKind::Added => "added",
        ChangeKind::Removed => "removed",
        ChangeKind::Content => "content",
        ChangeKind::Attributes => "attributes",
    };
    if globals.json {
        let all: Vec<_> = changes
            .iter()
            .map(|c| json!({ "path": printable(&c.path), "change": word(c.kind) }))
            .collect();
        return output::json(&all);
    }
    for c in &changes {
        output::line(&format!("{:10} {}", word(c.kind), printable(&c.path)));
    }
    if changes.is_empty() {
        output::line("They hold the same.");
    }
    Ok(())
}

/// Each damaged object once, with all that needs it.
fn by_object(found: Vec<Damage>) -> Vec<Damage> {
    let mut out: Vec<Damage> = Vec::new();
    for d in found {
        match out
            .iter_mut()
            .find(|o| (&o.object, &o.problem) == (&d.object, &d.problem))
        {
            Some(known) => {
                known.snapshots.extend(d.snapshots);
                known.files.extend(d.files);
            }
            None => out.push(d),
        }
    }
    out
}

pub async fn check(globals: &Globals, args: CheckArgs) -> Result<()> {
    let wanted = args
        .snapshot
        .as_ref()
        .map_or(Wanted::All, |id| Wanted::These(std::slice::from_ref(id)));
    let place = Place::open(globals, &args.place, wanted, &args.key).await?;
    let mut report = engine(place, |place| {
        dumont_snapshot::check(&place.heads, &*place.source, place.key.as_ref(), &NEVER)
    })
    .await?;
    report.damaged = by_object(report.damaged);
    if globals.json {
        let damaged: Vec<_> = report
            .damaged
            .iter()
            .map(|d| json!({ "object": d.object, "problem": d.problem, "snapshots": d.snapshots, "files": d.files }))
            .collect();
        output::json(&json!({
            "snapshots": report.snapshots, "packs": report.packs, "chunks": report.chunks,
            "bytes_read": report.bytes_read, "damaged": damaged,
        }))?;
    } else {
        for d in &report.damaged {
            output::line(&format!("{}: {}", d.object, d.problem));
            d.snapshots
                .iter()
                .for_each(|s| output::line(&format!("  snapshot {s} cannot be restored completely")));
            d.files.iter().for_each(|f| output::line(&format!("  {f}")));
        }
        output::line(&format!(
            "Read {} in {} and {}: {}.",
            output::bytes(report.bytes_read),
            output::count(report.packs, "pack"),
            output::count(report.snapshots, "snapshot"),
            if report.damaged.is_empty() {
                "all of it is whole".to_owned()
            } else {
                format!("{} damaged", output::count(report.damaged.len() as u64, "object"))
            }
        ));
    }
    if report.damaged.is_empty() {
        Ok(())
    } else {
        Err(silent())
    }
}
