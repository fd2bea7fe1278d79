//! `dumont drill --chaos`: the same drill in a market where everything goes wrong now and then.
//!
//! The seed decides what: rules for machines that are bad from the start, some faults armed for
//! the machines of the failover itself, and the way in which the first machine is lost. The
//! market draws by seed and machine, so a seed that failed can be run again.

use super::script::{Drill, POLL};
use crate::output;
use anyhow::{Result, bail};
use dumont_wire::rest::{FailoverEvent, Workspace, WorkspaceState};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Longest wait for the workspace to live on a machine that stays.
const SETTLE: Duration = Duration::from_secs(600);

const YEAR: i64 = 365 * 86_400;

/// Numbers from the seed: the drill's own choices need no better ones.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// How the machine of the drill is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    Kill,
    Outbid,
    Offline,
}

/// What this seed does to the drill.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub rules: Value,
    /// Armed for the machines of the failover.
    pub armed: Vec<Value>,
    pub loss: Loss,
}

impl Plan {
    pub fn of(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let offset_s = [YEAR * 10, -YEAR * 10, 7_200, -7_200][dice.below(4) as usize];
        let rules = json!([
            { "fault": "create_refused", "chance": 0.15 },
            { "fault": "create_uncertain", "chance": 0.1 },
            { "fault": "stuck_loading", "chance": 0.08 },
            { "fault": "ssh_dead", "chance": 0.08 },
            { "fault": "key_lag", "chance": 0.3, "for_ms": 500 + dice.below(2_000) },
            { "fault": "driver_mismatch", "chance": 0.08, "scope": "machine" },
            { "fault": "gpu_missing", "chance": 0.08, "scope": "machine" },
            { "fault": "disk_small", "chance": 0.08, "scope": "machine", "size_mb": 1 },
            { "fault": "slow_network", "chance": 0.15, "scope": "machine", "mbit": 200 },
            { "fault": "clock_off", "chance": 0.25, "scope": "machine", "offset_s": offset_s },
            { "fault": "tmux_noise", "chance": 0.3 },
        ]);
        let late = ["dies", "outbid", "offline"];
        let armed = (0..dice.below(3))
            .map(|_| json!({ "fault": late[dice.below(3) as usize], "after_ms": dice.below(3_000) }))
            .collect();
        let loss = [Loss::Kill, Loss::Outbid, Loss::Offline][dice.below(3) as usize];
        Self { rules, armed, loss }
    }
}

impl Drill<'_> {
    /// Loses the machine as the plan says; gives the Unix millisecond.
    pub async fn lose(&mut self, instance: &str, plan: &Plan) -> Result<i64> {
        for fault in &plan.armed {
            self.world.admin.send("POST", "/admin/faults", fault).await?;
        }
        let armed: Vec<&str> = plan.armed.iter().filter_map(|f| f["fault"].as_str()).collect();
        self.say(&format!(
            "== chaos: lose instance {instance} ({:?}); waiting for the next: {armed:?}",
            plan.loss
        ));
        let at = output::now().0 / 1_000;
        match plan.loss {
            Loss::Kill => return Ok(self.world.admin.kill(instance).await?.killed_ms),
            Loss::Outbid => self.strike(instance, "outbid").await?,
            Loss::Offline => self.strike(instance, "offline").await?,
        }
        Ok(at)
    }

    async fn strike(&mut self, instance: &str, what: &str) -> Result<()> {
        let path = format!("/admin/instances/{instance}/{what}");
        self.world.admin.send("POST", &path, &Value::Null).await
    }

    /// Waits until the workspace lives on a machine that no fault will take any more, however
    /// many failovers that takes; gives the last one.
    pub async fn settled(&mut self, mut event: FailoverEvent, lost_ms: i64) -> Result<FailoverEvent> {
        let begin = Instant::now();
        loop {
            let workspace: Workspace = self.show().await?;
            if workspace.state == WorkspaceState::Failed {
                bail!(
                    "the workspace is failed: {}",
                    workspace.message.unwrap_or_default()
                );
            }
            if self.lives(&workspace).await? {
                let newest = crate::cli::failover::newest(&self.world.client, &self.name).await?;
                // Lost again between the two looks?
                if newest.as_ref().is_some_and(|e| e.id == event.id) {
                    return Ok(event);
                }
                event = newest
                    .filter(|e| e.finished_at.0 / 1_000 >= lost_ms)
                    .unwrap_or(event);
            }
            if begin.elapsed() > SETTLE {
                bail!("the workspace does not come to rest: {workspace:?}");
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn lives(&mut self, workspace: &Workspace) -> Result<bool> {
        let Some(instance) = &workspace.instance else {
            return Ok(false);
        };
        if workspace.state != WorkspaceState::Running || workspace.workflow_id.is_some() {
            return Ok(false);
        }
        let rented = self.world.admin.rented(&instance.instance_id).await?;
        let doomed = ["dies", "outbid", "offline"];
        let doomed = rented.faults.iter().any(|f| doomed.contains(&f.fault.as_str()));
        Ok(rented.state == "running" && !doomed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_plan_and_seeds_differ() {
        assert_eq!(Plan::of(7), Plan::of(7));
        let plans: Vec<Plan> = (1..=20).map(Plan::of).collect();
        for loss in [Loss::Kill, Loss::Outbid, Loss::Offline] {
            assert!(
                plans.iter().any(|p| p.loss == loss),
                "{loss:?} is among the first 20"
            );
        }
        assert!(plans.iter().any(|p| p.armed.is_empty()) && plans.iter().any(|p| p.armed.len() == 2));
    }
}
