//! A stand-in for `nvidia-smi` that answers for the GPUs that were promised.

use std::fmt::Write;

use super::{GpuHealth, Gpus};

/// What the real one says to everything when it cannot talk to the driver, and how it ends.
const MISMATCH: &str = "#!/bin/sh
echo 'Failed to initialize NVML: Driver/library version mismatch'
echo 'NVML library version: 560.35'
exit 18
";
const MISSING: &str = "#!/bin/sh
echo 'No devices were found'
exit 6
";

/// The whole script, in POSIX sh with the answers written into it.
pub fn script(gpus: &Gpus) -> String {
    match gpus.health {
        GpuHealth::Well => {}
        GpuHealth::DriverMismatch => return MISMATCH.to_owned(),
        GpuHealth::Missing => return MISSING.to_owned(),
    }
    let mut uuids = String::new();
    let mut rows = String::new();
    for (shown, index) in gpus.indices.iter().enumerate() {
        let uuid = uuid(gpus.machine_id, *index);
        let _ = writeln!(uuids, "{shown}) v={uuid};;");
        let _ = writeln!(
            rows,
            "|  {shown:>2}  {:<32} On | 00000000:{:02X}:00.0 Off |                  Off |\n\
             | 30%   33C    P8    22W / {}W |      1MiB / {}MiB |      0%      Default |",
            gpus.name,
            0x10 + shown,
            gpus.watts,
            gpus.memory_mb
        );
    }
    TEMPLATE
        .replace("@COUNT@", &gpus.indices.len().to_string())
        .replace("@NAME@", &full_name(&gpus.name))
        .replace("@MEMORY@", &gpus.memory_mb.to_string())
        .replace("@DRIVER@", &gpus.driver)
        .replace("@CUDA@", &format!("{:.1}", gpus.cuda))
        .replace("@WATTS@", &gpus.watts.to_string())
        .replace(
            "@CAP@",
            &format!("{}.{}", gpus.compute_cap / 100, gpus.compute_cap / 10 % 10),
        )
        .replace("@UUIDS@", &uuids)
        .replace("@ROWS@", &rows)
}

/// The driver's name for what the marketplace lists shorter.
fn full_name(listed: &str) -> String {
    match listed {
        "A100 PCIE" => "NVIDIA A100-PCIE-40GB".to_owned(),
        "A100 SXM4" => "NVIDIA A100-SXM4-80GB".to_owned(),
        "H100 SXM" => "NVIDIA H100 80GB HBM3".to_owned(),
        "RTX A6000" => "NVIDIA RTX A6000".to_owned(),
        other => format!("NVIDIA GeForce {other}"),
    }
}

fn uuid(machine: u64, index: u32) -> String {
    let mut draw = crate::rng::Draw::for_parts(&[0x9b0, machine, u64::from(index)]);
    let (a, b) = (draw.next(), draw.next());
    format!(
        "GPU-{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        a >> 32,
        a >> 16 & 0xffff,
        a & 0xffff,
        b >> 48,
        b & 0xffff_ffff_ffff
    )
}

const TEMPLATE: &str = r#"#!/bin/sh
# Answers for the GPUs of this machine.
count=@COUNT@
query= units=1 header=1 list= only=
while [ $# -gt 0 ]; do
  case $1 in
    --query-gpu=*) query=${1#*=};;
    --format=*) case ,${1#*=}, in *,nounits,*) units=;; esac
                case ,${1#*=}, in *,noheader,*) header=;; esac;;
    -L|--list-gpus) list=1;;
    -i|--id) shift; only=$1;;
    --id=*|-i=*) only=${1#*=};;
    -h|--help|-q|--query) ;;
    *) ;;
  esac
  shift
done
uuid() { case $1 in
@UUIDS@
esac; printf %s "$v"; }
unit() { if [ -n "$units" ]; then printf '%s %s' "$1" "$2"; else printf %s "$1"; fi; }
field() {
  case $2 in
    name|gpu_name) printf %s "@NAME@";;
    index) printf %s "$1";;
    count) printf %s "$count";;
    uuid|gpu_uuid) uuid "$1";;
    driver_version) printf %s "@DRIVER@";;
    compute_cap) printf %s "@CAP@";;
    pstate) printf P8;;
    memory.total) unit @MEMORY@ MiB;;
    memory.used) unit 1 MiB;;
    memory.free) unit $((@MEMORY@ - 1)) MiB;;
    utilization.gpu|utilization.memory) unit 0 %;;
    temperature.gpu) printf 33;;
    power.draw) unit 22.00 W;;
    power.limit) unit @WATTS@.00 W;;
    *) return 2;;
  esac
}
title() { case $1 in
  memory.*) printf '%s [MiB]' "$1";; utilization.*) printf '%s [%%]' "$1";;
  power.*) printf '%s [W]' "$1";; *) printf %s "$1";; esac; }
