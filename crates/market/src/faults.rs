//! What can go wrong with a rental, by name and by rule.
//!
//! An operator *arms* faults for the next creates, or sets *rules* by which the market draws
//! them: `{"fault": "ssh_dead", "chance": 0.2}`. What a rule draws depends on the seed, the
//! machine and how often it was asked for, never on the order in which machines are asked, so
//! the same seed meets the same faults. A fault that this host cannot make (a slow network
//! needs root) is kept on the instance together with the reason.

use serde::{Deserialize, Serialize};

use crate::rng::Draw;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// Answered with `no_such_ask`, as for an offer that somebody else took.
    CreateRefused,
    /// Carried out, but the connection closes without an answer.
    CreateUncertain,
    /// Stays in `loading` for good.
    StuckLoading,
    /// The container cannot be made: `created` for good, with the reason in `status_msg`.
    BootFails,
    /// Gets to `running`, but its SSH port refuses.
    SshDead,
    /// `Permission denied (publickey)` until `for_ms` after the first login that was refused.
    KeyLag,
    /// `nvidia-smi`: `Driver/library version mismatch`.
    DriverMismatch,
    /// Its driver is older than the one on offer: 470.256.02, which serves CUDA 11.4.
    OldDriver,
    /// `nvidia-smi` finds no device.
    GpuMissing,
    /// The workspace's file system has only `size_mb`.
    DiskSmall,
    /// A network of its own with `mbit` each way.
    SlowNetwork,
    /// Its clock is `offset_s` off.
    ClockOff,
    /// The host vanishes `after_ms` after `running`.
    Dies,
    /// Stopped by a higher bid `after_ms` after `running`; its GPUs are somebody else's.
    Outbid,
    /// No packet gets through from `after_ms` after `running` for `for_ms`; then it is back.
    Offline,
    /// A banner before every command's output, unless `~/.no_auto_tmux` is there.
    TmuxNoise,
}

impl FaultKind {
    /// Decided while the create is answered, before there is an instance.
    fn at_create(self) -> bool {
        matches!(self, Self::CreateRefused | Self::CreateUncertain)
    }
}

/// When, how long and how much; each kind reads what it names above.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Measure {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset_s: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_mb: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mbit: Option<u64>,
}

/// Armed: strikes the next `count` creates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    pub fault: FaultKind,
    #[serde(default = "one")]
    pub count: u64,
    /// Only for creates on this machine.
    #[serde(default)]
    pub machine_id: Option<u64>,
    #[serde(flatten)]
    pub measure: Measure,
}

fn one() -> u64 {
    1
}

/// Strikes by chance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    pub fault: FaultKind,
    /// From 0 to 1.
    pub chance: f64,
    #[serde(default)]
    pub scope: Scope,
    #[serde(flatten)]
    pub measure: Measure,
}

/// What a rule draws for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Each rental anew.
    #[default]
    Rental,
    /// Once for all: a machine that has it has it at every rental.
    Machine,
}

/// A fault that an instance has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Suffered {
    pub fault: FaultKind,
    #[serde(flatten)]
    pub measure: Measure,
    /// Why this host cannot make it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub without_effect: Option<String>,
}

impl Suffered {
    pub fn new(fault: FaultKind, measure: Measure) -> Self {
        Self {
            fault,
            measure,
            without_effect: None,
        }
    }
}

/// What one create meets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fate {
    pub refused: bool,
    pub reply_lost: bool,
    pub on_board: Vec<Suffered>,
}

/// What is armed, oldest first, and the rules.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    armed: Vec<Fault>,
    rules: Vec<Rule>,
}

impl Faults {
    pub fn arm(&mut self, fault: Fault) {
        if fault.count > 0 {
            self.armed.push(fault);
        }
    }

    pub fn clear(&mut self) {
        self.armed.clear();
    }

    pub fn armed(&self) -> &[Fault] {
        &self.armed
    }

    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    pub fn set_rules(&mut self, rules: Vec<Rule>) {
        self.rules = rules;
    }

    /// Decides the `nth` create on a machine, and uses up what was armed for it: at most one
    /// fault of the machine itself, so that several strike several machines.
    pub fn meet(&mut self, seed: u64, machine_id: u64, nth: u64) -> Fate {
        let mut drawn: Vec<Suffered> = self
            .rules
            .iter()
            .filter(|rule| rule.strikes(seed, machine_id, nth))
            .map(|rule| Suffered::new(rule.fault, rule.measure))
            .collect();
        let mut at_create = |kind: FaultKind| {
            let by_rule = drawn.iter().any(|s| s.fault == kind);
            by_rule || self.take(machine_id, |k| k == kind).is_some()
        };
        if at_create(FaultKind::CreateRefused) {
            return Fate {
                refused: true,
                ..Fate::default()
            };
        }
        let reply_lost = at_create(FaultKind::CreateUncertain);
        drawn.retain(|s| !s.fault.at_create());
        if let Some(armed) = self.take(machine_id, |k| !k.at_create()) {
            drawn.retain(|s| s.fault != armed.fault);
            drawn.push(armed);
        }
        Fate {
            refused: false,
            reply_lost,
            on_board: drawn,
        }
    }

