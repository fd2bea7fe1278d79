//! What the machine says about itself. The controller believes none of it without a check,
//! so a fact that cannot be had is zero or empty and never an error: a host with an odd
//! `/proc` must still be able to say hello.

use crate::exec;
use dumont_core::time::Timestamp;
use dumont_wire::agent::{ClockFix, Facts, GpuFact, PROTOCOL, WorkloadStatus};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

const GPU_TIMEOUT: Duration = Duration::from_secs(10);
/// Hosts without a driver have been seen to print pages.
const ERROR_CHARS: usize = 300;

pub fn now() -> Timestamp {
    Timestamp::from_system(SystemTime::now())
}

/// `received` is our clock when the Hello came in, `theirs` what it said.
pub fn collect(
    path: &str,
    received: Timestamp,
    theirs: Timestamp,
    clock_fix: Option<ClockFix>,
    workload: Option<WorkloadStatus>,
) -> Facts {
    let uname = rustix::system::uname();
    let text = |s: &std::ffi::CStr| s.to_string_lossy().chars().take(200).collect::<String>();
    let (memory_total_bytes, memory_available_bytes) = memory();
    let (disk_total_bytes, disk_free_bytes) = disk(Path::new(path));
    let (gpus, gpu_error) = match gpus() {
        Ok(gpus) => (gpus, None),
        Err(why) => (Vec::new(), Some(why)),
    };
    Facts {
        protocol: PROTOCOL,
        agent_version: env!("CARGO_PKG_VERSION").into(),
        now: received,
        clock_skew_ms: received.0.saturating_sub(theirs.0) / 1_000,
        clock_fix,
        hostname: text(uname.nodename()),
        kernel: text(uname.release()),
        cpus: std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        memory_total_bytes,
        memory_available_bytes,
        disk_total_bytes,
        disk_free_bytes,
        gpus,
        gpu_error,
        workload,
    }
}

/// Total and available. Without `/proc` the kernel still tells the total.
fn memory() -> (u64, u64) {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info
            .lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim()
            .trim_end_matches("kB")
            .trim()
            .parse::<u64>()
            .ok()
            .map(|kb| kb * 1024)
    };
    let kernel = rustix::system::sysinfo();
    let unit = u64::from(kernel.mem_unit);
    let total = field("MemTotal").unwrap_or(kernel.totalram * unit);
    (total, field("MemAvailable").unwrap_or(kernel.freeram * unit))
}

/// Total and free to us, of the file system below `path` or its nearest parent that exists.
fn disk(path: &Path) -> (u64, u64) {
    let found = path.ancestors().find_map(|p| rustix::fs::statvfs(p).ok());
    found.map_or((0, 0), |s| {
        (
            s.f_blocks.saturating_mul(s.f_frsize),
            s.f_bavail.saturating_mul(s.f_frsize),
        )
    })
}

fn gpus() -> Result<Vec<GpuFact>, String> {
    let also = ["/usr/bin", "/usr/local/nvidia/bin", "/opt/bin", "/usr/local/bin"];
    let program = exec::find("nvidia-smi", &also).ok_or("nvidia-smi: not found")?;
    let mut command = Command::new(program);
    command.args([
        "--query-gpu=name,memory.total,driver_version",
        "--format=csv,noheader,nounits",
    ]);
    let ran = exec::run_bounded(command.process_group(0), GPU_TIMEOUT, 64 << 10, &|| false)
        .map_err(|e| format!("nvidia-smi: {e}"))?;
    let output = String::from_utf8_lossy(&ran.tail);
    let bounded = |what: String| {
        let said: String = output.trim().chars().take(ERROR_CHARS).collect();
        format!("nvidia-smi: {what}: {said}")
    };
    match ran.status {
        None => Err(bounded(format!("no answer within {} s", GPU_TIMEOUT.as_secs()))),
        Some(s) if !s.success() => Err(bounded(format!("exit code {}", exec::exit_code(s)))),
        Some(_) => {
            let gpus: Vec<_> = output.lines().filter_map(parse_gpu).collect();
            if gpus.is_empty() {
                Err(bounded("lists no GPU".into()))
            } else {
                Ok(gpus)
            }
        }
    }
}

/// `NVIDIA GeForce RTX 4090, 24564, 550.54.14`; names may hold commas, the rest does not.
fn parse_gpu(line: &str) -> Option<GpuFact> {
    let mut fields = line.rsplitn(3, ',').map(str::trim);
    let (driver, memory, name) = (fields.next()?, fields.next()?, fields.next()?);
    if name.is_empty() || driver.is_empty() {
        return None;
    }
    // Some devices answer `[N/A]`; older drivers print the unit all the same.
    let memory_mb = memory
        .split_whitespace()
        .next()
        .and_then(|m| m.parse().ok())
        .unwrap_or(0);
    let bounded = |s: &str| s.chars().take(100).collect();
    Some(GpuFact {
        name: bounded(name),
        memory_mb,
        driver_version: bounded(driver),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpu_lines_are_read_and_noise_is_not() {
        let gpu = parse_gpu("NVIDIA GeForce RTX 4090, 24564, 550.54.14").unwrap();
        assert_eq!(
            (gpu.name.as_str(), gpu.memory_mb),
            ("NVIDIA GeForce RTX 4090", 24564)
        );
        assert_eq!(gpu.driver_version, "550.54.14");
        assert_eq!(parse_gpu("A, B, 81559 MiB, 535.1").unwrap().memory_mb, 81559);
        assert_eq!(parse_gpu("Tesla, [N/A], 1").unwrap().memory_mb, 0);
        for noise in ["", "WARNING: infoROM is corrupted", "a, b", ", 1, 2"] {
            assert!(parse_gpu(noise).is_none(), "{noise:?}");
        }
    }

    #[test]
    fn a_path_that_does_not_exist_yet_has_its_parents_disk() {
        assert!(disk(Path::new("/nowhere/at/all")).0 > 0);
        assert!(memory().0 > 0);
    }
}
