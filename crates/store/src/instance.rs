//! Instances: contracts that cost money until they are destroyed.
//!
//! The row is written *before* the marketplace is asked ("intended"), under the label that
//! the contract will carry. Whatever dies in between, the row says what to look for, and
//! [`Store::list_open_instances`] never forgets one. States only move forward: a reply that
//! comes late cannot bring back an instance that is being destroyed.

use crate::column::{args, json, record, words_as_text};
use crate::engine::{Tx, statements, transact};
use crate::{Error, Result, Store, workflow};
use dumont_core::id::MachineRef;
use dumont_core::lease;
use dumont_core::offer::Offer;
use dumont_core::time::Timestamp;
use dumont_core::words;
use std::time::Duration;

statements! {
    INSERT: ["INSERT INTO instances (key, workspace_id, workflow_id, provider, label, offer_json, \
              machine_id, host_id, state, price, lease_ms, created_at, updated_at) \
              VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'intended', $9, $10, $11, $11) ON CONFLICT DO NOTHING"];
    GET: ["SELECT * FROM instances WHERE key = $1"];
    GET_FOR_UPDATE: ["SELECT * FROM instances WHERE key = $1" FOR_UPDATE];
    BY_LABEL: ["SELECT * FROM instances WHERE label = $1"];
    OPEN: ["SELECT * FROM instances WHERE state <> 'destroyed' \
            AND NOT (state = 'failed' AND instance_id IS NULL) ORDER BY key"];
    OF_WORKSPACE: ["SELECT * FROM instances WHERE workspace_id = $1 ORDER BY key"];
    ASKED_AFTER: ["SELECT provider, machine_id, \
                   MAX(CASE WHEN state IN ('destroyed', 'failed') THEN 0 ELSE 1 END) = 1 AS held \
                   FROM instances WHERE key > $1 AND COALESCE(workflow_id, '') <> $2 \
                   GROUP BY provider, machine_id"];
    SET_RENTED: ["UPDATE instances SET instance_id = $2, rented_at = COALESCE(rented_at, $3), \
                  state = CASE WHEN state = 'intended' THEN 'rented' ELSE state END, updated_at = $3 \
                  WHERE key = $1 RETURNING *"];
    SET_ENDPOINT: ["UPDATE instances SET ssh_host = $2, ssh_port = $3, \
                    host_key = COALESCE($4, host_key), ssh_user = $5, home = $6, updated_at = $7 \
                    WHERE key = $1"];
    SET_OFFER: ["UPDATE instances SET offer_json = $2, updated_at = $3 WHERE key = $1"];
    SET_BACK: ["UPDATE instances SET back_at = $2, updated_at = $2 WHERE key = $1"];
    SET_PRICE: ["UPDATE instances SET price = $2, updated_at = $3 WHERE key = $1"];
    PRICE_CHANGED: ["INSERT INTO instance_prices (instance_key, since, was, price) VALUES ($1, $2, $3, $4) \
                     ON CONFLICT (instance_key, since) DO UPDATE SET price = excluded.price"];
    SET_STATE: ["UPDATE instances SET state = $2, ready_at = $3, destroyed_at = $4, updated_at = $5 \
                 WHERE key = $1 RETURNING *"];
    SET_HEARD: ["UPDATE instances SET heard_at = $2 WHERE key = $1 AND lease_ms IS NOT NULL"];
    SET_CLOCK_SKEW: ["UPDATE instances SET clock_skew_ms = $2 WHERE key = $1"];
    FORGET_BASE: ["UPDATE instances SET last_snapshot_id = NULL WHERE last_snapshot_id = $1"];
    SET_LAST_SNAPSHOT: ["UPDATE instances SET last_snapshot_id = $2 WHERE key = $1"];
}

words! {
    pub enum InstanceState: "instance state" {
        /// About to be asked for; may or may not exist.
        Intended => "intended",
        /// The marketplace made the contract.
        Rented => "rented",
        Ready => "ready",
        /// A workspace lives on it.
        Owned => "owned",
        /// To be destroyed, or asked to be.
        Destroying => "destroying",
        /// Seen to be gone. Final.
        Destroyed => "destroyed",
        /// Could not be rented. Costs nothing unless it has an `instance_id` after all.
        Failed => "failed",
    }
}
words_as_text!(InstanceState);

