//! Faults that an operator arms for the next creates.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// Answered with `no_such_ask`, as for an offer that somebody else took.
    CreateRefused,
    /// Stays in `loading` for good.
    StuckLoading,
    /// Gets to `running`, but its SSH port refuses.
    SshDead,
    /// Carried out, but the connection closes without an answer.
    CreateUncertain,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    pub fault: FaultKind,
    #[serde(default = "one")]
    pub count: u64,
    /// Only for creates on this machine.
    #[serde(default)]
    pub machine_id: Option<u64>,
}

fn one() -> u64 {
    1
}

/// What is armed, oldest first.
#[derive(Debug, Clone, Default)]
pub struct Faults(Vec<Fault>);

impl Faults {
    pub fn arm(&mut self, fault: Fault) {
        if fault.count > 0 {
            self.0.push(fault);
        }
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub fn armed(&self) -> &[Fault] {
        &self.0
    }

    /// Uses up one `kind` for this machine, if armed.
    pub fn take(&mut self, kind: FaultKind, machine_id: u64) -> bool {
        self.take_any(&[kind], machine_id).is_some()
    }

    /// The fault that the next boot on this machine suffers.
    pub fn take_for_boot(&mut self, machine_id: u64) -> Option<FaultKind> {
        self.take_any(&[FaultKind::StuckLoading, FaultKind::SshDead], machine_id)
    }

    fn take_any(&mut self, kinds: &[FaultKind], machine_id: u64) -> Option<FaultKind> {
        let at = self
            .0
            .iter()
            .position(|f| kinds.contains(&f.fault) && f.machine_id.is_none_or(|m| m == machine_id))?;
        let fault = self.0.get_mut(at)?;
        fault.count -= 1;
        let kind = fault.fault;
        if fault.count == 0 {
            self.0.remove(at);
        }
        Some(kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_used_up_and_keep_to_their_machine() {
        let mut faults = Faults::default();
        faults.arm(Fault {
            fault: FaultKind::SshDead,
            count: 2,
            machine_id: Some(7),
        });
        faults.arm(Fault {
            fault: FaultKind::CreateRefused,
            count: 1,
            machine_id: None,
        });
        faults.arm(Fault {
            fault: FaultKind::StuckLoading,
            count: 0,
            machine_id: None,
        });
        assert_eq!(faults.take_for_boot(8), None);
        assert!(faults.take(FaultKind::CreateRefused, 8));
        assert!(!faults.take(FaultKind::CreateRefused, 8));
        assert_eq!(faults.take_for_boot(7), Some(FaultKind::SshDead));
        assert_eq!(faults.take_for_boot(7), Some(FaultKind::SshDead));
        assert_eq!(faults.take_for_boot(7), None);
        assert!(faults.armed().is_empty());
    }
}
