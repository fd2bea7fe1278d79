//! A workspace's files, and what a day's work does to them.

use rand::RngExt;
use rand::rngs::StdRng;
use std::ffi::OsString;
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

const NAMES: [&[u8]; 8] = [
    b"plain.txt",
    b"with space",
    b"new\nline",
    b"not-utf8-\xff\xfe",
    "\u{fc}ml\u{e4}ut".as_bytes(),
    b"-rf",
    b".hidden",
    b"model.safetensors",
];

fn name(dice: &mut StdRng) -> OsString {
    let mut name = NAMES[dice.random_range(0..NAMES.len())].to_vec();
    name.extend(format!("{}", dice.random_range(0..1_000_000)).bytes());
    OsString::from_vec(name)
}

/// Text, noise or numbers that look like weights.
fn content(dice: &mut StdRng) -> Vec<u8> {
    let len = match dice.random_range(0..10) {
        0 => 0,
        1..6 => dice.random_range(1..4_000),
        6..9 => dice.random_range(4_000..300_000),
        _ => dice.random_range(300_000..6_000_000),
    };
    match dice.random_range(0..3) {
        0 => (0..len).map(|n| b"all work and no play "[n % 21]).collect(),
        1 => {
            let mut out = vec![0; len];
            dice.fill(&mut out[..]);
            out
        }
        _ => (0..len)
            .map(|n| {
                if n % 2 == 1 {
                    0x3c | dice.random_range(0..4)
                } else {
                    dice.random()
                }
            })
            .collect(),
    }
}

fn dirs(root: &Path) -> Vec<PathBuf> {
    let (mut out, mut at) = (vec![root.to_owned()], 0);
    while at < out.len() {
        let below = fs::read_dir(&out[at]).unwrap().map(|e| e.unwrap());
        let below: Vec<_> = below.filter(|e| e.file_type().unwrap().is_dir()).collect();
        out.extend(below.into_iter().map(|e| e.path()));
        at += 1;
    }
    out.sort();
    out
}

fn files(root: &Path) -> Vec<PathBuf> {
    let all = dirs(root).into_iter().flat_map(|d| fs::read_dir(d).unwrap());
    let mut out: Vec<_> = all
        .map(|e| e.unwrap())
        .filter(|e| e.file_type().unwrap().is_file())
        .map(|e| e.path())
        .collect();
    out.sort();
    out
}

fn one<'a>(dice: &mut StdRng, of: &'a [PathBuf]) -> Option<&'a PathBuf> {
    (!of.is_empty()).then(|| &of[dice.random_range(0..of.len())])
}

pub fn fill(root: &Path, dice: &mut StdRng) {
    for _ in 0..dice.random_range(3..25) {
        let mut dir = one(dice, &dirs(root)).unwrap().clone();
        if dice.random_range(0..4) == 0 {
            dir.push(name(dice));
            fs::create_dir_all(&dir).unwrap();
        }
        fs::write(dir.join(name(dice)), content(dice)).unwrap();
    }
    for _ in 0..5 {
        change(root, dice);
    }
}

/// What changes between two snapshots; now and then nothing.
pub fn edit(root: &Path, dice: &mut StdRng) {
    for _ in 0..dice.random_range(0..7) {
        change(root, dice);
    }
}

fn change(root: &Path, dice: &mut StdRng) {
    let (files, dirs) = (files(root), dirs(root));
    let Some(file) = one(dice, &files) else {
        return fs::write(root.join(name(dice)), content(dice)).unwrap();
    };
    let dir = one(dice, &dirs).unwrap();
    let fresh = dir.join(name(dice));
    match dice.random_range(0..12) {
        0 => fs::write(fresh, content(dice)).unwrap(),
        1 => fs::write(file, content(dice)).unwrap(),
        2 => fs::remove_file(file).unwrap(),
        3 => fs::rename(file, fresh).unwrap(),
        4 => append(file, &content(dice)),
        5 => overwrite(file, dice),
        6 => {
            let all = [content(dice), fs::read(file).unwrap()].concat();
            fs::write(file, all).unwrap();
        }
        7 => fs::set_permissions(
            file,
            fs::Permissions::from_mode([0o600, 0o755, 0o444][dice.random_range(0..3)]),
        )
        .unwrap(),
        8 => symlink(name(dice), fresh).unwrap(),
        9 => fs::hard_link(file, fresh).unwrap(),
        10 => sparse(&fresh, dice),
        _ if dir != root => fs::remove_dir_all(dir).unwrap(),
        _ => fs::create_dir(fresh).unwrap(),
    }
}

fn append(file: &Path, more: &[u8]) {
    fs::File::options()
        .append(true)
        .open(file)
        .unwrap()
        .write_all(more)
        .unwrap();
}

fn overwrite(file: &Path, dice: &mut StdRng) {
    let mut file = fs::File::options().write(true).open(file).unwrap();
    let len = file.metadata().unwrap().len();
    file.seek(SeekFrom::Start(dice.random_range(0..=len))).unwrap();
    file.write_all(b"in place").unwrap();
}

fn sparse(file: &Path, dice: &mut StdRng) {
    let mut file = fs::File::create(file).unwrap();
    file.write_all(b"begin").unwrap();
    file.seek(SeekFrom::Start(dice.random_range(1 << 20..9 << 20)))
        .unwrap();
    file.write_all(b"end").unwrap();
}
