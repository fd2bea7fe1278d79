//! Snapshot and restore requests: the engine between the job's transfers and its reports.

use crate::home::{Home, private_dir};
use crate::hooks;
use crate::job::{Job, cancelled};
use crate::lock::{Held, take_over, try_hold};
use crate::objects::{Sink, Source};
use crate::out::failure;
use crate::workload::io_failure;
use dumont_core::snapshot::Progress;
use dumont_snapshot::{Error, Events, RestoreOptions, SnapshotOptions, compare_models, restore, snapshot};
use dumont_wire::agent::{
    Event, Failure, FailureCode, ModelsRequest, Outcome, RestoreRequest, SnapshotRequest,
};
use std::path::{Path, PathBuf};

pub fn take_snapshot(job: &Job, home: &Home, request: SnapshotRequest) -> Result<Outcome, Failure> {
    let (path, cache_path) = prepare(home, &request.path)?;
    let _alone = alone(job, home)?;
    hooks::close(home, &hooks::line(job));
    let quiet = match &request.hooks {
        Some(asked) => hooks::open(job, home, &request.path, asked),
        None => Ok(()),
    };
    let options = SnapshotOptions {
        path,
        stamp: request.stamp,
        parent: request.parent,
        full: request.full,
        cache_path,
        workers: 0,
        key: request.key,
        model_files: request.model_files,
        cancelled: &job.stop,
    };
    let report = quiet
        .and_then(|()| snapshot(&options, &Sink { job }, &Reporter { job }).map_err(|e| explain(job, &e)));
    hooks::close(home, &hooks::line(job));
    Ok(Outcome::Snapshot(Box::new(report?)))
}

/// The directory to ourselves. This very session may be ending the pause that a dead one left.
fn alone(job: &Job, home: &Home) -> Result<Held, Failure> {
    take_over(&home.session_lock(), hooks::owed(home), &|| job.is_cancelled())
}

/// Ends a pause that an earlier session left behind, unless one still works there.
pub fn after_a_death(home: &Home) {
    if home.owed_hook().exists()
        && let Ok(Some(_alone)) = try_hold(&home.session_lock())
    {
        hooks::close(home, &|line| eprintln!("dumont-agent: {line}"));
    }
}

pub fn do_restore(job: &Job, home: &Home, request: &RestoreRequest) -> Result<Outcome, Failure> {
    let (path, cache_path) = prepare(home, &request.path)?;
    let _alone = alone(job, home)?;
    let options = RestoreOptions {
        delete: request.delete,
        cache_path: Some(cache_path),
        priority: request.priority.clone(),
        ready_when: request.ready_when.clone(),
        started: request.started,
        include: request.include.clone(),
        exclude: request.exclude.clone(),
        key: request.key.clone(),
        ..RestoreOptions::new(path, &job.stop)
    };
    let report = restore(&options, &request.head, &Source::new(job), &Reporter { job });
    Ok(Outcome::Restore(Box::new(report.map_err(|e| explain(job, &e))?)))
}

/// Only looks, so it needs no lock.
pub fn models(job: &Job, request: &ModelsRequest) -> Result<Outcome, Failure> {
    let options = RestoreOptions {
        key: request.key.clone(),
        ..RestoreOptions::new(&request.path, &job.stop)
    };
    let found = compare_models(&options, &request.head, &Source::new(job));
    Ok(Outcome::Models(Box::new(found.map_err(|e| explain(job, &e))?)))
}

/// The directory and its cache file.
fn prepare(home: &Home, path: &str) -> Result<(PathBuf, PathBuf), Failure> {
    if !Path::new(path).is_absolute() || path.contains('\0') {
        let message = format!("path {path:?} is not absolute");
        return Err(failure(
            FailureCode::Invalid,
            message,
            "give the workspace's full path",
        ));
    }
    let cache = home.cache_for(path);
    cache
        .parent()
        .map_or(Ok(()), private_dir)
        .map_err(|e| io_failure(&e))?;
    Ok((path.into(), cache))
}

struct Reporter<'a> {
    job: &'a Job,
}

impl Events for Reporter<'_> {
    /// The engine speaks a few times a second; a peer that does not read loses some.
    fn progress(&self, progress: Progress) {
        self.job.out.send_if_read(self.job.id, Event::Progress(progress));
    }

    fn ready(&self, files: u64) {
        self.job.out.send(self.job.id, Event::Ready { files });
    }

    fn log(&self, line: &str) {
        self.job.out.send(self.job.id, Event::Log { line: line.into() });
    }
}

fn explain(job: &Job, e: &Error) -> Failure {
    let as_is = |code, hint: &str| failure(code, e.to_string(), hint);
    match e {
        Error::NoSuchPath { .. } => as_is(
            FailureCode::NoSuchPath,
            "create the directory or correct the path",
        ),
        Error::Invalid { .. } => as_is(FailureCode::Invalid, "correct the request"),
        Error::NoSpace { .. } => as_is(FailureCode::DiskFull, "rent a machine with a larger disk"),
        Error::DiskFull { .. } => as_is(FailureCode::DiskFull, "free some space, or rent a larger disk"),
        Error::Io { .. } => as_is(
            FailureCode::Io,
            "check the permissions and the disk of the machine",
        ),
        Error::ObjectMissing { .. } => as_is(FailureCode::ObjectMissing, "restore an older snapshot"),
        Error::Corrupt { .. } => as_is(
            FailureCode::Corrupt,
            "restore an older snapshot, and check the store",
        ),
        Error::Key { .. } => as_is(
            FailureCode::Corrupt,
            "the snapshot was not made by this workspace as it is now; restore another one",
        ),
        Error::Version { .. } => as_is(
            FailureCode::Version,
            "update the agent: the controller installs its own",
        ),
        Error::Transfer { .. } | Error::StoreFull { .. } => job
            .remembered()
            .unwrap_or_else(|| as_is(FailureCode::Transfer, "can the machine reach the store?")),
        Error::Cancelled if job.is_cancelled() => cancelled(),
        Error::Cancelled => job.remembered().unwrap_or_else(cancelled),
        Error::Internal { .. } => as_is(FailureCode::Internal, "report this as a bug"),
    }
}
