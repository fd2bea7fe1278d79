//! A workspace's specification: what the user asked for. Unknown fields are refused.

use crate::blacklist::CudaVersion;
use crate::id::WorkspaceName;
pub use crate::probe::Probe;
use crate::retention::Keep;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a user wants to keep running.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkspaceSpec {
    pub name: WorkspaceName,
    /// Whose machines it may live on.
    #[serde(default, skip_serializing_if = "Providers::is_default")]
    pub provider: Providers,
    #[serde(default)]
    pub gpu: GpuWanted,
    /// Container image.
    #[serde(default = "default_image")]
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 1024, pattern = r"^\S+$", default = default_image))]
    pub image: String,
    /// Disk to rent, GB.
    #[serde(default = "default_disk")]
    #[cfg_attr(feature = "openapi", schema(minimum = 8, maximum = 16384, default = default_disk))]
    pub disk_gb: u32,
    /// The most to pay, dollars per hour, storage included.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(exclusive_minimum = 0.0))]
    pub max_price: Option<f64>,
    /// Rent machines that a higher bid may take away at any time, for less. Absent: on demand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interruptible: Option<Interruptible>,
    /// The directory that is snapshotted and restored.
    #[serde(default = "default_path")]
    #[cfg_attr(feature = "openapi", schema(max_length = 1024, pattern = "^/", default = default_path))]
    pub path: String,
    /// Shell command of the workload; none means only the files are kept.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 32768))]
    pub start: Option<String>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// TCP ports the workload listens on.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(max_items = 63, value_type = Vec<crate::openapi::Port>))]
    pub ports: Vec<u16>,
    #[serde(default)]
    pub probe: Option<Probe>,
    #[serde(default)]
    pub snapshot: SnapshotPolicy,
    #[serde(default)]
    pub failover: FailoverPolicy,
}

/// Whose machines are searched.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Providers {
    /// Those rented at Vast.ai.
    #[default]
    Vast,
    /// Machines of the user's own.
    Ssh,
    /// All that the server knows.
    Any,
}

impl Providers {
    /// Whether this provider is among them.
    pub fn allow(self, provider: &str) -> bool {
        match self {
            Self::Vast => provider == "vast",
            Self::Ssh => provider == crate::own_machine::PROVIDER,
            Self::Any => true,
        }
    }

    /// This one alone, where it has a word.
    pub fn of(provider: &str) -> Option<Self> {
        provider.parse().ok().filter(|p| *p != Self::Any)
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl std::str::FromStr for Providers {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "vast" => Ok(Self::Vast),
            "ssh" => Ok(Self::Ssh),
            "any" => Ok(Self::Any),
            _ => Err("write vast, ssh or any".into()),
        }
    }
}

impl std::fmt::Display for Providers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Vast => "vast",
            Self::Ssh => "ssh",
            Self::Any => "any",
        })
    }
}

/// How to bid.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interruptible {
    /// Dollars per hour for the machine, storage not included; never raised. Absent: chosen for
    /// each machine, a margin above the lowest bid and below its price on demand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 0.001, maximum = 128.0))]
    pub bid: Option<f64>,
}

#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuWanted {
    /// Exact marketplace name, e.g. "RTX 4090"; none means any.
    #[serde(default)]
    pub name: Option<String>,
    #[serde(default = "one")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 16, default = one))]
    pub count: u32,
    /// Least memory per GPU, GB.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(minimum = 0.0))]
    pub min_ram_gb: Option<f64>,
    /// CUDA version that the driver must serve, e.g. `12.4`. A machine whose driver turns out not
    /// to is blocked for that version only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cuda: Option<CudaVersion>,
}

impl Default for GpuWanted {
    fn default() -> Self {
        Self {
            name: None,
            count: 1,
            min_ram_gb: None,
            cuda: None,
        }
    }
}

#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailoverPolicy {
    /// Fail over by itself when the machine is lost.
    #[serde(default = "yes")]
    pub automatic: bool,
    /// Offers to race at one time. Absent: as many as pay, judged anew every few seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 8))]
    pub racers: Option<u32>,
}

