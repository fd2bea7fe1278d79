//! Blocks on machines, and who set or lifted them.
//!
//! An entry that was removed or has run out stays as history; at most one per machine (and
//! scope) is open, which an index guarantees. What a person says always stands: rules go
//! through [`propose`], which asks `core` whether the open entry is stronger.

use crate::column::{args, record};
use crate::engine::{Tx, statements, transact};
use crate::machine::Locked;
use crate::{Error, Page, Result, Store};
use dumont_core::blacklist::{
    BlacklistType, Change, CudaVersion, Entry, Proposal, Rule, Scope, change, is_active,
};
use dumont_core::id::MachineRef;
use dumont_core::time::Timestamp;

statements! {
    CLOSE_EXPIRED: ["UPDATE machine_blacklist SET is_active = FALSE, closed_at = expires_at, \
                     closed_by = 'expired' WHERE is_active AND expires_at <= $1"];
    CLOSE_EXPIRED_OF: ["UPDATE machine_blacklist SET is_active = FALSE, closed_at = expires_at, \
                        closed_by = 'expired' WHERE provider = $1 AND machine_id = $2 \
                        AND is_active AND expires_at <= $3"];
    OPEN_FOR_UPDATE: ["SELECT * FROM machine_blacklist WHERE provider = $1 AND machine_id = $2 \
                       AND is_active AND COALESCE(scope, '') = $3" FOR_UPDATE];
    INSERT: ["INSERT INTO machine_blacklist (provider, machine_id, blacklist_type, reason, total_attempts, \
              failed_attempts, failure_rate, blacklisted_at, expires_at, is_active, rule, actor, scope) \
              VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, TRUE, $10, $11, $12) RETURNING *"];
    UPDATE: ["UPDATE machine_blacklist SET blacklist_type = $2, reason = $3, total_attempts = $4, \
              failed_attempts = $5, failure_rate = $6, blacklisted_at = $7, expires_at = $8, rule = $9, \
              actor = $10 WHERE id = $1 RETURNING *"];
    REMOVE: ["UPDATE machine_blacklist SET is_active = FALSE, closed_at = $4, closed_by = $3 \
              WHERE provider = $1 AND machine_id = $2 AND is_active \
              AND (expires_at IS NULL OR expires_at > $4) RETURNING *"];
    OF_MACHINE: ["SELECT * FROM machine_blacklist WHERE provider = $1 AND machine_id = $2 AND is_active \
                  AND (expires_at IS NULL OR expires_at > $3) ORDER BY id"];
    EVER: ["SELECT * FROM machine_blacklist WHERE provider = $1 AND machine_id = $2 \
            ORDER BY id DESC LIMIT $3"];
    LIST: ["SELECT * FROM machine_blacklist WHERE id < $1 AND is_active \
            AND (expires_at IS NULL OR expires_at > $2) \
            AND provider = COALESCE($3, provider) AND blacklist_type = COALESCE($4, blacklist_type) \
            AND blacklisted_at >= COALESCE($5, blacklisted_at) ORDER BY id DESC LIMIT $6"];
    LIST_EVER: ["SELECT * FROM machine_blacklist WHERE id < $1 \
            AND provider = COALESCE($2, provider) AND blacklist_type = COALESCE($3, blacklist_type) \
            AND blacklisted_at >= COALESCE($4, blacklisted_at) ORDER BY id DESC LIMIT $5"];
}

/// What a person or a tool asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewBlacklist {
    pub machine: MachineRef,
    pub blacklist_type: BlacklistType,
    pub reason: String,
    /// `None` is for good.
    pub expires_at: Option<Timestamp>,
    /// Who: the token's name.
    pub actor: Option<String>,
    /// What it is blocked for, e.g. `cuda=12.8`; `None` is everything.
    pub scope: Option<String>,
}

/// Which entries a list shows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BlacklistFilter {
    pub provider: Option<String>,
    pub blacklist_type: Option<BlacklistType>,
    /// Blocked at or after.
    pub since: Option<Timestamp>,
    /// Removed and expired ones too.
    pub closed: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct BlacklistRow {
    pub id: i64,
    pub machine: MachineRef,
    pub blacklist_type: BlacklistType,
    pub reason: String,
    /// The machine's record when it was blocked.
    pub total_attempts: i64,
    pub failed_attempts: i64,
    pub failure_rate: Option<f64>,
    pub blacklisted_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    /// Not closed; see [`BlacklistRow::blocks`].
    pub is_active: bool,
    /// The rule that made it; `None` for a person's.
    pub rule: Option<Rule>,
    pub actor: Option<String>,
    pub scope: Option<String>,
    pub closed_at: Option<Timestamp>,
    pub closed_by: Option<String>,
}
record!(BlacklistRow {
    id,
    machine,
    blacklist_type,
    reason,
    total_attempts,
    failed_attempts,
    failure_rate,
    blacklisted_at,
    expires_at,
    is_active,
    rule,
    actor,
    scope,
    closed_at,
    closed_by
});