    fn take(&mut self, machine_id: u64, wanted: impl Fn(FaultKind) -> bool) -> Option<Suffered> {
        let at = self
            .armed
            .iter()
            .position(|f| wanted(f.fault) && f.machine_id.is_none_or(|m| m == machine_id))?;
        let fault = self.armed.get_mut(at)?;
        fault.count -= 1;
        let taken = Suffered::new(fault.fault, fault.measure);
        if fault.count == 0 {
            self.armed.remove(at);
        }
        Some(taken)
    }
}

impl Rule {
    fn strikes(&self, seed: u64, machine_id: u64, nth: u64) -> bool {
        let nth = match self.scope {
            Scope::Rental => nth + 1,
            Scope::Machine => 0,
        };
        Draw::for_parts(&[seed, 0xfa, self.fault as u64, machine_id, nth]).chance(self.chance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn armed(fault: FaultKind, count: u64, machine_id: Option<u64>) -> Fault {
        Fault {
            fault,
            count,
            machine_id,
            measure: Measure::default(),
        }
    }

    fn kinds(fate: &Fate) -> Vec<FaultKind> {
        fate.on_board.iter().map(|s| s.fault).collect()
    }

    #[test]
    fn faults_are_used_up_and_keep_to_their_machine() {
        let mut faults = Faults::default();
        faults.arm(armed(FaultKind::SshDead, 2, Some(7)));
        faults.arm(armed(FaultKind::CreateRefused, 1, None));
        faults.arm(armed(FaultKind::StuckLoading, 0, None));
        assert!(faults.meet(1, 8, 0).refused);
        assert_eq!(faults.meet(1, 8, 1), Fate::default());
        for nth in 0..2 {
            assert_eq!(kinds(&faults.meet(1, 7, nth)), [FaultKind::SshDead]);
        }
        assert_eq!(faults.meet(1, 7, 2), Fate::default());
        assert!(faults.armed().is_empty());
    }

    #[test]
    fn several_armed_faults_strike_several_machines() {
        let mut faults = Faults::default();
        faults.arm(armed(FaultKind::GpuMissing, 1, None));
        faults.arm(armed(FaultKind::Dies, 1, None));
        faults.arm(armed(FaultKind::CreateUncertain, 1, None));
        let first = faults.meet(1, 1, 0);
        assert!(first.reply_lost);
        assert_eq!(kinds(&first), [FaultKind::GpuMissing]);
        assert_eq!(kinds(&faults.meet(1, 2, 0)), [FaultKind::Dies]);
    }

    #[test]
    fn rules_draw_the_same_for_the_same_seed_in_any_order() {
        let rules = |scope| {
            let mut faults = Faults::default();
            faults.set_rules(vec![Rule {
                fault: FaultKind::SshDead,
                chance: 0.3,
                scope,
                measure: Measure::default(),
            }]);
            faults
        };
        let met = |scope, seed, machine, nth| !rules(scope).meet(seed, machine, nth).on_board.is_empty();
        let (mut struck, mut differ) = (0, 0);
        for machine in 0..1_000 {
            let of_rental = met(Scope::Rental, 5, machine, 0);
            assert_eq!(of_rental, met(Scope::Rental, 5, machine, 0));
            struck += usize::from(of_rental);
            differ += usize::from(of_rental != met(Scope::Rental, 5, machine, 1));
            assert_eq!(
                met(Scope::Machine, 5, machine, 0),
                met(Scope::Machine, 5, machine, 9)
            );
        }
        assert!((230..370).contains(&struck), "{struck} of 1000 at 0.3");
        assert!(differ > 300, "each rental draws anew: {differ}");
    }

    #[test]
    fn the_words_of_the_operator_port() {
        let fault: Fault =
            serde_json::from_str(r#"{"fault":"clock_off","offset_s":-7200}"#).expect("a fault");
        assert_eq!((fault.count, fault.measure.offset_s), (1, Some(-7200)));
        let rule: Rule =
            serde_json::from_str(r#"{"fault":"dies","chance":0.1,"after_ms":5,"scope":"machine"}"#)
                .expect("a rule");
        assert_eq!((rule.scope, rule.measure.after_ms), (Scope::Machine, Some(5)));
    }
}
