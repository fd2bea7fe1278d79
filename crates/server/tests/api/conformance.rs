//! Whether the server does what its document says, by a foreign judge: schemathesis sends what
//! the document allows and what it forbids, and compares every answer with it.
//!
//! The server is a live one on a live market, so some of it rents real (emulated) machines. The
//! seed is fixed and the number of cases bounded; what schemathesis remembers between runs is off.

use super::world::World;
use std::process::Stdio;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn the_server_keeps_the_word_of_its_document() {
    let world = World::instant().await;
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/api/schemathesis.toml");
    let run = tokio::process::Command::new("schemathesis")
        .args(["--config-file", config, "run"])
        .arg(format!("{}/api/openapi.json", world.url()))
        .args(["--header", &format!("Authorization: Bearer {}", world.token())])
        .args([
            "--phases",
            "examples,coverage,fuzzing",
            "--max-examples",
            "8",
            "--workers",
            "1",
        ])
        .args(["--seed", "1", "--generation-deterministic", "--no-shrink"])
        // A loaded machine is slow, not wrong.
        .args(["--request-timeout", "60", "--suppress-health-check", "all"])
        .args(["--continue-on-failure", "--no-color"])
        .current_dir(world.dir.path())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let judged = tokio::time::timeout(Duration::from_secs(300), run)
        .await
        .expect("schemathesis ends within five minutes")
        .expect("schemathesis: `scripts/setup --tests` installs it, scripts/test finds it");
    let said = String::from_utf8_lossy(&judged.stdout) + String::from_utf8_lossy(&judged.stderr);
    assert!(judged.status.success(), "{said}");
    // So that a run that tested nothing does not pass.
    assert!(said.contains("Test cases:"), "{said}");
}
