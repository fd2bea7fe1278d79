//! What the drill puts on the machine: a made-up workspace that looks like real ones (a few
//! big weight files that hardly compress, a couple of thousand small source files, and every
//! kind of file that copying programs get wrong), and the three edits done to it there.

use super::compare::{Tree, What};
use crate::cli::ssh::quote;
use anyhow::{Context, Result};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;

const SOURCES: u64 = 2_000;
const WORDS: [&str; 24] = [
    "def",
    "return",
    "self",
    "import",
    "tensor",
    "batch",
    "optimizer",
    "layer",
    "for",
    "in",
    "range",
    "model",
    "loss",
    "if",
    "None",
    "config",
    "device",
    "forward",
    "attention",
    "(x)",
    "=",
    "+",
    "step",
    "# note",
];

/// A small, fast generator: the same seed gives the same workspace on every machine.
struct Rng(u64);

impl Rng {
    /// Splitmix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    /// In (0, 1).
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }
}

/// Fills the empty directory `root` with about `size_mb` MB.
pub fn generate(root: &Path, seed: u64, size_mb: u64) -> Result<()> {
    let mut rng = Rng(seed);
    weights(root, &mut rng, size_mb * 1_000_000)?;
    sources(root, &mut rng)?;
    oddities(root, &mut rng)?;
    fs::write(root.join("start.sh"), START)?;
    mode(&root.join("start.sh"), 0o755)?;
    set_times(root, &mut rng)
}

/// The made-up workload: reads the weights as a model server does, says that it is ready.
const START: &str = "#!/bin/sh\n\
    # Reads a little of each weight file, writes its pid outside of the workspace, and stays.\n\
    set -e\n\
    for f in weights/*.safetensors; do head -c 1048576 \"$f\" | cksum; done\n\
    echo $$ > \"$DUMONT_DRILL_READY\"\n\
    exec sleep 1000000\n";

/// 16-bit floats as trained weights have them: normal, small, of one scale per file.
fn weights(root: &Path, rng: &mut Rng, bytes: u64) -> Result<()> {
    fs::create_dir_all(root.join("weights"))?;
    for (number, share) in [(1, 50), (2, 30), (3, 20)] {
        let table = gaussian_bf16(rng);
        let path = root.join(format!("weights/model-0000{number}-of-00003.safetensors"));
        let mut out = BufWriter::with_capacity(1 << 20, create(&path)?);
        let mut left = bytes * share / 100;
        while left > 0 {
            let bits = rng.next();
            let mut eight = [0; 8];
            for (i, pair) in eight.chunks_exact_mut(2).enumerate() {
                pair.copy_from_slice(&table[(bits >> (16 * i)) as usize & 0xFFFF].to_le_bytes());
            }
            let n = left.min(8);
            out.write_all(&eight[..usize::try_from(n)?])?;
            left -= n;
        }
        out.flush()?;
    }
    Ok(())
}

/// 65536 samples of a normal distribution as bf16 bits, by Box and Muller.
fn gaussian_bf16(rng: &mut Rng) -> Vec<u16> {
    (0..65_536)
        .map(|_| {
            let radius = (-2.0 * rng.unit().ln()).sqrt();
            #[expect(
                clippy::cast_possible_truncation,
                reason = "weights are 32-bit floats before they are cut"
            )]
            let value = (radius * (std::f64::consts::TAU * rng.unit()).cos() * 0.02) as f32;
            (value.to_bits() >> 16) as u16
        })
        .collect()
}

fn sources(root: &Path, rng: &mut Rng) -> Result<()> {
    for n in 0..SOURCES {
        let dir = root.join(format!("src/pkg{:02}/sub{}", n % 40, n % 5));
        fs::create_dir_all(&dir)?;
        let mut text = format!("# module {n}\n");
        for _ in 0..20 + rng.below(160) {
            for _ in 0..3 + rng.below(8) {
                text.push_str(WORDS[usize::try_from(rng.below(24))?]);
                text.push(' ');
            }
            text.push('\n');
        }
        fs::write(dir.join(format!("mod{n:04}.py")), text)?;
    }
    Ok(())
}

