//! Three trees like those of GPU workspaces, the same bytes on every machine.
//!
//! * `weights` (W1): 4 safetensors of bf16 weights, normal with a deviation of 0.02, 3.2 GB.
//! * `small` (W2): 26,000 files like an environment's packages, 650 MB.
//! * `checkpoint` (W3): weights, an optimizer's state, a data set, a log, and code; 1.8 GB in
//!   12,500 files. [`edit`] changes it in the four ways in which checkpoints change.

use anyhow::{Context, Result};
use std::fs::{self, File, Permissions};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// W1: large files of weights
    Weights,
    /// W2: many small files
    Small,
    /// W3: some of both
    Checkpoint,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Weights, Self::Small, Self::Checkpoint];

    pub fn name(self) -> &'static str {
        match self {
            Self::Weights => "W1",
            Self::Small => "W2",
            Self::Checkpoint => "W3",
        }
    }

    pub fn about(self) -> &'static str {
        match self {
            Self::Weights => "bf16 weights in 4 files",
            Self::Small => "small files",
            Self::Checkpoint => "a mixed checkpoint",
        }
    }
}

/// `size` is of the full one: bytes of large files, the number of small ones.
pub fn make(kind: Kind, dir: &Path, size: f64) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let scaled = |n: f64| (n * size).max(1.0) as u64;
    match kind {
        Kind::Weights => std::thread::scope(|s| {
            let make = |i: u64| {
                weights(
                    &dir.join(format!("model-{i:05}-of-00004.safetensors")),
                    i,
                    scaled(805e6),
                )
            };
            let all: Vec<_> = (1..=4).map(|i| s.spawn(move || make(i))).collect();
            all.into_iter()
                .try_for_each(|t| t.join().unwrap_or_else(|_| anyhow::bail!("a writer panicked")))
        }),
        Kind::Small => {
            let site = dir.join("lib/python3.11/site-packages");
            let written = packages(&site, 1, scaled(25_900.0))?;
            let libraries = scaled(64.0);
            let left = scaled(650e6).saturating_sub(written) / libraries;
            for i in 0..libraries {
                let name = format!("pkg{}/lib{i}.so", i % package_count(scaled(25_900.0)));
                let path = site.join(name);
                library(&path, 1000 + i, left)?;
                fs::set_permissions(path, Permissions::from_mode(0o755))?;
            }
            Ok(())
        }
        Kind::Checkpoint => {
            weights(&new(dir, "step-1000/model.safetensors")?, 11, scaled(680e6))?;
            optimizer(&new(dir, "step-1000/optimizer.bin")?, 12, scaled(560e6))?;
            dataset(&new(dir, "data/shard-0.bin")?, 13, scaled(240e6))?;
            log(&new(dir, "logs/train.log")?, 14, scaled(40e6))?;
            packages(&dir.join("code"), 15, scaled(12_480.0)).map(drop)
        }
    }
}

/// What happens to a checkpoint between two snapshots.
pub fn edit(dir: &Path) -> Result<()> {
    // Renamed: nothing of it is new.
    fs::rename(
        dir.join("step-1000/model.safetensors"),
        dir.join("step-1000/model-best.safetensors"),
    )?;
    fs::rename(dir.join("step-1000"), dir.join("step-2000"))?;
    // Overwritten in place, in the middle.
    let optimizer = dir.join("step-2000/optimizer.bin");
    let len = fs::metadata(&optimizer)?.len();
    let mut file = File::options().write(true).open(&optimizer)?;
    let mut rng = Rng(21);
    for place in 1..5 {
        file.seek(SeekFrom::Start(len / 5 * place / 4 * 4))?;
        file.write_all(&floats(&mut rng, len / 150))?;
    }
    // Appended.
    let mut file = File::options().append(true).open(dir.join("logs/train.log"))?;
    let more = file.metadata()?.len() / 4;
    file.write_all(&text(&mut Rng(22), &Words::new(), more as usize))?;
    // Inserted at the front.
    let shard = dir.join("data/shard-0.bin");
    let mut old = Vec::new();
    File::open(&shard)?.read_to_end(&mut old)?;
    let mut file = File::create(&shard)?;
    file.write_all(b"a header that was not there before\n")?;
    file.write_all(&old)?;
    drop(file);
    edit_code(&dir.join("code"))
}

