//! What is done on a machine that is not ours to fill: a directory per lease, and its end.
//!
//! A lease's directory is home and root to all that runs for it. Everything therefore carries the
//! lease's id, a ULID, in its environment (`HOME`) or stands in that directory, and is found by it
//! at the end without a list that a crash could lose. Scripts use what busybox has.

use super::failed;
use crate::providers::{ErrorClass, ProviderError};
use crate::ssh::{Connection, quoted};
use dumont_store::LeaseRow;
use russh::ChannelMsg;
use std::time::Duration;
use tokio::time::timeout;

/// For making a directory or adding a line.
const SHORT: Duration = Duration::from_secs(15);
/// For ending processes, and removing what may be terabytes.
const CLEAN: Duration = Duration::from_secs(600);
/// A machine's words that are read, bytes.
const WORDS: usize = 64 << 10;
/// Before our own words, among whatever a login prints.
const MARK: &str = "DUMONT-SAYS ";

/// Makes the lease's directory. Safe to repeat.
pub async fn prepare(connection: &Connection, lease: &LeaseRow) -> Result<String, ProviderError> {
    let script = format!(
        r#"set -eu; umask 077
{}
mkdir -p "$home"; cd "$home"; printf '%s\n' {} > lease
printf '\n{MARK}%s\n' "$(pwd -P)""#,
        place(lease),
        quoted(&lease.label)
    );
    let home = run(connection, lease, &script, SHORT).await?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._/-".contains(&b);
    if home.starts_with('/') && home.len() <= 2_000 && home.bytes().all(plain) && home.ends_with(&lease.id) {
        return Ok(home);
    }
    Err(failed(
        ErrorClass::Invalid,
        format!(
            "{}: the directory for leases is called {home:?}; give it another with --dir, of plain characters",
            lease.machine.machine
        ),
    ))
}

/// Ends what runs for the lease and takes away what it put there. Safe to repeat.
pub async fn clean(connection: &Connection, lease: &LeaseRow) -> Result<(), ProviderError> {
    let script = format!("{}\n{CLEANER}", place(lease));
    run(connection, lease, &script, CLEAN).await.map(drop)
}

/// Lets a key in until the lease ends. Safe to repeat; one that is in already stays as it is.
pub async fn let_in(connection: &Connection, lease: &LeaseRow, key: &str) -> Result<(), ProviderError> {
    let (key, id) = (quoted(key), &lease.id);
    let script = format!(
        r#"set -eu; umask 077; mkdir -p "$HOME/.ssh"; keys="$HOME/.ssh/authorized_keys"; touch "$keys"
if ! grep -qF {key} "$keys"; then
  [ -z "$(tail -c 1 "$keys")" ] || echo >> "$keys"
  printf '%s dumont-lease:%s\n' {key} {id} >> "$keys"
fi
printf '\n{MARK}done\n'"#
    );
    run(connection, lease, &script, SHORT).await.map(drop)
}

/// Sets `id`, `base` and `home`.
fn place(lease: &LeaseRow) -> String {
    let base = match &lease.machine.dir {
        Some(dir) => quoted(dir.trim_end_matches('/')),
        None => r#""$HOME/.dumont-leases""#.to_owned(),
    };
    format!(r#"id={}; base={base}; home="$base/$id""#, quoted(&lease.id))
}

/// The shell's own children have neither the id in their environment nor stand in the directory.
const CLEANER: &str = r#"cd /
mine() {
  grep -laF "$id" /proc/[0-9]*/environ 2>/dev/null | sed 's|^/proc/\([0-9]*\)/.*|\1|'
  ls -l /proc/[0-9]*/cwd /proc/[0-9]*/exe 2>/dev/null | grep -F "$id" | sed -n 's|.* /proc/\([0-9]*\)/[a-z]* -> .*|\1|p'
}
signal=TERM; rounds=0
while pids=$(mine | sort -u); [ -n "$pids" ]; do
  [ -z "$signal" ] || kill -s $signal $pids 2>/dev/null
  rounds=$((rounds + 1)); signal=
  [ $rounds -lt 30 ] || signal=KILL
  [ $rounds -lt 60 ] || { echo "processes do not end:" $pids >&2; exit 3; }
  sleep 0.2 2>/dev/null || sleep 1
done
if [ -f "$home/link" ]; then
  link=$(cat "$home/link")
  case "$(readlink "$link")" in *"$id"*) rm -f "$link" ;; esac
fi
keys=$(readlink -f "$HOME/.ssh/authorized_keys" 2>/dev/null)
if [ -n "$keys" ] && grep -qF "dumont-lease:$id" "$keys" 2>/dev/null; then
  cp -p "$keys" "$keys.dumont" && { grep -vF "dumont-lease:$id" "$keys" > "$keys.dumont" || :; } \
    && mv -f "$keys.dumont" "$keys" || exit 4
fi
chmod -R u+rwX "$home" 2>/dev/null; rm -rf "$home"
[ ! -e "$home" ] || { echo "$home cannot be removed" >&2; exit 5; }
rmdir "$base" 2>/dev/null
printf '\nDUMONT-SAYS done\n'"#;

/// Runs a script and gives what it says at its end.
async fn run(
    connection: &Connection,
    lease: &LeaseRow,
    script: &str,
    limit: Duration,
) -> Result<String, ProviderError> {
    let name = &lease.machine.machine;
    let wrong = |why: String| failed(ErrorClass::Transient, format!("{name}: {why}"));
    // The user's own shell may be any.
    let line = format!("exec sh -c {}", quoted(script));
    let work = async {
        let mut channel = connection.exec(&line).await.map_err(|e| wrong(e.to_string()))?;
        let (mut said, mut complaint, mut status) = (Vec::new(), Vec::new(), None);
        while let Some(message) = channel.wait().await {
            match message {
                ChannelMsg::Data { data } if said.len() < WORDS => said.extend_from_slice(&data),
                ChannelMsg::ExtendedData { data, .. } if complaint.len() < WORDS => {
                    complaint.extend_from_slice(&data);
                }
                ChannelMsg::ExitStatus { exit_status } => status = Some(exit_status),
                _ => {}
            }
        }
        let said = String::from_utf8_lossy(&said);
        match said.lines().rev().find_map(|l| l.strip_prefix(MARK)) {
            Some(words) if status == Some(0) => Ok(words.trim().to_owned()),
            _ => Err(wrong(format!(
                "exit status {status:?}: {}",
                String::from_utf8_lossy(&complaint).trim()
            ))),
        }
    };
    timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(wrong(format!("no end within {} s", limit.as_secs()))))
}