impl Default for FailoverPolicy {
    fn default() -> Self {
        Self {
            automatic: true,
            racers: None,
        }
    }
}

/// How snapshots are taken and restored.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotPolicy {
    // First: no list of nulls may read as a policy (serde takes sequences for structs).
    /// How long each of the two may take, seconds.
    #[serde(default = "default_hook_timeout")]
    pub hook_timeout_s: u32,
    /// Shell command on the machine before files are read, e.g. to flush or to pause a trainer.
    /// If it fails there is no snapshot.
    #[serde(default)]
    pub before: Option<String>,
    /// Runs after every `before`, whatever became of the snapshot.
    #[serde(default)]
    pub after: Option<String>,
    /// Globs of paths below `path` that a restore brings first.
    #[serde(default)]
    pub priority: Vec<String>,
    /// Globs of what must be there before the start command runs; the rest is restored while it
    /// runs. What they name is the workload's from then on, what they do not is the restore's until
    /// it is complete, and until then there are no snapshots. None means everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ready_when: Vec<String>,
    /// Minutes between two snapshots that are taken by themselves; 0 for none. Absent: the server's
    /// `PERIODIC_SNAPSHOT_INTERVAL_MINUTES`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(maximum = 525_600))]
    pub every_minutes: Option<u32>,
    /// Which snapshots are kept.
    #[serde(default)]
    pub keep: Keep,
    /// Everything in the store is sealed with a key of the workspace's own, which the server makes
    /// and keeps. Whoever loses the server and has no copy of the key loses the snapshots.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub encrypt: bool,
    /// Ends of the names of model files: their MD5 is taken with the snapshot and compared after a
    /// failover. An empty list turns it off.
    #[serde(default = "default_model_files")]
    #[cfg_attr(feature = "openapi", schema(default = default_model_files))]
    pub model_files: Vec<String>,
}

impl Default for SnapshotPolicy {
    fn default() -> Self {
        Self {
            before: None,
            after: None,
            hook_timeout_s: default_hook_timeout(),
            priority: Vec::new(),
            ready_when: Vec::new(),
            every_minutes: None,
            keep: Keep::default(),
            encrypt: false,
            model_files: default_model_files(),
        }
    }
}

impl SnapshotPolicy {
    fn check(&self) -> Result<(), InvalidSpec> {
        let bad = |field, problem: &str| {
            Err(InvalidSpec {
                field,
                problem: problem.into(),
            })
        };
        for (field, command) in [("snapshot.before", &self.before), ("snapshot.after", &self.after)] {
            let wrong = |c: &String| c.trim().is_empty() || c.contains('\0') || c.len() > 32_768;
            if command.as_ref().is_some_and(wrong) {
                return bad(
                    field,
                    "must be a shell command of at most 32 KB; leave it out for none",
                );
            }
        }
        if !(1..=3600).contains(&self.hook_timeout_s) {
            return bad("snapshot.hook_timeout_s", "is not between 1 and 3600 seconds");
        }
        if self.every_minutes.is_some_and(|m| m > MOST_MINUTES) {
            return bad(
                "snapshot.every_minutes",
                "is more than 525600, a year; 0 takes none",
            );
        }
        let odd_end = |e: &String| e.is_empty() || e.len() > 100 || e.contains(['/', '\0']);
        if self.model_files.len() > 50 || self.model_files.iter().any(odd_end) {
            return bad(
                "snapshot.model_files",
                "must be at most 50 ends of file names, e.g. .safetensors",
            );
        }
        let odd = |g: &String| g.is_empty() || g.len() > 1024 || g.contains('\0') || g.starts_with('/');
        for (field, globs) in [
            ("snapshot.priority", &self.priority),
            ("snapshot.ready_when", &self.ready_when),
        ] {
            if globs.len() <= 100 && !globs.iter().any(odd) {
                continue;
            }
            return bad(
                field,
                "must be at most 100 globs of paths below the workspace's directory, e.g. src/**",
            );
        }
        Ok(())
    }
}