/// One file in fifty is changed, one in a hundred is gone, and a package is new.
fn edit_code(code: &Path) -> Result<()> {
    let (mut todo, mut files) = (vec![code.to_owned()], Vec::new());
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                todo.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    for (i, file) in files.iter().enumerate() {
        match i % 100 {
            // As editors do it: a new file in the place of the old one.
            7 | 57 => {
                let bytes = fs::read(file)?;
                fs::remove_file(file)?;
                fs::write(file, [&bytes, b"\n# changed\n".as_slice()].concat())?;
            }
            33 => fs::remove_file(file)?,
            _ => {}
        }
    }
    let new = code.join("new");
    packages(&new, 23, files.len() as u64 / 60).map(drop)
}

/// SplitMix64: the same numbers everywhere and for ever.
#[derive(Clone)]
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [0, 1).
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// Small numbers are far likelier, as among words.
    fn skewed(&mut self, n: usize) -> usize {
        let u = self.unit();
        (u * u * u * n as f64) as usize
    }
}

fn new(dir: &Path, name: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    Ok(path)
}

/// Drawn from many normal numbers that were drawn before: a histogram of 65,536 draws shows the
/// same bits, and 3 GB of logarithms would take a minute.
fn normal_table<T>(seed: u64, deviation: f64, to: impl Fn(f32) -> T) -> Vec<T> {
    let mut rng = Rng(seed);
    (0..1 << 16)
        .map(|_| to((rng.normal() * deviation) as f32))
        .collect()
}

fn fill(path: &Path, len: u64, head: &[u8], mut more: impl FnMut(&mut Vec<u8>)) -> Result<()> {
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    out.write_all(head)?;
    let (mut left, mut block) = (len.saturating_sub(head.len() as u64), Vec::new());
    while left > 0 {
        block.clear();
        more(&mut block);
        block.truncate(usize::try_from(left).unwrap_or(usize::MAX).min(block.len()));
        out.write_all(&block)?;
        left -= block.len() as u64;
    }
    Ok(out
        .into_inner()
        .map_err(std::io::IntoInnerError::into_error)?
        .flush()?)
}

fn weights(path: &Path, seed: u64, len: u64) -> Result<()> {
    let table = normal_table(seed, 0.02, |v| (v.to_bits() >> 16) as u16);
    let values = len.saturating_sub(128) / 2;
    let json = format!(
        r#"{{"w":{{"dtype":"BF16","shape":[{values}],"data_offsets":[0,{}]}}}}"#,
        values * 2
    );
    let mut head = 120u64.to_le_bytes().to_vec();
    head.extend(format!("{json:<120}").bytes());
    let mut rng = Rng(seed << 32);
    fill(path, head.len() as u64 + values * 2, &head, |block| {
        for _ in 0..64 << 10 {
            let mut bits = rng.next();
            for _ in 0..4 {
                block.extend(table[(bits & 0xffff) as usize].to_le_bytes());
                bits >>= 16;
            }
        }
    })
}

/// 32-bit floats: two moments for each weight, the second positive and tiny.
fn optimizer(path: &Path, seed: u64, len: u64) -> Result<()> {
    let mut rng = Rng(seed);
    fill(path, len / 4 * 4, &[], |block| *block = floats(&mut rng, 1 << 20))
}

fn floats(rng: &mut Rng, len: u64) -> Vec<u8> {
    let table = normal_table(5, 0.001, f32::to_bits);
    let mut out = Vec::with_capacity(len as usize);
    for _ in 0..len / 4 {
        let bits = rng.next();
        // The mantissa's low half is noise of its own.
        let value = table[(bits & 0xffff) as usize] ^ (bits >> 48) as u32;
        out.extend(value.to_le_bytes());
    }
    out
}

/// Tokens of 16 bits, common ones far more often.
fn dataset(path: &Path, seed: u64, len: u64) -> Result<()> {
    let mut rng = Rng(seed);
    fill(path, len, &[], |block| {
        for _ in 0..64 << 10 {
            block.extend((rng.skewed(50_000) as u16).to_le_bytes());
        }
    })
}

fn log(path: &Path, seed: u64, len: u64) -> Result<()> {
    let (mut rng, words) = (Rng(seed), Words::new());
    fill(path, len, &[], |block| *block = text(&mut rng, &words, 1 << 20))
}

struct Words(Vec<String>);

impl Words {
    fn new() -> Self {
        let mut rng = Rng(3);
        let word = |i: usize| {
            let len = 2 + rng.below(4 + i % 7);
            (0..len)
                .map(|_| char::from(b'a' + rng.skewed(26) as u8))
                .collect()
        };
        Self((0..6000).map(word).collect())
    }
}

/// Words that one file uses, out of all.
const OWN_WORDS: usize = 400;

