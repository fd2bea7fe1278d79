//! A workspace's specification from a file and from options.

use crate::fail::usage;
use anyhow::{Context, Result};
use clap::Args;
use dumont_core::blacklist::CudaVersion;
use dumont_core::id::WorkspaceName;
use dumont_core::spec::{Interruptible, Probe, Providers, WorkspaceSpec};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// What can be said about a workspace on the command line; wins over the file.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct SpecArgs {
    /// Specification to start from (.json or .toml)
    #[arg(long, value_name = "FILE")]
    pub spec: Option<PathBuf>,
    /// Whose machines it may live on: vast, ssh (your own) or any [default: vast]
    #[arg(long, value_name = "WHOSE")]
    pub provider: Option<Providers>,
    /// GPU's marketplace name, e.g. "RTX 4090" [default: any]
    #[arg(long, value_name = "NAME")]
    pub gpu: Option<String>,
    /// GPUs on the machine [default: 1]
    #[arg(long, value_name = "N")]
    pub gpu_count: Option<u32>,
    /// CUDA version the workload needs, e.g. 12.4: the machine's driver must serve it [default: any]
    #[arg(long, value_name = "VERSION")]
    pub cuda: Option<CudaVersion>,
    /// Container image [default: pytorch/pytorch:latest]
    #[arg(long)]
    pub image: Option<String>,
    /// Disk to rent, GB [default: 20]
    #[arg(long, value_name = "GB")]
    pub disk: Option<u32>,
    /// The most to pay, dollars per hour
    #[arg(long, value_name = "DOLLARS", allow_negative_numbers = true)]
    pub max_price: Option<f64>,
    /// Rent interruptible machines: cheaper, and a higher bid may take them at any time; the bid is
    /// chosen for each machine
    #[arg(long)]
    pub interruptible: bool,
    /// Rent interruptible machines for this bid, dollars per hour without storage
    #[arg(long, value_name = "DOLLARS", allow_negative_numbers = true)]
    pub bid: Option<f64>,
    /// Directory on the machine that is kept [default: /workspace]
    #[arg(long, value_name = "DIR")]
    pub path: Option<String>,
    /// Shell command of the workload
    #[arg(long, value_name = "CMD")]
    pub start: Option<String>,
    /// Variable of the workload; may be repeated
    #[arg(long, value_name = "K=V", value_parser = variable)]
    pub env: Vec<(String, String)>,
    /// TCP port the workload listens on; may be repeated
    #[arg(long, value_name = "N")]
    pub port: Vec<u16>,
    /// How to tell that the workload serves: a shell command that exits 0, `http:PORT/PATH`, or
    /// `ollama:MODEL` (more can be said in --spec); files that were restored must not satisfy it
    #[arg(long, value_name = "PROBE")]
    pub probe: Option<String>,
    /// Shell command on the machine before each snapshot, e.g. to flush or to pause a trainer; if it
    /// fails there is no snapshot
    #[arg(long, value_name = "CMD")]
    pub before: Option<String>,
    /// Shell command after each snapshot, whatever became of it
    #[arg(long, value_name = "CMD")]
    pub after: Option<String>,
    /// How long each of the two may take, seconds [default: 60]
    #[arg(long, value_name = "SECONDS")]
    pub hook_timeout: Option<u32>,
    /// Glob of files that a restore brings first, e.g. 'src/**'; may be repeated
    #[arg(long, value_name = "GLOB")]
    pub priority: Vec<String>,
    /// Glob of what must be there before the workload starts, e.g. 'src/**'; the rest is restored
    /// while it runs; may be repeated [default: everything]
    #[arg(long, value_name = "GLOB")]
    pub ready_when: Vec<String>,
    /// Minutes between two snapshots that are taken by themselves, 0 for none [default: the
    /// server's PERIODIC_SNAPSHOT_INTERVAL_MINUTES]
    #[arg(long, value_name = "MINUTES")]
    pub snapshot_every: Option<u32>,
    /// Seal all that is stored with a key of the workspace's own (`dumont workspace key` shows it)
    #[arg(long)]
    pub encrypt: bool,
    /// Machines to race for at once [default: as many as pay, judged every few seconds]
    #[arg(long, value_name = "N")]
    pub racers: Option<u32>,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err("write it as NAME=value".into()),
    }
}

