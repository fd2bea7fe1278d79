//! Machines of the user's own, and who lives on them.
//!
//! A lease is what a contract is at a marketplace, so its row is the marketplace's side of the
//! bargain: one per label, one per place on a machine, whoever asks at the same time. It outlives
//! the machine's entry in the inventory, because what was put there must be taken away again.

use crate::column::{args, json, record};
use crate::engine::{statements, transact};
use crate::{Error, Page, Result, Store};
use dumont_core::id::MachineRef;
use dumont_core::own_machine::OwnMachine;
use dumont_core::time::Timestamp;

statements! {
    PUT: ["INSERT INTO ssh_machines (name, machine_json, created_at) VALUES ($1, $2, $3) \
           ON CONFLICT (name) DO UPDATE SET machine_json = excluded.machine_json"];
    LIST: ["SELECT * FROM ssh_machines WHERE name > $1 ORDER BY name LIMIT $2"];
    DELETE: ["DELETE FROM ssh_machines WHERE name = $1"];
    LEASES: ["SELECT * FROM ssh_leases ORDER BY id"];
    LEASE: ["SELECT * FROM ssh_leases WHERE id = $1"];
    LEASE_BY_LABEL: ["SELECT * FROM ssh_leases WHERE label = $1"];
    LEASES_ON: ["SELECT * FROM ssh_leases WHERE machine = $1 ORDER BY slot"];
    INSERT: ["INSERT INTO ssh_leases (id, label, machine, slot, machine_json, touched, releasing, created_at) \
              VALUES ($1, $2, $3, $4, $5, FALSE, FALSE, $6) ON CONFLICT DO NOTHING"];
    TOUCH: ["UPDATE ssh_leases SET touched = TRUE WHERE id = $1 AND NOT releasing"];
    SET_HOME: ["UPDATE ssh_leases SET home = $2 WHERE id = $1"];
    RELEASE: ["UPDATE ssh_leases SET releasing = TRUE WHERE id = $1 RETURNING *"];
    END: ["DELETE FROM ssh_leases WHERE id = $1"];
    END_ON: ["DELETE FROM ssh_leases WHERE machine = $1"];
    PINNED: ["SELECT key FROM ssh_host_keys WHERE endpoint = $1"];
    PIN: ["INSERT INTO ssh_host_keys (endpoint, key, seen_at) VALUES ($1, $2, $3) ON CONFLICT (endpoint) DO NOTHING"];
    LIVED_ON: ["SELECT host_key AS key FROM instances WHERE provider = $1 AND machine_id = $2 \
                AND state IN ('ready', 'owned') AND host_key IS NOT NULL ORDER BY instances.key DESC LIMIT 1"];
    REACHED: ["UPDATE instances SET ssh_host = $3, ssh_port = $4, host_key = $5, updated_at = $6 \
               WHERE provider = $1 AND machine_id = $2 AND state IN ('ready', 'owned') \
               AND (ssh_host <> $3 OR ssh_port <> $4 OR host_key <> $5)"];
    UNPIN: ["DELETE FROM ssh_host_keys WHERE endpoint = $1"];
}

/// A machine that was told over the API.
#[derive(Debug, Clone, PartialEq)]
pub struct OwnMachineRow {
    pub name: String,
    pub machine: OwnMachine,
    pub created_at: Timestamp,
}
record!(OwnMachineRow {
    name,
    machine = "machine_json",
    created_at
});

#[derive(Debug, Clone)]
pub struct NewLease<'a> {
    /// A ULID.
    pub id: &'a str,
    pub label: &'a str,
    pub machine: &'a OwnMachine,
}

#[derive(Debug, Clone, PartialEq)]
pub struct LeaseRow {
    pub id: String,
    pub label: String,
    /// As the machine was then.
    pub machine: OwnMachine,
    /// Which of the machine's places, from 0.
    pub slot: u64,
    /// Something may lie on the machine.
    pub touched: bool,
    /// The lease's directory there.
    pub home: Option<String>,
    /// It was given back and is to be cleaned up.
    pub releasing: bool,
    pub created_at: Timestamp,
}
record!(LeaseRow {
    id,
    label,
    machine = "machine_json",
    slot,
    touched,
    home,
    releasing,
    created_at
});

struct Key {
    key: String,
}
record!(Key { key });

impl Store {
    /// Repeated: the machine as it is said now.
    pub async fn put_own_machine(&self, machine: &OwnMachine, now: Timestamp) -> Result<()> {
        let args = args![machine.name(), json(machine)?, now];
        self.db.run(PUT, args).await.map(drop)
    }