impl InstanceState {
    /// Forward only. A failed one may turn out to exist, and is then destroyed.
    fn may_become(self, next: Self) -> bool {
        use InstanceState::{Destroyed, Destroying, Failed, Intended, Owned, Ready, Rented};
        match self {
            _ if self == next => true,
            Intended => true,
            Rented => matches!(next, Ready | Owned | Destroying | Destroyed | Failed),
            Ready => matches!(next, Owned | Destroying | Destroyed),
            Owned => matches!(next, Destroying | Destroyed),
            Failed => matches!(next, Destroying | Destroyed),
            Destroying => next == Destroyed,
            Destroyed => false,
        }
    }
}

#[derive(Debug, Clone)]
pub struct NewInstance {
    /// The attempt's ULID.
    pub key: String,
    pub workspace_id: String,
    /// The workflow that rents, and the fence under which: an owner of the past is refused
    /// here, before it spends money.
    pub workflow: Option<(String, i64)>,
    pub label: String,
    pub offer: Offer,
    /// How long it goes on without a controller; none for ever.
    pub lease: Option<Duration>,
}

/// Where an instance is reached; the fields of [`InstanceRow`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Endpoint<'a> {
    pub host: &'a str,
    pub port: u16,
    pub host_key: Option<&'a str>,
    pub user: Option<&'a str>,
    pub home: Option<&'a str>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct InstanceRow {
    pub key: String,
    pub workspace_id: String,
    pub workflow_id: Option<String>,
    pub machine: MachineRef,
    pub label: String,
    pub offer: Offer,
    pub host_id: Option<String>,
    pub state: InstanceState,
    /// The provider's id of the contract.
    pub instance_id: Option<String>,
    pub host_key: Option<String>,
    pub ssh_host: Option<String>,
    pub ssh_port: Option<u16>,
    /// Who logs in; none is root.
    pub ssh_user: Option<String>,
    /// The directory that stands for the machine's root, where others live there, too.
    pub home: Option<String>,
    /// What this very instance took or restored last: it may deduplicate against that.
    pub last_snapshot_id: Option<String>,
    /// Its clock minus ours when it became ready.
    pub clock_skew_ms: Option<i64>,
    /// How long it goes on without a controller before it stops itself.
    pub lease_ms: Option<i64>,
    /// When its agent was last heard, written down now and then.
    pub heard_at: Option<Timestamp>,
    /// Dollars per hour now; its offer's unless it stands still.
    pub price: f64,
    pub created_at: Timestamp,
    pub rented_at: Option<Timestamp>,
    pub ready_at: Option<Timestamp>,
    /// When it was had back after its last loss.
    pub back_at: Option<Timestamp>,
    pub destroyed_at: Option<Timestamp>,
    pub updated_at: Timestamp,
}
record!(InstanceRow {
    key,
    workspace_id,
    workflow_id,
    machine,
    label,
    offer = "offer_json",
    host_id,
    state,
    instance_id,
    host_key,
    ssh_host,
    ssh_port,
    ssh_user,
    home,
    last_snapshot_id,
    clock_skew_ms,
    lease_ms,
    heard_at,
    price,
    created_at,
    rented_at,
    ready_at,
    back_at,
    destroyed_at,
    updated_at
});

/// A machine that somebody has asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub machine: MachineRef,
    /// Neither refused nor given back, as far as we know.
    pub held: bool,
}
record!(Asked { machine, held });

impl InstanceRow {
    /// What a loss at this moment is called: another name each time that it was had back. None where
    /// that was since, which comes after its loss is written down.
    pub fn loss_key(&self, at: Timestamp) -> Option<String> {
        match self.back_at {
            None => Some(self.key.clone()),
            Some(back) => (back <= at).then(|| format!("{}/{}", self.key, back.0)),
        }
    }