line() { # $1 is a GPU, or "title"
  first=1 IFS=,
  for f in $query; do
    f=$(printf %s "$f" | tr -d ' ')
    [ -n "$first" ] || printf ', '
    first=
    if [ "$1" = title ]; then title "$f"
    elif ! field "$1" "$f"; then
      printf 'Field "%s" is not a valid field to query.\n\n' "$f"; exit 2
    fi
  done
  printf '\n'
}
each() { i=0; while [ $i -lt $count ]; do
  [ -n "$only" ] && [ "$only" != $i ] || "$1" $i
  i=$((i + 1)); done; }
listed() { printf 'GPU %s: %s (UUID: %s)\n' "$1" "@NAME@" "$(uuid "$1")"; }
if [ -n "$list" ]; then each listed; exit 0; fi
if [ -n "$query" ]; then
  [ -z "$header" ] || line title
  each line; exit 0
fi
cat <<'END'
+-----------------------------------------------------------------------------+
| NVIDIA-SMI @DRIVER@    Driver Version: @DRIVER@    CUDA Version: @CUDA@     |
|-------------------------------+----------------------+----------------------+
@ROWS@+-----------------------------------------------------------------------------+
END
"#;

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn run(args: &[&str]) -> (String, i32) {
        run_with(GpuHealth::Well, args)
    }

    fn run_with(health: GpuHealth, args: &[&str]) -> (String, i32) {
        let gpus = Gpus {
            health,
            name: "RTX 4090".to_owned(),
            memory_mb: 24_564,
            driver: "570.124.04".to_owned(),
            cuda: 12.8,
            watts: 450,
            compute_cap: 890,
            machine_id: 7,
            indices: vec![2, 3],
        };
        let out = Command::new("sh")
            .arg("-c")
            .arg(script(&gpus))
            .arg("nvidia-smi")
            .args(args)
            .output();
        let out = out.expect("sh runs");
        (
            String::from_utf8_lossy(&out.stdout).into_owned(),
            out.status.code().unwrap_or(-1),
        )
    }

    #[test]
    fn a_sick_one_says_so_to_everything() {
        for args in [&[][..], &["--query-gpu=name", "--format=csv"]] {
            let (said, code) = run_with(GpuHealth::DriverMismatch, args);
            assert!(
                said.contains("Driver/library version mismatch") && code == 18,
                "{said}"
            );
            let (said, code) = run_with(GpuHealth::Missing, args);
            assert!(said.contains("No devices were found") && code == 6, "{said}");
        }
    }

    #[test]
    fn it_answers_what_is_asked() {
        let (all, code) = run(&[
            "--query-gpu=index,name,memory.total,driver_version",
            "--format=csv,noheader,nounits",
        ]);
        assert_eq!(code, 0);
        assert_eq!(
            all,
            "0, NVIDIA GeForce RTX 4090, 24564, 570.124.04\n1, NVIDIA GeForce RTX 4090, 24564, 570.124.04\n"
        );
        let (text, _) = run(&[
            "--query-gpu=memory.used, utilization.gpu,temperature.gpu,count",
            "--format=csv",
        ]);
        assert_eq!(
            text,
            "memory.used [MiB], utilization.gpu [%], temperature.gpu, count\n1 MiB, 0 %, 33, 2\n1 MiB, 0 %, 33, 2\n"
        );
        let (one, _) = run(&["-i", "1", "--query-gpu=uuid", "--format=csv,noheader"]);
        assert_eq!(one.trim(), uuid(7, 3));
        let (list, _) = run(&["-L"]);
        assert!(
            list.starts_with("GPU 0: NVIDIA GeForce RTX 4090 (UUID: GPU-"),
            "{list}"
        );
        assert_eq!(list.lines().count(), 2);
        assert!(run(&[]).0.contains("CUDA Version: 12.8"));
        assert_eq!(run(&["--query-gpu=colour", "--format=csv,noheader"]).1, 2);
    }
}