    pub async fn list_own_machines(&self, after: Option<&str>, limit: u32) -> Result<Page<OwnMachineRow>> {
        let args = args![after.unwrap_or(""), u64::from(limit) + 1];
        let rows = self.db.all(LIST, args).await?;
        Ok(Page::cut(rows, limit, |m: &OwnMachineRow| m.name.clone()))
    }

    pub async fn delete_own_machine(&self, name: &str) -> Result<()> {
        match self.db.run(DELETE, args![name]).await? {
            0 => Err(Error::not_found("machine", name)),
            _ => Ok(()),
        }
    }

    /// A place on the machine under this label; the one it has where the label has one. `None` if
    /// every place is taken, or one is still to be cleaned up.
    pub async fn lease(&self, new: &NewLease<'_>, now: Timestamp) -> Result<Option<LeaseRow>> {
        let machine = json(new.machine)?;
        transact!(self.db, |tx| {
            if let Some(held) = tx.first(LEASE_BY_LABEL, args![new.label]).await? {
                return Ok(Some(held));
            }
            let there: Vec<LeaseRow> = tx.all(LEASES_ON, args![new.machine.name()]).await?;
            if there.iter().any(|l| l.releasing) {
                return Ok(None);
            }
            let taken = |slot: &u64| there.iter().any(|l| l.slot == *slot);
            for slot in (0..u64::from(new.machine.workspaces)).filter(|slot| !taken(slot)) {
                let args = args![new.id, new.label, new.machine.name(), slot, &machine, now];
                // Another may have been faster with the place, or with this very label.
                if tx.run(INSERT, args).await? > 0 {
                    break;
                }
            }
            tx.first(LEASE_BY_LABEL, args![new.label]).await
        })
    }

    pub async fn leases(&self) -> Result<Vec<LeaseRow>> {
        self.db.all(LEASES, args![]).await
    }

    pub async fn lease_by_id(&self, id: &str) -> Result<Option<LeaseRow>> {
        self.db.first(LEASE, args![id]).await
    }

    pub async fn lease_by_label(&self, label: &str) -> Result<Option<LeaseRow>> {
        self.db.first(LEASE_BY_LABEL, args![label]).await
    }

    /// To be called before anything is done on the machine. False once it is given back.
    pub async fn touch_lease(&self, id: &str) -> Result<bool> {
        Ok(self.db.run(TOUCH, args![id]).await? > 0)
    }

    pub async fn set_lease_home(&self, id: &str, home: &str) -> Result<()> {
        self.db.run(SET_HOME, args![id, home]).await.map(drop)
    }

    /// Gives it back: from now on it is only cleaned up. `None` if there is none.
    pub async fn release_lease(&self, id: &str) -> Result<Option<LeaseRow>> {
        transact!(self.db, |tx| tx.first(RELEASE, args![id]).await)
    }

    /// When nothing of it is left on the machine.
    pub async fn end_lease(&self, id: &str) -> Result<()> {
        self.db.run(END, args![id]).await.map(drop)
    }

    /// Gives up everything on a machine that will not come back.
    pub async fn end_leases_on(&self, name: &str) -> Result<u64> {
        self.db.run(END_ON, args![name]).await
    }

    pub async fn pinned_host_key(&self, endpoint: &str) -> Result<Option<String>> {
        let found: Option<Key> = self.db.first(PINNED, args![endpoint]).await?;
        Ok(found.map(|k| k.key))
    }

    /// The first one stays.
    pub async fn pin_host_key(&self, endpoint: &str, key: &str, now: Timestamp) -> Result<()> {
        self.db.run(PIN, args![endpoint, key, now]).await.map(drop)
    }

    /// The host key of the machine that a workspace lives on, wherever that is reached.
    pub async fn lived_on_host_key(&self, machine: &MachineRef) -> Result<Option<String>> {
        let args = args![&machine.provider, &machine.machine_id];
        let found: Option<Key> = self.db.first(LIVED_ON, args).await?;
        Ok(found.map(|k| k.key))
    }

    /// What lives on the machine is reached there from now on, and by this host key.
    pub async fn machine_reached(&self, machine: &OwnMachine, host_key: &str, now: Timestamp) -> Result<()> {
        let of = &machine.machine;
        let args = args![
            &of.provider,
            &of.machine_id,
            &machine.host,
            machine.port,
            host_key,
            now
        ];
        self.db.run(REACHED, args).await.map(drop)
    }

    pub async fn unpin_host_key(&self, endpoint: &str) -> Result<()> {
        self.db.run(UNPIN, args![endpoint]).await.map(drop)
    }
}
