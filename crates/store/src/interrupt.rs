//! Losses after ready: a machine that comes up and goes again is not to be relied upon, though
//! every attempt on it succeeded.
//!
//! They have a counter of their own: as attempts they would spoil the rate of a machine that
//! served for months. What is not the host's doing (the account stopped it) is kept with its
//! cause and counts for nothing.

use crate::attempt::Recorded;
use crate::blacklist;
use crate::column::{args, record};
use crate::engine::{statements, transact};
use crate::machine::Locked;
use crate::{Result, Store};
use dumont_core::blacklist::{LossCause, Settings, judge_losses};
use dumont_core::id::MachineRef;
use dumont_core::time::Timestamp;
use std::time::Duration;

statements! {
    INSERT: ["INSERT INTO machine_interrupts (provider, machine_id, interrupt_key, cause, trigger_name, \
              workspace_id, lived_seconds, suspect, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
              ON CONFLICT (interrupt_key) DO NOTHING"];
    // What happened in an incident is settled with it.
    RECENT: ["SELECT * FROM machine_interrupts WHERE provider = $1 AND machine_id = $2 \
              AND created_at > $3 AND NOT suspect ORDER BY created_at, id"];
    OF_MACHINE: ["SELECT * FROM machine_interrupts WHERE provider = $1 AND machine_id = $2 \
                  AND created_at > $3 ORDER BY created_at DESC, id DESC LIMIT $4"];
}

/// A machine that was ready and is lost.
#[derive(Debug, Clone, PartialEq)]
pub struct Interrupt {
    /// Unique for ever: `InstanceRow::loss_key`.
    pub interrupt_key: String,
    pub machine: MachineRef,
    pub cause: LossCause,
    /// The evidence that decided.
    pub trigger_name: String,
    pub workspace_id: Option<String>,
    /// From ready to lost.
    pub lived_seconds: Option<f64>,
    /// Lost while the incident guard suspected everything.
    pub suspect: bool,
    pub created_at: Timestamp,
}
record!(Interrupt {
    interrupt_key,
    machine,
    cause,
    trigger_name,
    workspace_id,
    lived_seconds,
    suspect,
    created_at
});

impl Store {
    /// The loss and what the rules make of it, all or nothing; a second time nothing.
    pub async fn record_interrupt(&self, new: &Interrupt, settings: &Settings) -> Result<Recorded> {
        let (provider, id, now) = (&new.machine.provider, &new.machine.machine_id, new.created_at);
        let days = Duration::from_secs(u64::from(settings.interrupt_days) * 86_400);
        transact!(self.db, |tx| {
            let mut machine = Locked::get(tx, &new.machine).await?;
            let args = args![
                provider,
                id,
                &new.interrupt_key,
                new.cause,
                &new.trigger_name,
                new.workspace_id.as_deref(),
                new.lived_seconds,
                new.suspect,
                now,
            ];
            let first = tx.run(INSERT, args).await? == 1;
            let mut blocked = None;
            if first {
                machine.settle(now);
                let rows: Vec<Interrupt> = tx.all(RECENT, args![provider, id, now.minus(days)]).await?;
                let losses: Vec<_> = rows.iter().map(|i| (i.created_at, i.cause)).collect();
                // Only a loss that counts itself tips the scale.
                let proposal = judge_losses(&losses, &machine.window, new.suspect, now, settings)
                    .filter(|_| new.cause.counts());
                if let Some(p) = proposal {
                    blocked = blacklist::propose(tx, &new.machine, p, &mut machine, now).await?;
                }
                machine.save(tx).await?;
            }
            Ok(Recorded {
                first,
                stats: machine.stats,
                blocked,
            })
        })
    }

    /// Newest first.
    pub async fn interrupts_of(
        &self,
        machine: &MachineRef,
        since: Timestamp,
        limit: u32,
    ) -> Result<Vec<Interrupt>> {
        let args = args![&machine.provider, &machine.machine_id, since, limit];
        self.db.all(OF_MACHINE, args).await
    }
}