/// The checked specification.
pub fn build(name: &WorkspaceName, args: &SpecArgs) -> Result<WorkspaceSpec> {
    let mut value = match &args.spec {
        Some(path) => read(path)?,
        None => Value::Object(serde_json::Map::new()),
    };
    let source = args
        .spec
        .as_deref()
        .map_or_else(|| "the options".into(), |p| p.display().to_string());
    let Some(object) = value.as_object_mut() else {
        return Err(usage(format!("{source} is not a table of fields"), SPEC_HINT));
    };
    match object.get("name") {
        Some(Value::String(there)) if there != name.as_str() => {
            return Err(usage(
                format!("{source} describes workspace {there:?}, not {:?}", name.as_str()),
                "leave `name` out of the file, or use the same name",
            ));
        }
        _ => object.insert("name".into(), name.as_str().into()),
    };
    let mut spec: WorkspaceSpec = serde_json::from_value(value)
        .map_err(|e| usage(format!("{source}: {}", e.to_string().trim()), SPEC_HINT))?;
    apply(&mut spec, args);
    spec.check()
        .map_err(|e| usage(e.to_string(), "change this field and try again"))?;
    Ok(spec)
}

const SPEC_HINT: &str = "fields: name, provider, gpu {name, count, min_ram_gb, cuda}, image, disk_gb, max_price, interruptible {bid}, path, start, \
     env, ports, probe {kind = \"command\", command} or {kind = \"http\", port, path, status, contains} or \
     {kind = \"ollama\", model, prompt, contains, port} with timeout_s, snapshot {before, after, \
     hook_timeout_s, priority, ready_when, every_minutes, keep {last, hourly, daily, weekly}, encrypt, model_files}, failover {automatic, racers}";

fn read(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        usage(
            format!("cannot read {}: {e}", path.display()),
            "check the path after --spec",
        )
    })?;
    match path.extension().and_then(|e| e.to_str()) {
        Some("json") => {
            serde_json::from_str(&text).map_err(|e| usage(format!("{}: {e}", path.display()), SPEC_HINT))
        }
        Some("toml") => toml::from_str(&text)
            .map_err(|e| usage(format!("{}: {}", path.display(), e.to_string().trim()), SPEC_HINT)),
        _ => Err(usage(
            format!("{} is neither .json nor .toml", path.display()),
            "name the file spec.toml or spec.json",
        )),
    }
    .with_context(|| "specification")
}

fn apply(spec: &mut WorkspaceSpec, args: &SpecArgs) {
    fn set<T: Clone>(field: &mut T, value: &Option<T>) {
        if let Some(value) = value {
            field.clone_from(value);
        }
    }
    set(&mut spec.provider, &args.provider);
    if args.gpu.is_some() {
        spec.gpu.name.clone_from(&args.gpu);
    }
    set(&mut spec.gpu.count, &args.gpu_count);
    spec.gpu.cuda = args.cuda.or(spec.gpu.cuda);
    set(&mut spec.image, &args.image);
    set(&mut spec.disk_gb, &args.disk);
    if args.max_price.is_some() {
        spec.max_price = args.max_price;
    }
    if args.interruptible || args.bid.is_some() {
        let before = spec.interruptible.and_then(|i| i.bid);
        spec.interruptible = Some(Interruptible {
            bid: args.bid.or(before),
        });
    }
    set(&mut spec.path, &args.path);
    if args.start.is_some() {
        spec.start.clone_from(&args.start);
    }
    spec.env.extend(args.env.iter().cloned());
    if !args.port.is_empty() {
        spec.ports.clone_from(&args.port);
    }
    if let Some(text) = &args.probe {
        spec.probe = Some(probe(text, spec.probe.as_ref().map(Probe::timeout_s)));
    }
    spec.failover.racers = args.racers.or(spec.failover.racers);
    let policy = &mut spec.snapshot;
    for (field, command) in [
        (&mut policy.before, &args.before),
        (&mut policy.after, &args.after),
    ] {
        if command.is_some() {
            field.clone_from(command);
        }
    }
    set(&mut policy.hook_timeout_s, &args.hook_timeout);
    if !args.priority.is_empty() {
        policy.priority.clone_from(&args.priority);
    }
    if !args.ready_when.is_empty() {
        policy.ready_when.clone_from(&args.ready_when);
    }
    policy.every_minutes = args.snapshot_every.or(policy.every_minutes);
    policy.encrypt |= args.encrypt;
}

