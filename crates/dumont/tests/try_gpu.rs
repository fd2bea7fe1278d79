//! `scripts/try-gpu` on a machine without a GPU: a script stands in for `nvidia-smi`, and one for the
//! Python that trains. The servers, the snapshots and the loss are real.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot set up its world fails"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

const NVIDIA_SMI: &str = "#!/bin/sh
case \"$*\" in
*query-gpu=name\\ *) echo 'NVIDIA H200' ;;
*compute-apps*) echo '1234 MiB' ;;
*) echo 'NVIDIA H200, 143771, 580.159.04' ;;
esac
";

/// Counts, writes a checkpoint when it is asked to, and says whether it found one.
const PYTHON: &str = "#!/bin/bash
[ ! -e checkpoint ] || cat checkpoint >resumed
trap 'head -c 1000000 /dev/urandom | sha256sum >checkpoint; echo \"{}\" >saved' USR1
for ((step = 1; ; step++)); do
    echo \"{\\\"step\\\": $step, \\\"pid\\\": $$}\" >train.new
    mv train.new train.json
    sleep 0.1
done
";

fn program(dir: &Path, name: &str, text: &str) {
    fs::write(dir.join(name), text).unwrap();
    fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn what_is_trained_goes_on_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    program(dir.path(), "nvidia-smi", NVIDIA_SMI);
    program(dir.path(), "python3", PYTHON);
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/try-gpu");
    let run = Command::new(script)
        .env("PATH", path)
        .env("DUMONT", env!("CARGO_BIN_EXE_dumont"))
        .env("PAUSE", "0")
        .output()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr),
    );
    assert!(run.status.success(), "{out}\n{err}");
    for said in [
        "trigger     session_reset_and_redial_refused",
        "validation  ok",
        "Deleted train.",
    ] {
        assert!(out.contains(said) || err.contains(said), "{said}: {out}\n{err}");
    }
}
