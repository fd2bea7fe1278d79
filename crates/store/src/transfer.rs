//! The history on its way out and in.
//!
//! An attempt keeps its key wherever it travels, so importing a file twice, or two files that
//! overlap, changes nothing the second time. What this installation has rolled up already is
//! left out for the same reason.

use crate::attempt::{AttemptRow, Judged, NewAttempt, record_in};
use crate::column::args;
use crate::engine::{statements, transact};
use crate::{Result, Store};
use dumont_core::blacklist::Settings;
use dumont_core::time::Timestamp;

statements! {
    NEXT: ["SELECT * FROM machine_attempts WHERE id > $1 AND created_at >= $2 \
            AND provider = COALESCE($3, provider) ORDER BY id LIMIT $4"];
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Imported {
    pub new: u64,
    /// Here already.
    pub known: u64,
    /// Made before what this installation still keeps.
    pub too_old: u64,
}

impl Store {
    /// Attempts in the order they were recorded here, after the one with this id.
    pub async fn export_attempts(
        &self,
        provider: Option<&str>,
        since: Option<Timestamp>,
        after: i64,
        limit: u32,
    ) -> Result<Vec<AttemptRow>> {
        let since = since.unwrap_or(Timestamp(i64::MIN));
        self.db.all(NEXT, args![after, since, provider, limit]).await
    }

    /// Records attempts of elsewhere, all or nothing. They count, and block nothing.
    pub async fn import_attempts(&self, attempts: &[NewAttempt], settings: &Settings) -> Result<Imported> {
        let until = self.rolled_up_until().await?;
        transact!(self.db, |tx| {
            let mut done = Imported::default();
            // In one order whoever imports, so that two imports never wait in a circle.
            let mut order: Vec<&NewAttempt> = attempts.iter().collect();
            order.sort_by(|a, b| (&a.machine, a.created_at).cmp(&(&b.machine, b.created_at)));
            for new in order {
                if until.is_some_and(|until| new.created_at < until) {
                    done.too_old += 1;
                } else if record_in(tx, new, Judged::Never, settings).await?.first {
                    done.new += 1;
                } else {
                    done.known += 1;
                }
            }
            Ok(done)
        })
    }
}
