//! The generator gives the same twice, and the edits are the edits it says.

use super::super::compare::{How, diff, printable, scan};
use super::*;
use std::process::Command;

#[test]
fn the_same_seed_gives_the_same_workspace() {
    let dirs = [0, 1, 2].map(|_| tempfile::tempdir().unwrap());
    for (dir, seed) in dirs.iter().zip([7, 7, 8]) {
        generate(dir.path(), seed, 3).unwrap();
    }
    let trees = [0, 1, 2].map(|i: usize| scan(dirs[i].path()).unwrap());
    let different: Vec<_> = diff(&trees[0], &trees[1])
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(different, Vec::<String>::new());
    assert!(diff(&trees[0], &trees[2]).len() > 2_000);
    let tree = &trees[0];
    assert!(
        tree.files() > 2_000 && tree.bytes() > 3_000_000,
        "{} {}",
        tree.files(),
        tree.bytes()
    );
    assert!(tree.0.contains_key(b"logs/empty".as_slice()));
    assert!(tree.0.keys().any(|k| std::str::from_utf8(k).is_err()));
    assert!(
        tree.0
            .values()
            .any(|e| matches!(e.what, What::File { sparse: true, .. }))
    );
    assert!(tree.0.values().filter(|e| e.same_file_as.is_some()).count() == 2);
}

/// Runs the edits on a directory and gives back what changed, directory times aside.
fn run_edits(root: &Path) -> (Edits, Vec<String>) {
    let before = scan(root).unwrap();
    let plan = edits(root, &before).unwrap();
    let status = Command::new("sh")
        .arg("-c")
        .arg(&plan.script)
        .current_dir(root)
        .status()
        .unwrap();
    assert!(status.success());
    let after = scan(root).unwrap();
    let mut seen: Vec<String> = diff(&before, &after)
        .iter()
        .filter(|d| !matches!(d.how, How::Mtime { .. }))
        .map(|d| {
            format!(
                "{} {}",
                printable(&d.path),
                if d.how == How::Extra { "new" } else { "changed" }
            )
        })
        .collect();
    seen.sort();
    (plan, seen)
}

#[test]
fn three_edits_change_three_files() {
    let dir = tempfile::tempdir().unwrap();
    generate(dir.path(), 1, 1).unwrap();
    let (plan, seen) = run_edits(dir.path());
    assert_eq!((plan.changed.len(), plan.added.len()), (2, 1));
    let expected = [
        "dumont-drill-was-here.txt new",
        "logs/train.log changed",
        "weights/model-00001-of-00003.safetensors changed",
    ];
    assert_eq!(seen, expected);
}

#[test]
fn a_directory_of_ones_own_is_edited_whatever_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let (plan, seen) = run_edits(dir.path());
    assert_eq!((plan.added.len(), seen.len()), (3, 3), "{seen:?}");
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("it's $HOME"), "Z").unwrap();
    fs::write(dir.path().join("-n"), "abc").unwrap();
    let (plan, seen) = run_edits(dir.path());
    assert_eq!(plan.changed.len(), 2);
    assert_eq!(
        seen,
        [
            "-n changed",
            "dumont-drill-was-here.txt new",
            "it\\'s $HOME changed"
        ]
    );
}
