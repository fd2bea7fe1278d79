//! What a package ships beside the binary, checked against the binary.
#![allow(clippy::unwrap_used, reason = "a test that cannot run the binary fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn dumont(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dumont"))
        .args(args)
        .output()
        .unwrap()
}

fn packaged(name: &str) -> String {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../packaging");
    fs::read_to_string(dir.join(name)).unwrap()
}

/// Options that do not exist are refused before `--help` is reached.
fn is_understood(args: &[&str]) {
    let help = dumont(&[args, &["--help"]].concat());
    assert!(
        help.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&help.stderr)
    );
}

#[test]
fn the_unit_and_the_image_start_what_exists() {
    let unit = packaged("dumont.service");
    let start = unit.lines().find_map(|l| l.strip_prefix("ExecStart=")).unwrap();
    let words: Vec<&str> = start.split_whitespace().collect();
    assert_eq!(Path::new(words[0]).file_name().unwrap(), "dumont");
    is_understood(&words[1..]);

    let image = packaged("Dockerfile");
    let command = image.lines().find_map(|l| l.strip_prefix("CMD ")).unwrap();
    let words: Vec<String> = serde_json::from_str(command).unwrap();
    is_understood(&words.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn bash_takes_the_completions() {
    let binary = env!("CARGO_BIN_EXE_dumont");
    let script = format!(
        "source <('{binary}' completions bash) && COMP_WORDS=(dumont snap) COMP_CWORD=1 && \
         _dumont dumont snap dumont && echo \"${{COMPREPLY[@]}}\""
    );
    let bash = Command::new("bash").args(["-c", &script]).output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&bash.stdout).trim(),
        "snapshot",
        "{}",
        String::from_utf8_lossy(&bash.stderr)
    );
    for shell in ["zsh", "fish"] {
        let script = dumont(&["completions", shell]);
        assert!(script.status.success() && String::from_utf8_lossy(&script.stdout).contains("snapshot"));
    }
}

#[test]
fn every_command_has_a_man_page() {
    let dir = tempfile::tempdir().unwrap();
    let into = dir.path().join("man1");
    let wrote = dumont(&["man", into.to_str().unwrap()]);
    assert!(
        wrote.status.success(),
        "{}",
        String::from_utf8_lossy(&wrote.stderr)
    );
    for page in ["dumont.1", "dumont-serve.1", "dumont-snapshot-create.1"] {
        let text = fs::read_to_string(into.join(page)).unwrap();
        assert!(text.contains(".SH SYNOPSIS") && text.contains("dumont"), "{page}");
    }
    let refused = dumont(&["man", "/dev/null/man1"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("you may write"));
}