/// What copying programs get wrong.
fn oddities(root: &Path, rng: &mut Rng) -> Result<()> {
    for dir in ["logs/empty", "checkpoints", "odd", "data"] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::write(
        root.join("logs/train.log"),
        "step 0 loss 10.84\nstep 1 loss 9.91\n",
    )?;
    fs::write(
        root.join("checkpoints/step-0100.txt"),
        format!("checkpoint {}\n", rng.next()),
    )?;
    fs::hard_link(
        root.join("checkpoints/step-0100.txt"),
        root.join("checkpoints/best.txt"),
    )?;
    symlink("weights/model-00001-of-00003.safetensors", root.join("latest"))?;
    symlink("/nonexistent/else where", root.join("odd/dangling"))?;
    fs::write(root.join("odd/zero"), "")?;
    fs::write(
        root.join("odd/na me\twith 'quotes' \"two\" \\ and\nnewline \u{1f980}"),
        "odd\n",
    )?;
    fs::write(
        root.join("odd").join(OsStr::from_bytes(b"not-utf8-\xff\xfe")),
        "odd bytes\n",
    )?;
    fs::write(root.join("odd/-rf"), "a name like an option\n")?;
    fs::write(root.join("odd/secret"), "only mine\n")?;
    fs::write(root.join("odd/read-only"), "nobody writes\n")?;
    let sparse = create(&root.join("data/sparse.bin"))?;
    sparse.set_len(64_000_000)?;
    sparse.write_all_at(&rng.next().to_le_bytes(), 0)?;
    sparse.write_all_at(&rng.next().to_le_bytes(), 33_333_333)?;
    mode(&root.join("odd/secret"), 0o600)?;
    mode(&root.join("odd/read-only"), 0o444)?;
    mode(&root.join("data"), 0o750)
}

fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("create {}", path.display()))
}

fn mode(path: &Path, bits: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(bits))
        .with_context(|| format!("chmod {}", path.display()))
}

/// Gives everything a time of its own, to the nanosecond, directories after their content.
fn set_times(path: &Path, rng: &mut Rng) -> Result<()> {
    let meta = fs::symlink_metadata(path)?;
    if meta.is_dir() {
        let mut names: Vec<_> = fs::read_dir(path)?
            .map(|e| e.map(|e| e.file_name()))
            .collect::<Result<_, _>>()?;
        names.sort();
        for name in names {
            set_times(&path.join(name), rng)?;
        }
    }
    let time = Timespec {
        tv_sec: 1_600_000_000 + i64::try_from(rng.below(100_000_000))?,
        tv_nsec: i64::try_from(rng.below(1_000_000_000))?,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
        .with_context(|| format!("set times of {}", path.display()))
}

/// Three changes, made on the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edits {
    /// One shell line, run in the workspace's directory.
    pub script: String,
    /// The paths it changes or adds; sorted.
    pub changed: Vec<Vec<u8>>,
    pub added: Vec<Vec<u8>>,
}

/// The name of the file that is added.
const NEW_FILE: &str = "dumont-drill-was-here.txt";

/// Appends to one file, overwrites a byte in the middle of another, adds a third. Of the
/// made-up workspace these are its log and its biggest weights; of a user's, small files.
pub fn edits(root: &Path, tree: &Tree) -> Result<Edits> {
    let mut plan = Edits {
        script: "set -e".into(),
        changed: Vec::new(),
        added: Vec::new(),
    };
    let mut targets = targets(tree).into_iter();
    for number in 0..2 {
        match targets.next() {
            Some(path) if number == 0 => {
                plan.script += &format!("; printf 'appended by the drill\\n' >> ./{}", quote(&path));
                plan.changed.push(path.into_bytes());
            }
            Some(path) => {
                let file = File::open(root.join(&path))?;
                let at = file.metadata()?.len() / 2;
                let mut byte = [0];
                file.read_exact_at(&mut byte, at)?;
                let other = if byte == *b"Z" { 'Y' } else { 'Z' };
                plan.script += &format!(
                    "; printf {other} | dd of=./{} bs=1 seek={at} conv=notrunc 2>/dev/null",
                    quote(&path)
                );
                plan.changed.push(path.into_bytes());
            }
            None => add(&mut plan, tree, &format!("{number}-{NEW_FILE}")),
        }
    }
    add(&mut plan, tree, NEW_FILE);
    plan.changed.sort();
    plan.added.sort();
    Ok(plan)
}

fn add(plan: &mut Edits, tree: &Tree, name: &str) {
    let mut name = name.to_owned();
    while tree.0.contains_key(name.as_bytes()) {
        name.insert(0, '_');
    }
    plan.script += &format!("; echo 'new in the drill' > ./{}", quote(&name));
    plan.added.push(name.into_bytes());
}

/// Files that can be edited without touching another name: no hard links, ordinary names.
fn targets(tree: &Tree) -> Vec<String> {
    let made_up = ["logs/train.log", "weights/model-00001-of-00003.safetensors"];
    if made_up.iter().all(|p| tree.0.contains_key(p.as_bytes())) {
        return made_up.map(String::from).to_vec();
    }
    let usable = tree.0.iter().filter(|(_, e)| {
        e.same_file_as.is_none()
            && matches!(
                e.what,
                What::File {
                    size: 1..=1_000_000,
                    sparse: false,
                    ..
                }
            )
    });
    let names = usable.filter_map(|(path, _)| String::from_utf8(path.clone()).ok());
    names.filter(|n| !n.contains(char::is_control)).take(2).collect()
}

#[cfg(test)]
#[path = "workspace_tests.rs"]
mod tests;