    /// How long it goes on without a controller.
    pub fn lease(&self) -> Option<Duration> {
        let ms = self.lease_ms.and_then(|ms| u64::try_from(ms).ok());
        ms.map(Duration::from_millis)
    }

    /// Nothing was heard of it for so long that it may have stopped itself.
    pub fn may_have_ended(&self, now: Timestamp) -> bool {
        // A start begins the lease anew; the first one is after the rent.
        let known = [
            self.heard_at,
            self.ready_at,
            self.rented_at,
            Some(self.created_at),
        ];
        let heard = known.into_iter().flatten().max().unwrap_or(self.created_at);
        self.lease()
            .is_some_and(|lease| lease::is_over(lease, heard, now))
    }
}

/// A price like this one is the same.
const SAME: f64 = 1e-9;

/// From now on it costs so much. What it cost before stays written down.
async fn reprice(tx: &mut Tx, row: &InstanceRow, price: f64, now: Timestamp) -> Result<()> {
    if (row.price - price).abs() < SAME || row.state == InstanceState::Destroyed {
        return Ok(());
    }
    tx.run(PRICE_CHANGED, args![&row.key, now, row.price, price])
        .await?;
    tx.run(SET_PRICE, args![&row.key, price, now]).await.map(drop)
}

/// Its row, for a change that depends on it.
async fn locked(tx: &mut Tx, key: &str) -> Result<InstanceRow> {
    let row: Option<InstanceRow> = tx.first(GET_FOR_UPDATE, args![key]).await?;
    row.ok_or_else(|| Error::not_found("instance", key))
}

/// For the commit of a snapshot.
pub(crate) async fn set_last_snapshot(tx: &mut Tx, key: &str, snapshot_id: &str) -> Result<u64> {
    tx.run(SET_LAST_SNAPSHOT, args![key, snapshot_id]).await
}

impl Store {
    /// To be called before the marketplace is asked. Repeated with the same key and label: the
    /// row as it stands, whose state says whether to ask at all. `Stale` if the workflow has
    /// another owner by now, `Conflict` if the label is another instance's.
    pub async fn insert_intent(&self, new: &NewInstance, now: Timestamp) -> Result<InstanceRow> {
        let offer = &new.offer;
        let workflow_id = new.workflow.as_ref().map(|(id, _)| id);
        let args = args![
            &new.key,
            &new.workspace_id,
            workflow_id,
            &offer.machine.provider,
            &new.label,
            json(offer)?,
            &offer.machine.machine_id,
            offer.host_id.as_deref(),
            offer.price,
            new.lease
                .map(|l| i64::try_from(l.as_millis()).unwrap_or(i64::MAX)),
            now,
        ];
        transact!(self.db, |tx| {
            if let Some((id, fence)) = &new.workflow {
                workflow::check_fence(tx, id, *fence).await?;
            }
            tx.run(INSERT, args.clone()).await?;
            let row: Option<InstanceRow> = tx.first(GET, args![&new.key]).await?;
            row.filter(|r| r.label == new.label)
                .ok_or_else(|| Error::conflict("instance label", &new.label))
        })
    }

    /// The marketplace said yes. Look at the state of the answer: `destroying` or `failed`
    /// means that it was given up meanwhile and must be destroyed under this id.
    pub async fn set_instance_rented(
        &self,
        key: &str,
        instance_id: &str,
        now: Timestamp,
    ) -> Result<InstanceRow> {
        let row = transact!(self.db, |tx| tx
            .first(SET_RENTED, args![key, instance_id, now])
            .await)?;
        row.ok_or_else(|| Error::not_found("instance", key))
    }

    /// Where it is reached. `None` keeps the host key that is pinned.
    pub async fn set_instance_endpoint(&self, key: &str, at: &Endpoint<'_>, now: Timestamp) -> Result<()> {
        let args = args![key, at.host, at.port, at.host_key, at.user, at.home, now];
        match self.db.run(SET_ENDPOINT, args).await? {
            0 => Err(Error::not_found("instance", key)),
            _ => Ok(()),
        }
    }