/// Of a machine's blocks in force the one to name to a workload that needs this CUDA version:
/// one for everything says more than one for a version.
pub fn in_the_way(blocks: &[BlacklistRow], cuda: Option<CudaVersion>) -> Option<&BlacklistRow> {
    let whole = blocks.iter().find(|b| b.scope.is_none());
    whole.or_else(|| blocks.iter().find(|b| b.concerns(cuda)))
}

impl BlacklistRow {
    fn entry(&self) -> Entry {
        Entry {
            blacklist_type: self.blacklist_type,
            expires_at: self.expires_at,
            open: self.is_active,
        }
    }

    /// Whether it stands in the way of a workload that needs this CUDA version. A scope that a
    /// later version wrote is none of ours to judge, so it blocks.
    pub fn concerns(&self, cuda: Option<CudaVersion>) -> bool {
        let Some(scope) = &self.scope else {
            return true;
        };
        scope.parse().map_or(true, |s: Scope| s.covers(cuda))
    }

    /// `vast:7 is blacklisted for cuda=12.8 (automatic): driver_mismatch`
    pub fn in_words(&self) -> String {
        let scope = self
            .scope
            .as_ref()
            .map_or_else(String::new, |s| format!(" for {s}"));
        format!(
            "{} is blacklisted{scope} ({}): {}",
            self.machine, self.blacklist_type, self.reason
        )
    }

    /// It is in force at `now`.
    pub fn blocks(&self, now: Timestamp) -> bool {
        is_active(&self.entry(), now)
    }
}

/// Closes what has run out, then returns what is open in this scope.
async fn open_entry(
    tx: &mut Tx,
    machine: &MachineRef,
    scope: Option<&str>,
    now: Timestamp,
) -> Result<Option<BlacklistRow>> {
    let (provider, id) = (&machine.provider, &machine.machine_id);
    tx.run(CLOSE_EXPIRED_OF, args![provider, id, now]).await?;
    tx.first(OPEN_FOR_UPDATE, args![provider, id, scope.unwrap_or("")])
        .await
}

/// Writes over `open`, or a new row.
async fn write(
    tx: &mut Tx,
    open: Option<&BlacklistRow>,
    new: &NewBlacklist,
    rule: Option<Rule>,
    locked: &mut Locked,
    now: Timestamp,
) -> Result<BlacklistRow> {
    if new.scope.is_none() {
        locked.blocked_until = new.expires_at;
    }
    let stats = &locked.stats;
    let (kind, reason, actor) = (new.blacklist_type, &new.reason, new.actor.as_deref());
    let (total, failed, rate) = (stats.total, stats.failed, stats.failure_rate());
    let row = if let Some(open) = open {
        let args = args![
            open.id,
            kind,
            reason,
            total,
            failed,
            rate,
            now,
            new.expires_at,
            rule,
            actor
        ];
        tx.first(UPDATE, args).await?
    } else {
        let (provider, id, scope) = (
            &new.machine.provider,
            &new.machine.machine_id,
            new.scope.as_deref(),
        );
        let args = args![
            provider,
            id,
            kind,
            reason,
            total,
            failed,
            rate,
            now,
            new.expires_at,
            rule,
            actor,
            scope
        ];
        tx.first(INSERT, args).await?
    };
    row.ok_or_else(|| Error::not_found("blacklist entry", &new.machine.to_string()))
}

/// Applies a rule's proposal; `None` where what stands is as strong. `locked` must be saved
/// after it.
pub(crate) async fn propose(
    tx: &mut Tx,
    machine: &MachineRef,
    proposal: Proposal,
    locked: &mut Locked,
    now: Timestamp,
) -> Result<Option<BlacklistRow>> {
    let scope = proposal.scope.map(|s| s.to_string());
    let open = open_entry(tx, machine, scope.as_deref(), now).await?;
    if change(open.as_ref().map(BlacklistRow::entry).as_ref(), &proposal, now) == Change::Keep {
        return Ok(None);
    }
    let new = NewBlacklist {
        machine: machine.clone(),
        blacklist_type: proposal.blacklist_type,
        reason: proposal.reason,
        expires_at: proposal.duration.map(|d| now.plus(d)),
        actor: None,
        scope,
    };
    write(tx, open.as_ref(), &new, Some(proposal.rule), locked, now)
        .await
        .map(Some)
}

