//! Any tree comes back, and every snapshot of a chain restores to its own moment.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{Lines, World, noise, tree};
use dumont_core::key::WorkspaceKey;
use dumont_snapshot::restore;
use proptest::prelude::*;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

#[derive(Debug, Clone)]
enum Edit {
    Write {
        at: usize,
        name: usize,
        size: usize,
        seed: u64,
    },
    Sparse {
        at: usize,
        name: usize,
        offset: u64,
    },
    Patch {
        at: usize,
        offset: u64,
    },
    Append {
        at: usize,
        size: usize,
    },
    Dir {
        at: usize,
        name: usize,
    },
    Symlink {
        at: usize,
        name: usize,
        target: usize,
    },
    Link {
        from: usize,
        at: usize,
        name: usize,
    },
    Remove {
        at: usize,
    },
    Rename {
        from: usize,
        at: usize,
        name: usize,
    },
    Mode {
        at: usize,
        mode: u32,
    },
    Time {
        at: usize,
        ns: u64,
    },
    Xattr {
        at: usize,
        name: usize,
        size: usize,
    },
    /// A file a long way down.
    Deep {
        at: usize,
    },
}

const NAMES: [&[u8]; 12] = [
    b"a",
    b"b",
    b"new\nline",
    b"\xff\xfe",
    b" ",
    b"-rf",
    b"caf\xc3\xa9",
    b"back\\slash",
    b"a.safetensors",
    b"...",
    b"\x01\x7f",
    b"CON",
];
/// None of these leads to a file outside, whoever follows it.
const TARGETS: [&[u8]; 5] = [b"a", b"../..", b"/no/such/dir/f", b"gone/\n/x", b"."];

fn edit() -> impl Strategy<Value = Edit> {
    let i = || 0usize..64;
    let size = prop_oneof![3 => 0usize..3000, 1 => 200_000usize..1_500_000, 1 => Just(0usize)];
    prop_oneof![
        6 => (i(), i(), size, any::<u64>())
            .prop_map(|(at, name, size, seed)| Edit::Write { at, name, size, seed: seed % 8 }),
        1 => (i(), i(), 0u64..4_000_000).prop_map(|(at, name, offset)| Edit::Sparse { at, name, offset }),
        2 => (i(), 0u64..2000).prop_map(|(at, offset)| Edit::Patch { at, offset }),
        2 => (i(), 1usize..4000).prop_map(|(at, size)| Edit::Append { at, size }),
        4 => (i(), i()).prop_map(|(at, name)| Edit::Dir { at, name }),
        2 => (i(), i(), i()).prop_map(|(at, name, target)| Edit::Symlink { at, name, target }),
        2 => (i(), i(), i()).prop_map(|(from, at, name)| Edit::Link { from, at, name }),
        2 => i().prop_map(|at| Edit::Remove { at }),
        2 => (i(), i(), i()).prop_map(|(from, at, name)| Edit::Rename { from, at, name }),
        2 => (i(), prop::sample::select(vec![0o600, 0o644, 0o4755, 0o1777, 0o555, 0o400, 0o2750]))
            .prop_map(|(at, mode)| Edit::Mode { at, mode }),
        2 => (i(), 0u64..4_000_000_000_000_000_000).prop_map(|(at, ns)| Edit::Time { at, ns }),
        3 => (i(), i(), prop_oneof![0usize..40, Just(700)])
            .prop_map(|(at, name, size)| Edit::Xattr { at, name, size }),
        1 => i().prop_map(|at| Edit::Deep { at }),
    ]
}

/// All paths by type, in a stable order; the root is the first directory.
fn paths(root: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let (mut dirs, mut others, mut next) = (vec![root.to_path_buf()], Vec::new(), 0);
    while let Some(dir) = dirs.get(next).cloned() {
        let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
        names.sort();
        for p in names {
            if fs::symlink_metadata(&p).unwrap().is_dir() {
                dirs.push(p)
            } else {
                others.push(p)
            }
        }
        next += 1;
    }
    (dirs, others)
}

/// Seven directories of 200 letters; beyond what one system call takes is a test of its own.
fn deep(from: &Path) {
    use rustix::fs::{Mode, OFlags, mkdirat, open, openat};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let Ok(mut fd) = open(from, flags, Mode::empty()) else {
        return;
    };
    let name = "d".repeat(200);
    for _ in 0..7 {
        _ = mkdirat(&fd, &*name, Mode::RWXU);
        match openat(&fd, &*name, flags, Mode::empty()) {
            Ok(next) => fd = next,
            Err(_) => return,
        }
    }
    let create = OFlags::WRONLY | OFlags::CREATE;
    if let Ok(file) = openat(&fd, "leaf", create, Mode::RUSR | Mode::WUSR) {
        _ = rustix::io::write(&file, b"far down");
    }
}