    /// What it is to be had for, and costs from now on: before its bid is raised.
    pub async fn set_instance_offer(&self, key: &str, offer: &Offer, now: Timestamp) -> Result<()> {
        let text = json(offer)?;
        transact!(self.db, |tx| {
            let row = locked(tx, key).await?;
            tx.run(SET_OFFER, args![key, &text, now]).await?;
            reprice(tx, &row, offer.price, now).await
        })
    }

    /// What it costs, as was seen then. What was written since knows better.
    pub async fn set_instance_price(&self, key: &str, price: f64, seen: Timestamp) -> Result<()> {
        transact!(self.db, |tx| {
            let row = locked(tx, key).await?;
            if row.updated_at > seen {
                return Ok(());
            }
            reprice(tx, &row, price, seen).await
        })
    }

    /// It was lost, which is written down, and is ours again at its whole price.
    pub async fn set_instance_back(&self, key: &str, now: Timestamp) -> Result<()> {
        transact!(self.db, |tx| {
            let row = locked(tx, key).await?;
            tx.run(SET_BACK, args![key, now]).await?;
            reprice(tx, &row, row.offer.price, now).await
        })
    }

    /// `Stale` for a step back. The same state again: no change.
    pub async fn set_instance_state(
        &self,
        key: &str,
        state: InstanceState,
        now: Timestamp,
    ) -> Result<InstanceRow> {
        transact!(self.db, |tx| {
            let row = locked(tx, key).await?;
            if !row.state.may_become(state) {
                return Err(Error::stale("instance", key));
            }
            if row.state == state {
                return Ok(row);
            }
            let ready_at = row.ready_at.or((state == InstanceState::Ready).then_some(now));
            let destroyed_at = row
                .destroyed_at
                .or((state == InstanceState::Destroyed).then_some(now));
            let args = args![key, state, ready_at, destroyed_at, now];
            let row = tx.first(SET_STATE, args).await?;
            row.ok_or_else(|| Error::not_found("instance", key))
        })
    }

    /// Its agent was heard then; kept for those that have a lease.
    pub async fn set_instance_heard(&self, key: &str, at: Timestamp) -> Result<()> {
        self.db.run(SET_HEARD, args![key, at]).await.map(drop)
    }

    /// As its agent measured it.
    pub async fn set_instance_clock_skew(&self, key: &str, skew_ms: i64) -> Result<()> {
        match self.db.run(SET_CLOCK_SKEW, args![key, skew_ms]).await? {
            0 => Err(Error::not_found("instance", key)),
            _ => Ok(()),
        }
    }

    /// The next snapshot of whoever took or restored this one builds on nothing; how many.
    pub async fn forget_base(&self, snapshot_id: &str) -> Result<u64> {
        self.db.run(FORGET_BASE, args![snapshot_id]).await
    }

    /// After a restore; a snapshot's commit does it by itself.
    pub async fn set_instance_last_snapshot(&self, key: &str, snapshot_id: &str) -> Result<()> {
        match self.db.run(SET_LAST_SNAPSHOT, args![key, snapshot_id]).await? {
            0 => Err(Error::not_found("instance", key)),
            _ => Ok(()),
        }
    }

    pub async fn instance(&self, key: &str) -> Result<Option<InstanceRow>> {
        self.db.first(GET, args![key]).await
    }

    pub async fn instance_by_label(&self, label: &str) -> Result<Option<InstanceRow>> {
        self.db.first(BY_LABEL, args![label]).await
    }

    /// All that may cost money: not destroyed, nor failed before there was a contract.
    pub async fn list_open_instances(&self) -> Result<Vec<InstanceRow>> {
        self.db.all(OPEN, args![]).await
    }

    /// Machines that other workflows have asked for under keys after `key`, whatever came of it.
    pub async fn asked_after(&self, key: &str, workflow_id: &str) -> Result<Vec<Asked>> {
        self.db.all(ASKED_AFTER, args![key, workflow_id]).await
    }

    /// Oldest first, destroyed ones too.
    pub async fn instances_of(&self, workspace_id: &str) -> Result<Vec<InstanceRow>> {
        self.db.all(OF_WORKSPACE, args![workspace_id]).await
    }
}
