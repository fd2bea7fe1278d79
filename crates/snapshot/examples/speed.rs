//! How fast snapshot and restore are here, next to `cp -a`:
//! `cargo run --release -p dumont-snapshot --example speed [-- DIRECTORY]`.
//!
//! Two generated trees (1 GiB that looks like bf16 weights, 20,000 small files that look like
//! code) or the directory given; the store is a directory on the same disk. With `SPEED_MD5` set the
//! MD5 of `.safetensors` is taken, too.

use dumont_core::snapshot::SnapshotHead;
use dumont_snapshot::{DirStore, NoEvents, RestoreOptions, SnapshotOptions, restore, snapshot};
use std::error::Error;
use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

static NEVER: AtomicBool = AtomicBool::new(false);

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let temp = tempfile::tempdir_in(std::env::var("SPEED_DIR").unwrap_or_else(|_| ".".into()))?;
    let given = std::env::args().nth(1);
    if let Some(path) = &given {
        return measure("given", Path::new(path), temp.path());
    }
    let weights = temp.path().join("weights");
    make_weights(&weights)?;
    measure("weights", &weights, temp.path())?;
    let code = temp.path().join("code");
    make_code(&code)?;
    measure("code", &code, temp.path())
}

/// Four files of 256 MiB: 16-bit floats, normally distributed.
fn make_weights(to: &Path) -> Outcome<()> {
    fs::create_dir(to)?;
    for file in 0..4u64 {
        let mut random = vec![0u8; 256 << 20];
        blake3::Hasher::new()
            .update(&file.to_le_bytes())
            .finalize_xof()
            .fill(&mut random);
        let bytes: Vec<u8> = random
            .chunks_exact(4)
            .flat_map(|r| {
                // The sum of four uniform bytes is near enough to a normal distribution.
                let sum: i32 = r.iter().map(|b| i32::from(*b)).sum::<i32>() - 510;
                let value = sum as f32 * 1e-4 + f32::from(r[0] ^ r[3]) * 1e-7;
                let [_, _, low, high] = value.to_bits().to_le_bytes();
                let [_, _, low2, high2] = (value * 1.7 + 0.003).to_bits().to_le_bytes();
                [low, high, low2, high2]
            })
            .collect();
        fs::write(to.join(format!("model-{file}.safetensors")), bytes)?;
    }
    Ok(())
}

fn make_code(to: &Path) -> Outcome<()> {
    for i in 0..20_000u32 {
        let dir = to.join(format!("pkg{}/mod{}", i / 400, i / 20 % 20));
        if i % 20 == 0 {
            fs::create_dir_all(&dir)?;
        }
        let lines = 1 + blake3::hash(&i.to_le_bytes()).as_bytes()[0] as usize * 4;
        let text: String = (0..lines)
            .map(|l| format!("def f{l}_{i}(self, x): return x * {}\n", l * i as usize % 977))
            .collect();
        fs::write(dir.join(format!("m{i}.py")), text)?;
    }
    Ok(())
}

fn measure(what: &str, tree: &Path, temp: &Path) -> Outcome<()> {
    // The peak so far is that of making the tree.
    fs::write("/proc/self/clear_refs", "5")?;
    let store = DirStore::new(temp.join(format!("store-{what}")));
    let cache = temp.join(format!("cache-{what}"));
    let options = |n: u32, parent: Option<String>| SnapshotOptions {
        path: tree.into(),
        stamp: format!("1-{n}"),
        parent,
        full: false,
        cache_path: cache.clone(),
        workers: 0,
        key: None,
        model_files: std::env::var_os("SPEED_MD5")
            .map(|_| ".safetensors".into())
            .into_iter()
            .collect(),
        cancelled: &NEVER,
    };
    std::thread::sleep(std::time::Duration::from_millis(50));
    let before = cpu();
    let first = snapshot(&options(1, None), &store, &NoEvents)?;
    let mb = |bytes: u64, ms: u64| format!("{ms} ms, {:.0} MB/s", bytes as f64 / 1e3 / ms.max(1) as f64);
    println!(
        "{what}: {} files, {:.0} MB",
        first.files_total,
        first.total_bytes as f64 / 1e6
    );
    println!(
        "  first snapshot  {}, CPU {} ms, stored {:.1} %",
        mb(first.total_bytes, first.elapsed_ms),
        cpu() - before,
        first.uploaded_bytes as f64 * 100.0 / first.total_bytes.max(1) as f64
    );
    let again = snapshot(&options(2, Some(first.snapshot_id.clone())), &store, &NoEvents)?;
    println!(
        "  nothing changed {} ms, {} bytes",
        again.elapsed_ms, again.uploaded_bytes
    );
    let head = SnapshotHead {
        snapshot_id: first.snapshot_id,
        root: first.root,
        indexes: first.index.into_iter().collect(),
        files: first.files_total,
        bytes: first.total_bytes,
    };
    for round in 0..3 {
        let out = temp.join(format!("out-{what}-{round}"));
        let opts = RestoreOptions {
            cache_path: Some(temp.join("restored-cache")),
            ..RestoreOptions::new(out.clone(), &NEVER)
        };
        let before = cpu();
        let r = restore(&opts, &head, &store, &NoEvents)?;
        let problems = r.validation.problems.len();
        println!(
            "  restore         {}, CPU {} ms, {} requests, {problems} problems",
            mb(r.bytes_restored, r.elapsed_ms),
            cpu() - before,
            r.requests
        );
        let begun = Instant::now();
        let copy = temp.join(format!("copy-{what}-{round}"));
        std::process::Command::new("cp")
            .arg("-a")
            .arg(tree)
            .arg(&copy)
            .status()?;
        let ms = u64::try_from(begun.elapsed().as_millis())?;
        println!("  cp -a           {}", mb(first.total_bytes, ms));
        fs::remove_dir_all(out)?;
        fs::remove_dir_all(copy)?;
    }
    println!("  peak memory     {}", peak());
    Ok(())
}

/// CPU time of this process so far, all threads, milliseconds (in ticks of 10).
fn cpu() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields
        .skip(11)
        .take(2)
        .filter_map(|f| f.parse::<u64>().ok())
        .sum::<u64>()
        * 10
}

fn peak() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|l| l.strip_prefix("VmHWM:"))
        .unwrap_or("?")
        .trim()
        .into()
}