/// Makes the edit if it makes sense; the rest does nothing.
fn apply(root: &Path, edit: &Edit) {
    let (dirs, others) = paths(root);
    let dir = |at: usize| &dirs[at % dirs.len()];
    let new = |at: usize, name: usize| dir(at).join(OsStr::from_bytes(NAMES[name % NAMES.len()]));
    let file = |at: usize| {
        let files: Vec<_> = others
            .iter()
            .filter(|p| fs::symlink_metadata(p).unwrap().is_file())
            .collect();
        (!files.is_empty()).then(|| files[at % files.len()].clone())
    };
    // Whatever is refused (a name taken by a directory, a mode) is simply not done.
    match *edit {
        Edit::Write { at, name, size, seed } => {
            let path = new(at, name);
            if !path.is_symlink() {
                _ = fs::write(path, noise(size, seed));
            }
        }
        Edit::Sparse { at, name, offset } => {
            let path = new(at, name);
            if !path.is_symlink()
                && let Ok(f) = File::create(path)
            {
                f.write_all_at(b"island", offset).unwrap();
                f.set_len(offset * 2 + 100).unwrap();
            }
        }
        Edit::Patch { at, offset } => {
            if let Some(f) = file(at).and_then(|p| File::options().write(true).open(p).ok()) {
                f.write_all_at(b"patched", offset).unwrap();
            }
        }
        Edit::Append { at, size } => {
            if let Some(p) = file(at) {
                let mut bytes = fs::read(&p).unwrap_or_default();
                bytes.extend(noise(size, 99));
                _ = fs::write(p, bytes);
            }
        }
        Edit::Dir { at, name } => _ = fs::create_dir(new(at, name)),
        Edit::Symlink { at, name, target } => {
            _ = symlink(OsStr::from_bytes(TARGETS[target % TARGETS.len()]), new(at, name));
        }
        Edit::Link { from, at, name } => _ = file(from).map(|f| fs::hard_link(f, new(at, name))),
        Edit::Remove { at } => {
            if let Some(p) = others.get(at % others.len().max(1)) {
                _ = fs::remove_file(p);
            } else if dirs.len() > 1 {
                _ = fs::remove_dir_all(&dirs[1 + at % (dirs.len() - 1)]);
            }
        }
        Edit::Rename { from, at, name } => {
            let all: Vec<_> = dirs.iter().skip(1).chain(&others).collect();
            if !all.is_empty() {
                _ = fs::rename(all[from % all.len()], new(at, name));
            }
        }
        Edit::Mode { at, mode } => {
            let all: Vec<_> = dirs.iter().chain(&others).filter(|p| !p.is_symlink()).collect();
            let path = all[at % all.len()];
            // A directory that its owner cannot list cannot be snapshot by him either.
            let mode = if path.is_dir() { mode | 0o500 } else { mode };
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        Edit::Time { at, ns } => {
            let all: Vec<_> = dirs.iter().chain(&others).filter(|p| !p.is_symlink()).collect();
            if let Ok(f) = File::open(all[at % all.len()]) {
                f.set_modified(UNIX_EPOCH + Duration::from_nanos(ns)).unwrap();
            }
        }
        Edit::Xattr { at, name, size } => {
            let all: Vec<_> = dirs.iter().chain(&others).filter(|p| !p.is_symlink()).collect();
            let key = format!("user.{}", ["a", "b.c", "\u{e9}"][name % 3]);
            let path = all[at % all.len()];
            // Where the file system has none, and on fifos, there is nothing to keep.
            _ = if size == 0 {
                rustix::fs::removexattr(path, &*key)
            } else {
                rustix::fs::setxattr(path, &*key, &noise(size, 5), rustix::fs::XattrFlags::empty())
            };
        }
        Edit::Deep { at } if dir(at).as_os_str().len() < 500 => deep(dir(at)),
        Edit::Deep { .. } => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_snapshot_of_a_chain_restores_to_its_own_moment(
        chain in prop::collection::vec(prop::collection::vec(edit(), 1..14), 1..5),
        onto in 0usize..5,
        sealed in any::<bool>(),
    ) {
        let mut world = World::new();
        world.key = sealed.then_some(WorkspaceKey([7; 32]));
        let mut moments = Vec::new();
        for edits in &chain {
            edits.iter().for_each(|e| apply(&world.work(), e));
            let (report, head, _) = world.snapshot();
            prop_assert!(report.torn.is_empty());
            moments.push((head, tree(&world.work())));
        }
        for (head, expected) in &moments {
            prop_assert_eq!(&world.restored(head), expected);
        }
        // One moment over another leaves no trace of it.
        let (head, expected) = &moments[onto % moments.len()];
        let report = world.restore_to(head, &world.work(), true).unwrap();
        prop_assert_eq!(report.validation.problems, Vec::<String>::new());
        prop_assert_eq!(&tree(&world.work()), expected);
        // Nor does the cache, which believes what it knows, let anything else through.
        let (head, expected) = &moments[0];
        let options = dumont_snapshot::RestoreOptions {
            cache_path: Some(world.cache()),
            ..world.restore_options(&world.work(), true)
        };
        for _ in 0..2 {
            let report = restore(&options, head, &world.store, &Lines::default()).unwrap();
            prop_assert_eq!(report.validation.problems, Vec::<String>::new());
            prop_assert_eq!(&tree(&world.work()), expected);
        }
    }
}