/// A year.
const MOST_MINUTES: u32 = 525_600;

fn default_hook_timeout() -> u32 {
    60
}
fn default_model_files() -> Vec<String> {
    [".safetensors", ".pt", ".pth", ".bin", ".gguf", ".ckpt", ".onnx"]
        .map(Into::into)
        .into()
}
fn default_image() -> String {
    "pytorch/pytorch:latest".into()
}
fn default_disk() -> u32 {
    20
}
fn default_path() -> String {
    "/workspace".into()
}
fn one() -> u32 {
    1
}
fn yes() -> bool {
    true
}

/// A field that cannot be accepted, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct InvalidSpec {
    pub field: &'static str,
    pub problem: String,
}

impl WorkspaceSpec {
    /// Checks what types cannot. Called at the edge, before anything is stored or rented.
    pub fn check(&self) -> Result<(), InvalidSpec> {
        let bad = |field, problem: String| Err(InvalidSpec { field, problem });
        if !self.path.starts_with('/')
            || self.path == "/"
            || self.path.split('/').any(|p| p == ".." || p == ".")
        {
            return bad(
                "path",
                format!(
                    "{:?} must be an absolute directory below /, without '.' or '..'",
                    self.path
                ),
            );
        }
        if self.path.len() > 1024 || self.path.contains('\0') {
            return bad("path", "must be at most 1024 bytes without NUL".into());
        }
        if !(1..=16).contains(&self.gpu.count) {
            return bad("gpu.count", format!("{} is not between 1 and 16", self.gpu.count));
        }
        if !(8..=16_384).contains(&self.disk_gb) {
            return bad("disk_gb", format!("{} is not between 8 and 16384", self.disk_gb));
        }
        if self.max_price.is_some_and(|p| !p.is_finite() || p <= 0.0) {
            return bad(
                "max_price",
                "must be a positive number of dollars per hour".into(),
            );
        }
        if self.gpu.min_ram_gb.is_some_and(|p| !p.is_finite() || p < 0.0) {
            return bad("gpu.min_ram_gb", "must be a number of GB, 0 or more".into());
        }
        if let Some(racers) = self.failover.racers
            && !(1..=8).contains(&racers)
        {
            return bad("failover.racers", format!("{racers} is not between 1 and 8"));
        }
        if self.image.is_empty() || self.image.len() > 1024 || self.image.chars().any(char::is_whitespace) {
            return bad("image", "must be 1 to 1024 characters without spaces".into());
        }
        let mut ports = self.ports.clone();
        ports.sort_unstable();
        ports.dedup();
        if ports.len() != self.ports.len() || ports.len() > 63 || ports.iter().any(|p| *p == 0 || *p == 22) {
            return bad(
                "ports",
                "must be at most 63 different TCP ports, not 0 and not 22 (SSH has it)".into(),
            );
        }
        let blank = |text: &str| text.trim().is_empty() || text.contains('\0');
        if self
            .gpu
            .name
            .as_deref()
            .is_some_and(|n| blank(n) || n.len() > 100)
        {
            return bad(
                "gpu.name",
                "must be a marketplace name of at most 100 bytes, e.g. RTX 4090; leave it out for any GPU"
                    .into(),
            );
        }
        if self
            .start
            .as_deref()
            .is_some_and(|s| blank(s) || s.len() > 32_768)
        {
            return bad(
                "start",
                "must be a shell command of at most 32 KB; leave it out to keep only the files".into(),
            );
        }
        if let Some(bid) = self.interruptible.and_then(|i| i.bid)
            && !(0.001..=128.0).contains(&bid)
        {
            return bad(
                "interruptible.bid",
                "must be 0.001 to 128 dollars per hour".into(),
            );
        }
        if let Some(probe) = &self.probe {
            probe.check()?;
        }
        self.snapshot.check()?;
        for (key, value) in &self.env {
            let name_ok = !key.is_empty()
                && !key.starts_with(|c: char| c.is_ascii_digit())
                && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            if !name_ok || value.contains('\0') || key.len() + value.len() > 32_768 {
                return bad(
                    "env",
                    format!("{key:?} is not a variable name, or its value holds NUL or is over 32 KB"),
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(change: impl FnOnce(&mut WorkspaceSpec)) -> Result<(), &'static str> {
        let mut spec = WorkspaceSpec {
            name: "train".parse().unwrap(),
            provider: Providers::default(),
            gpu: GpuWanted::default(),
            image: default_image(),
            disk_gb: default_disk(),
            max_price: None,
            interruptible: None,
            path: default_path(),
            start: None,
            env: BTreeMap::new(),
            ports: Vec::new(),
            probe: None,
            snapshot: SnapshotPolicy::default(),
            failover: FailoverPolicy::default(),
        };
        change(&mut spec);
        spec.check().map_err(|e| e.field)
    }

    #[test]
    fn what_types_cannot_say_is_checked_and_named() {
        assert_eq!(spec(|_| {}), Ok(()));
        assert_eq!(spec(|s| s.path = "work".into()), Err("path"));
        assert_eq!(spec(|s| s.path = "/".into()), Err("path"));
        assert_eq!(spec(|s| s.path = "/a/../b".into()), Err("path"));
        assert_eq!(spec(|s| s.gpu.count = 0), Err("gpu.count"));
        assert_eq!(spec(|s| s.gpu.name = Some(" ".into())), Err("gpu.name"));
        assert_eq!(spec(|s| s.disk_gb = 1), Err("disk_gb"));
        assert_eq!(spec(|s| s.max_price = Some(f64::NAN)), Err("max_price"));
        let bid = |bid| spec(|s| s.interruptible = Some(Interruptible { bid }));
        assert_eq!([bid(None), bid(Some(0.2))], [Ok(()), Ok(())]);
        for odd in [0.0, -1.0, 129.0, f64::NAN] {
            assert_eq!(bid(Some(odd)), Err("interruptible.bid"));
        }
        assert_eq!(spec(|s| s.start = Some(String::new())), Err("start"));
        assert_eq!(spec(|s| s.ports = vec![0]), Err("ports"));
        assert_eq!(spec(|s| s.ports = vec![80, 80]), Err("ports"));
        assert_eq!(spec(|s| s.ports = vec![8000, 8001]), Ok(()));
        assert_eq!(spec(|s| s.failover.racers = Some(0)), Err("failover.racers"));
        let probe = Some(Probe::Command {
            command: String::new(),
            timeout_s: 5,
        });
        assert_eq!(spec(|s| s.probe = probe.clone()), Err("probe.command"));
        let hook = |s: &mut WorkspaceSpec| s.snapshot.before = Some(" ".into());
        assert_eq!(spec(hook), Err("snapshot.before"));
        let timeout = |s: &mut WorkspaceSpec| s.snapshot.hook_timeout_s = 0;
        assert_eq!(spec(timeout), Err("snapshot.hook_timeout_s"));
        let seldom = |s: &mut WorkspaceSpec| s.snapshot.every_minutes = Some(525_601);
        assert_eq!(spec(seldom), Err("snapshot.every_minutes"));
        let globs = |s: &mut WorkspaceSpec| s.snapshot.priority = vec!["/etc/*".into()];
        assert_eq!(spec(globs), Err("snapshot.priority"));
        let ends = |s: &mut WorkspaceSpec| s.snapshot.model_files = vec!["a/b".into()];
        assert_eq!(spec(ends), Err("snapshot.model_files"));
        assert_eq!(
            spec(|s| drop(s.env.insert("1A".into(), String::new()))),
            Err("env")
        );
    }

    #[test]
    fn unknown_fields_are_refused() {
        let read = |text: &str| serde_json::from_str::<WorkspaceSpec>(text).is_ok();
        assert!(read(r#"{"name":"x"}"#));
        assert!(!read(r#"{"name":"x","colour":"red"}"#));
        assert!(!read(r#"{"name":"x","gpu":{"nmae":"RTX 4090"}}"#));
        assert!(!read(r#"{"name":"Not Good"}"#));
    }
}