/// `http:8000/health` and `ollama:llama3.2:1b` are words of ours, all else is a command. The
/// defaults are those of the specification; a time limit that stands in the file stays.
fn probe(text: &str, timeout_s: Option<u32>) -> Probe {
    let short = if let Some(model) = text.strip_prefix("ollama:") {
        serde_json::json!({ "kind": "ollama", "model": model })
    } else if let Some((port, path)) = http(text) {
        serde_json::json!({ "kind": "http", "port": port, "path": path })
    } else {
        serde_json::json!({ "kind": "command", "command": text })
    };
    let mut short = short;
    if let Some(timeout_s) = timeout_s {
        short["timeout_s"] = timeout_s.into();
    }
    serde_json::from_value(short).unwrap_or_else(|_| Probe::Command {
        command: text.to_owned(),
        timeout_s: timeout_s.unwrap_or(60),
    })
}

fn http(text: &str) -> Option<(u16, &str)> {
    let rest = text.strip_prefix("http:")?;
    let (port, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    Some((port.parse().ok()?, if path.is_empty() { "/" } else { path }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_file(extension: &str, text: &str, change: impl Fn(&mut SpecArgs)) -> Result<WorkspaceSpec> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(format!("s.{extension}"));
        std::fs::write(&path, text).unwrap();
        let mut args = SpecArgs {
            spec: Some(path),
            ..SpecArgs::default()
        };
        change(&mut args);
        build(&"box".parse().unwrap(), &args)
    }

    #[test]
    fn options_win_over_the_file() {
        let toml = "disk_gb = 50\nstart = \"python train.py\"\nports = [8000]\n[env]\nA = \"1\"\n[gpu]\nname = \"H100\"\n";
        let spec = with_file("toml", toml, |a| {
            a.disk = Some(80);
            a.cuda = Some("12.8".parse().unwrap());
            a.env = vec![("B".into(), "2=3".into())];
        })
        .unwrap();
        assert_eq!(
            (spec.disk_gb, spec.gpu.name.as_deref(), spec.ports.as_slice()),
            (80, Some("H100"), &[8000][..])
        );
        assert_eq!(spec.gpu.cuda.map(|v| v.to_string()).as_deref(), Some("12.8"));
        assert_eq!(spec.env.len(), 2);
        assert_eq!(spec.name.as_str(), "box");
    }

    #[test]
    fn what_surrounds_a_snapshot_can_be_said_in_options() {
        let toml = "[snapshot]\nbefore = \"sync\"\nhook_timeout_s = 9\n";
        let spec = with_file("toml", toml, |a| {
            a.after = Some("resume".into());
            a.priority = vec!["src/**".into()];
            a.encrypt = true;
        });
        let policy = spec.unwrap().snapshot;
        assert_eq!(
            (
                policy.before.as_deref(),
                policy.after.as_deref(),
                policy.hook_timeout_s
            ),
            (Some("sync"), Some("resume"), 9)
        );
        assert_eq!(
            (policy.priority, policy.encrypt),
            (vec!["src/**".to_owned()], true)
        );
        let options = SpecArgs {
            before: Some(" ".into()),
            ..SpecArgs::default()
        };
        let refused = build(&"box".parse().unwrap(), &options).unwrap_err();
        assert!(crate::fail::body_of(&refused).message.contains("snapshot.before"));
    }

    #[test]
    fn a_probe_is_a_command_a_page_or_a_model() {
        let of = |text: &str| serde_json::to_value(probe(text, None)).unwrap();
        assert_eq!(of("curl -f http:80")["kind"], "command");
        assert_eq!(of("http:8000")["path"], "/");
        let page = of("http:8000/health?full=1");
        assert_eq!(
            (&page["port"], &page["path"]),
            (&8000.into(), &"/health?full=1".into())
        );
        assert_eq!(of("http:port/health")["kind"], "command");
        let model = of("ollama:llama3.2:1b");
        assert_eq!(
            (&model["model"], &model["port"]),
            (&"llama3.2:1b".into(), &11434.into())
        );
        assert_eq!(probe("ollama:x", Some(7)).timeout_s(), 7);
    }

    #[test]
    fn mistakes_name_the_field_and_exit_with_2() {
        let cases = [
            ("json", r#"{"disk": 5}"#, "disk"),
            ("json", r#"{"disk_gb": "five"}"#, "five"),
            ("json", r#"{"disk_gb": 5}"#, "disk_gb"),
            ("json", r#"{"name": "other"}"#, "other"),
            ("json", "[]", "table"),
            ("toml", "a = ", "s.toml"),
            ("yaml", "a: 1", "neither"),
        ];
        for (extension, text, word) in cases {
            let body = crate::fail::body_of(&with_file(extension, text, |_| ()).expect_err(text));
            assert_eq!(body.code, "usage", "{text}");
            assert!(
                body.message.contains(word) && !body.hint.is_empty(),
                "{text}: {body:?}"
            );
        }
    }
}