impl Store {
    /// A person's word: writes over whatever is open in the scope. True if there was nothing.
    /// A manual entry gives way to a manual one only; anything else is a `Conflict`.
    pub async fn add_blacklist(&self, new: &NewBlacklist, now: Timestamp) -> Result<(BlacklistRow, bool)> {
        transact!(self.db, |tx| {
            let mut locked = Locked::get(tx, &new.machine).await?;
            locked.settle(now);
            let open = open_entry(tx, &new.machine, new.scope.as_deref(), now).await?;
            let manual = |kind| kind == BlacklistType::Manual;
            if open.as_ref().is_some_and(|o| manual(o.blacklist_type)) && !manual(new.blacklist_type) {
                return Err(Error::conflict(
                    "manual blacklist entry",
                    &new.machine.to_string(),
                ));
            }
            let row = write(tx, open.as_ref(), new, None, &mut locked, now).await?;
            locked.save(tx).await?;
            Ok((row, open.is_none()))
        })
    }

    /// Lifts every block in force on the machine, scoped ones too, and gives them; `NotFound`
    /// if there is none. What the machine did up to now is settled: the rules judge only what
    /// comes after.
    pub async fn remove_blacklist(
        &self,
        machine: &MachineRef,
        actor: &str,
        now: Timestamp,
    ) -> Result<Vec<BlacklistRow>> {
        transact!(self.db, |tx| {
            let mut locked = Locked::get(tx, machine).await?;
            let args = args![&machine.provider, &machine.machine_id, actor, now];
            let removed: Vec<BlacklistRow> = tx.all(REMOVE, args).await?;
            if removed.is_empty() {
                // Undone with the transaction: a machine is not met by being asked for.
                return Err(Error::not_found("blacklist entry", &machine.to_string()));
            }
            locked.blocked_until = None;
            locked.window.restart(now);
            locked.save(tx).await?;
            Ok(removed)
        })
    }

    /// The machine's blocks in force, scoped ones too, oldest first.
    pub async fn blocks_of(&self, machine: &MachineRef, now: Timestamp) -> Result<Vec<BlacklistRow>> {
        self.db
            .all(OF_MACHINE, args![&machine.provider, &machine.machine_id, now])
            .await
    }

    /// The unscoped block in force, if any.
    pub async fn check_blacklist(
        &self,
        machine: &MachineRef,
        now: Timestamp,
    ) -> Result<Option<BlacklistRow>> {
        let blocks = self.blocks_of(machine, now).await?;
        Ok(blocks.into_iter().find(|b| b.scope.is_none()))
    }

    /// The block in the way of a workload that needs this CUDA version, if any.
    pub async fn block_for(
        &self,
        machine: &MachineRef,
        cuda: Option<CudaVersion>,
        now: Timestamp,
    ) -> Result<Option<BlacklistRow>> {
        let blocks = self.blocks_of(machine, now).await?;
        Ok(in_the_way(&blocks, cuda).cloned())
    }

    /// Every entry the machine ever had, newest first.
    pub async fn blacklist_ever(&self, machine: &MachineRef, limit: u32) -> Result<Vec<BlacklistRow>> {
        self.db
            .all(EVER, args![&machine.provider, &machine.machine_id, limit])
            .await
    }

    /// Newest first; `after` is an entry's id.
    pub async fn list_blacklist(
        &self,
        filter: &BlacklistFilter,
        after: Option<i64>,
        limit: u32,
        now: Timestamp,
    ) -> Result<Page<BlacklistRow>> {
        let (after, most) = (after.unwrap_or(i64::MAX), u64::from(limit) + 1);
        let (provider, kind, since) = (filter.provider.as_deref(), filter.blacklist_type, filter.since);
        let rows = if filter.closed {
            self.db
                .all(LIST_EVER, args![after, provider, kind, since, most])
                .await?
        } else {
            self.db
                .all(LIST, args![after, now, provider, kind, since, most])
                .await?
        };
        Ok(Page::cut(rows, limit, |b: &BlacklistRow| b.id.to_string()))
    }

    /// Closes what has run out. It blocked no longer anyway; this only tidies.
    pub async fn close_expired_blacklist(&self, now: Timestamp) -> Result<u64> {
        self.db.run(CLOSE_EXPIRED, args![now]).await
    }
}
