//! Builds the static agent with a cargo of its own and leaves it, packed, in `OUT_DIR`.
//!
//! A second cargo, because a static program needs `crt-static` and an explicit target while
//! the program that carries it wants neither, and stable cargo cannot build one dependency
//! for another target. Its target directory lies beside ours and not inside `OUT_DIR`, so
//! that debug, release, clippy and the tests share one build of it, and so that the outer
//! cargo's lock is never waited for. Nothing of the outer build may leak in: a coverage flag
//! or a sanitizer in `RUSTFLAGS` would end up on rented machines.

use flate2::{Compression, write::GzEncoder};
use std::collections::BTreeSet;
use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// What the rented machines run. No musl target is assumed to be installed anywhere.
const TARGET: &str = "x86_64-unknown-linux-gnu";
const STATIC: &str = "-Ctarget-feature=+crt-static -Crelocation-model=static";
/// A ready agent to embed instead: for packagers, and where this recipe does not work.
const READY_MADE: &str = "DUMONT_AGENT_BIN";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // Cargo shows stderr of a build script that failed.
            eprintln!("cannot embed the agent: {e}");
            eprintln!("hint: build it by hand and name it in {READY_MADE}=/path/to/dumont-agent");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={READY_MADE}");
    let out_dir = PathBuf::from(var("OUT_DIR")?);
    let agent = match env::var_os(READY_MADE).filter(|p| !p.is_empty()) {
        Some(path) => {
            let path = PathBuf::from(path);
            println!("cargo::rerun-if-changed={}", path.display());
            path
        }
        None => build(&out_dir)?,
    };
    let bytes = fs::read(&agent).map_err(|e| format!("{}: {e}", agent.display()))?;
    let mut packed = GzEncoder::new(Vec::new(), Compression::best());
    packed.write_all(&bytes)?;
    write_if_changed(&out_dir.join("agent.gz"), &packed.finish()?)?;
    let constants = format!(
        "/// Bytes of the agent when it is unpacked.\npub const AGENT_SIZE: usize = {};\n\
         /// BLAKE3 of the unpacked agent, 64 hex digits: its name on the machines.\n\
         pub const AGENT_DIGEST: &str = \"{}\";\n",
        bytes.len(),
        blake3::hash(&bytes).to_hex()
    );
    write_if_changed(&out_dir.join("agent.rs"), constants.as_bytes())?;
    Ok(())
}

/// The path of the built agent.
fn build(out_dir: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let workspace = Path::new(&var("CARGO_MANIFEST_DIR")?)
        .ancestors()
        .nth(2)
        .ok_or("no workspace")?
        .to_owned();
    let profile = if var("PROFILE")? == "release" {
        "agent"
    } else {
        "agent-dev"
    };
    // …/target/debug/build/<package>-<hash>/out
    let target_dir = out_dir
        .ancestors()
        .nth(4)
        .ok_or("OUT_DIR is too short")?
        .join("agent");
    let mut cargo = Command::new(var("CARGO")?);
    cargo
        .current_dir(&workspace)
        .env_clear()
        .envs(clean_environment());
    cargo.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", STATIC);
    cargo.args([
        "build",
        "--quiet",
        "--locked",
        "-p",
        "dumont-agent",
        "--bin",
        "dumont-agent",
    ]);
    cargo
        .args(["--profile", profile, "--target", TARGET, "--target-dir"])
        .arg(&target_dir);
    let status = cargo.status().map_err(|e| format!("cargo: {e}"))?;
    if !status.success() {
        return Err(format!("cargo build of the agent ended with {status}").into());
    }
    let agent = target_dir.join(TARGET).join(profile).join("dumont-agent");
    watch(&workspace, &agent.with_extension("d"))?;
    Ok(agent)
}

/// The outer build's variables describe the outer build. What is left of cargo's are its
/// home, its jobserver, and how it reaches the network and the registry.
fn clean_environment() -> impl Iterator<Item = (OsString, OsString)> {
    const KEPT: [&str; 7] = [
        "CARGO_HOME",
        "CARGO_MAKEFLAGS",
        "CARGO_NET_",
        "CARGO_HTTP_",
        "CARGO_REGISTRY_",
        "CARGO_REGISTRIES_",
        "CARGO_SOURCE_",
    ];
    const DROPPED: [&str; 8] = [
        "CARGO",
        "RUSTC",
        "RUSTFLAGS",
        "RUSTDOC",
        "TARGET",
        "HOST",
        "PROFILE",
        "OPT_LEVEL",
    ];
    const CLIPPY: [&str; 4] = ["CLIPPY", "DEBUG", "NUM_JOBS", "OUT_DIR"];
    env::vars_os().filter(|(name, _)| {
        let name = name.to_string_lossy();
        let starts = |list: &[&str]| list.iter().any(|p| name.starts_with(p));
        starts(&KEPT) || !starts(&DROPPED) && !starts(&CLIPPY)
    })
}

/// Again whenever a source of the agent changes, or what decides how it is built.
fn watch(workspace: &Path, dep_info: &Path) -> Result<(), Box<dyn Error>> {
    let text = fs::read_to_string(dep_info).map_err(|e| format!("{}: {e}", dep_info.display()))?;
    // `target: source source`, make's way: a space inside a path is escaped.
    let sources = text
        .lines()
        .filter_map(|l| l.split_once(": "))
        .flat_map(|(_, s)| split_escaped(s));
    let mut watched: BTreeSet<PathBuf> = sources.map(|s| workspace.join(s)).collect();
    watched.extend(["Cargo.toml", "Cargo.lock", "rust-toolchain.toml"].map(|f| workspace.join(f)));
    let manifests: Vec<_> = watched.iter().filter_map(|s| manifest_of(s)).collect();
    watched.extend(manifests);
    for path in watched.iter().filter(|p| p.exists()) {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    Ok(())
}

fn split_escaped(list: &str) -> Vec<String> {
    let marked = list.replace("\\ ", "\0");
    marked.split_whitespace().map(|s| s.replace('\0', " ")).collect()
}

fn manifest_of(source: &Path) -> Option<PathBuf> {
    source
        .ancestors()
        .skip(1)
        .map(|d| d.join("Cargo.toml"))
        .find(|m| m.is_file())
}

/// The same bytes keep their time, so that nothing above is compiled again.
fn write_if_changed(path: &Path, bytes: &[u8]) -> Result<(), Box<dyn Error>> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    // A new file, never new bytes in the old one: target directories that were copied with hard
    // links would hand this agent to another checkout's build.
    let new = path.with_extension("new");
    fs::write(&new, bytes)
        .and_then(|()| fs::rename(&new, path))
        .map_err(|e| format!("{}: {e}", path.display()).into())
}

fn var(name: &str) -> Result<String, Box<dyn Error>> {
    env::var(name).map_err(|e| format!("{name}: {e}").into())
}
