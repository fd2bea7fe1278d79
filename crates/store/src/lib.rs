//! Every SQL statement of dumont, behind typed rows.
//!
//! A file per noun; `engine.rs` alone knows the database. Nothing here reads a clock but the
//! database's own, and that only for leases: every other time is the caller's `now`, so that
//! the same workflows run in virtual time. Ids are made by the caller (ULIDs), which makes an
//! insert whose reply was lost repeatable: the second one finds the first.
//!
//! Who may write what is decided by two fences that only grow. A *workflow's* fence rises
//! with every claim, so an owner that slept through its lease can commit nothing more. A
//! *workspace's* fence rises with every switch of instance, so an instance that was given up
//! can no longer make a snapshot visible. Both are checked by the statement that writes,
//! never before it.

mod attempt;
mod attempt_list;
mod blacklist;
mod census;
mod column;
mod engine;
mod error;
mod extreme;
mod failover_event;
mod gate;
mod instance;
mod interrupt;
mod machine;
mod memory;
mod meta;
mod object_version;
mod own_machine;
mod recent;
mod rollup;
mod schedule;
mod snapshot;
mod spending;
mod standing;
mod summary;
mod sums;
mod token;
mod transfer;
mod workflow;
mod workspace;

pub use attempt::{AttemptRow, NewAttempt, Recorded};
pub use attempt_list::{AttemptCursor, AttemptFilter, Counted, DayCount, ReasonCount};
pub use blacklist::{BlacklistFilter, BlacklistRow, NewBlacklist, in_the_way};
pub use engine::Inspection;
pub use error::{Error, Result};
pub use extreme::{Extreme, MachineFilter, ScoreCursor};
pub use failover_event::FailoverEventRow;
pub use gate::Account;
pub use instance::{Asked, Endpoint, InstanceRow, InstanceState, NewInstance};
pub use interrupt::Interrupt;
pub use machine::{Block, MachineRow};
pub use own_machine::{LeaseRow, NewLease, OwnMachineRow};
pub use recent::GuardVote;
pub use rollup::{Rollup, word_of};
pub use schedule::Idle;
pub use snapshot::{NewSnapshot, SnapshotRow, SnapshotState};
pub use spending::SpentBy;
pub use standing::{Conditions, Standings};
pub use summary::Summary;
pub use sums::Priors;
pub use token::TokenRow;
pub use transfer::{ForeignRollup, Imported};
pub use workflow::{Advance, Finish, NewWorkflow, StartedWorkflow, StepTime, WorkflowRow};
pub use workspace::{Effect, NewWorkspace, WorkspaceRow, WorkspaceState};

use column::{args, record};
use dumont_core::time::Timestamp;
use engine::{Db, statements};
use standing::Remembered;
use std::path::Path;
use std::sync::Arc;

statements! {
    NOW: ["SELECT " NOW " AS now"];
}

struct Clock {
    now: Timestamp,
}
record!(Clock { now });

/// The database. Cheap to clone; all clones share their connections and what they remember.
#[derive(Debug, Clone)]
pub struct Store {
    db: Db,
    remembered: Arc<Remembered>,
}

impl From<Db> for Store {
    fn from(db: Db) -> Self {
        Self {
            db,
            remembered: Arc::default(),
        }
    }
}

impl Store {
    /// Opens a SQLite file, creates it if need be (readable by its owner only) and brings its
    /// schema up to date. Its directory must exist.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self> {
        Ok(Db::open_sqlite(path.as_ref()).await?.into())
    }

    /// Opens the PostgreSQL database at a `postgres://` address, which must exist, and brings
    /// its schema up to date. Of several that start at once, one does it.
    pub async fn connect(url: &str) -> Result<Self> {
        Ok(Db::open_postgres(url).await?.into())
    }

    /// A database that ends with its last clone. For tests: one connection serves all.
    pub async fn open_in_memory() -> Result<Self> {
        Ok(Db::open_sqlite_in_memory().await?.into())
    }

    /// The clock that leases go by; also shows that the database answers.
    pub async fn database_time(&self) -> Result<Timestamp> {
        let clock: Option<Clock> = self.db.first(NOW, args![]).await?;
        clock
            .map(|c| c.now)
            .ok_or_else(|| Error::not_found("clock", "now"))
    }

    /// Waits for what is under way and closes every connection.
    pub async fn close(&self) {
        self.db.close().await;
    }
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Where the next page begins, to be passed as `after`; `None` on the last page.
    pub next: Option<String>,
}

impl<T> Page<T> {
    /// From `limit + 1` rows: the one too many only says that there is more.
    pub(crate) fn cut(mut items: Vec<T>, limit: u32, cursor: impl Fn(&T) -> String) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = items.len() > limit;
        items.truncate(limit);
        Self {
            next: items.last().filter(|_| more).map(cursor),
            items,
        }
    }
}

#[cfg(test)]
pub(crate) fn all_statements() -> Vec<(&'static str, &'static [(&'static str, engine::Sql)])> {
    vec![
        ("attempt", attempt::STATEMENTS),
        ("attempt_list", attempt_list::STATEMENTS),
        ("blacklist", blacklist::STATEMENTS),
        ("census", census::STATEMENTS),
        ("extreme", extreme::STATEMENTS),
        ("failover_event", failover_event::STATEMENTS),
        ("gate", gate::STATEMENTS),
        ("instance", instance::STATEMENTS),
        ("interrupt", interrupt::STATEMENTS),
        ("lib", STATEMENTS),
        ("machine", machine::STATEMENTS),
        ("meta", meta::STATEMENTS),
        ("object_version", object_version::STATEMENTS),
        ("own_machine", own_machine::STATEMENTS),
        ("recent", recent::STATEMENTS),
        ("rollup", rollup::STATEMENTS),
        ("schedule", schedule::STATEMENTS),
        ("snapshot", snapshot::STATEMENTS),
        ("spending", spending::STATEMENTS),
        ("standing", standing::STATEMENTS),
        ("summary", summary::STATEMENTS),
        ("sums", sums::STATEMENTS),
        ("token", token::STATEMENTS),
        ("transfer", transfer::STATEMENTS),
        ("workflow", workflow::STATEMENTS),
        ("workspace", workspace::STATEMENTS),
    ]
}