/// Lines that look like code: indented, with names that come again and again.
fn text(rng: &mut Rng, words: &Words, len: usize) -> Vec<u8> {
    const JOINTS: [&str; 8] = [" ", ".", "(", ") ", " = ", ", ", "_", ": "];
    let own = &words.0[rng.below(words.0.len() - OWN_WORDS)..][..OWN_WORDS];
    let mut out = Vec::with_capacity(len + 128);
    while out.len() < len {
        let indent = 4 * rng.below(4);
        out.extend(std::iter::repeat_n(b' ', indent));
        for _ in 0..2 + rng.below(8) {
            out.extend(own[rng.skewed(own.len())].bytes());
            out.extend(JOINTS[rng.skewed(JOINTS.len())].bytes());
        }
        out.push(b'\n');
    }
    out.truncate(len);
    out
}

/// Machine code repeats itself, with operands in between that are nearly noise.
fn library(path: &Path, seed: u64, len: u64) -> Result<()> {
    let mut rng = Rng(seed);
    let idiom = |rng: &mut Rng| -> Vec<u8> { (0..8 + rng.below(32)).map(|_| rng.next() as u8).collect() };
    let idioms: Vec<_> = (0..512).map(|_| idiom(&mut rng)).collect();
    fill(path, len, b"\x7fELF\x02\x01\x01", |block| {
        for _ in 0..16 << 10 {
            block.extend(&idioms[rng.skewed(idioms.len())]);
            let operand = rng.next().to_le_bytes();
            block.extend(&operand[..1 + rng.below(6)]);
        }
    })
}

fn package_count(files: u64) -> u64 {
    (files / 200).max(1)
}

/// `files` files in packages; their bytes in all.
fn packages(dir: &Path, seed: u64, files: u64) -> Result<u64> {
    let (mut rng, words, mut written) = (Rng(seed), Words::new(), 0);
    let count = package_count(files);
    for i in 0..files {
        let package = dir.join(format!("pkg{}", i % count));
        let module = match i / count {
            0..20 => package,
            n => package.join(format!("mod{}", n % 12)),
        };
        fs::create_dir_all(&module)?;
        let path = module.join(format!("{}_{i}.py", words.0[rng.below(500)]));
        match i % 400 {
            17 => symlink("../__init__.py", &path)?,
            18 => fs::create_dir(&path)?,
            19 if i > 400 => {
                // Another name for a file of its own directory.
                let first = module.join(format!("linked_{i}.py"));
                fs::write(&first, text(&mut rng, &words, 3000))?;
                fs::hard_link(&first, &path)?;
                written += 3000;
            }
            n => {
                let len = if n % 25 == 3 {
                    0
                } else {
                    (5000.0 * (rng.normal() * 1.3).exp()).min(400_000.0) as usize
                };
                fs::write(&path, text(&mut rng, &words, len))?;
                written += len as u64;
                let mode = match n % 40 {
                    5 => Some(0o755),
                    6 => Some(0o600),
                    7 => Some(0o444),
                    _ => None,
                };
                if let Some(mode) = mode {
                    fs::set_permissions(&path, Permissions::from_mode(mode))?;
                }
            }
        }
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::drill::compare::{diff, scan};

    #[test]
    fn the_same_seed_makes_the_same_trees() {
        let temp = tempfile::tempdir().unwrap();
        for kind in Kind::ALL {
            let two = ["a", "b"].map(|n| temp.path().join(kind.name()).join(n));
            for dir in &two {
                make(kind, dir, 0.001).unwrap();
                if kind == Kind::Checkpoint {
                    edit(dir).unwrap();
                }
            }
            let [mut a, mut b] = two.map(|d| scan(&d).unwrap());
            assert!(
                a.bytes() > 400_000 && a.files() >= 4,
                "{} {}",
                a.bytes(),
                a.files()
            );
            for tree in [&mut a, &mut b] {
                tree.0.values_mut().for_each(|e| e.mtime_ns = 0);
            }
            assert!(diff(&a, &b).is_empty(), "{kind:?}");
        }
    }

    #[test]
    fn weights_are_as_noisy_as_weights() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("w");
        weights(&path, 1, 4 << 20).unwrap();
        let bytes = fs::read(&path).unwrap();
        let mut counts = [0u32; 256];
        bytes[128..]
            .chunks_exact(2)
            .for_each(|n| counts[usize::from(n[1])] += 1);
        let total = f64::from(counts.iter().sum::<u32>());
        let entropy: f64 = counts
            .iter()
            .filter(|n| **n > 0)
            .map(|n| f64::from(*n) / total)
            .map(|p| -p * p.log2())
            .sum();
        assert!((2.6..2.75).contains(&entropy), "{entropy}");
    }
}
