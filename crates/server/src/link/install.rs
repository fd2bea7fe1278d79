//! Puts the agent on a machine and starts it, in one SSH command.
//!
//! The file's name carries its digest, so an agent that is there is the right one and a crash
//! in the middle leaves only a temporary. The script asks for the bytes only when it needs
//! them. `head -c` of some shells reads ahead, so nothing is sent after the binary until the
//! agent itself has spoken.

use super::{LinkError, Target};
use crate::ssh::{Connection, quoted};
use dumont_wire::frame::{Decoder, MARKER};
use russh::client::Msg;
use russh::{Channel, ChannelMsg};

/// The static agent, gzip-compressed, as the binary carries it.
#[derive(Debug, Clone, Copy)]
pub struct AgentBinary {
    pub gz: &'static [u8],
    /// BLAKE3 of the uncompressed file, hex.
    pub digest: &'static str,
}

/// A running agent that has printed its marker.
pub struct Started {
    pub channel: Channel<Msg>,
    pub decoder: Decoder,
}

/// How the script's last line runs the agent that lies in `$f`.
pub const AGENT_SESSION: &str = r#""$f" session"#;

/// What the script prints when it wants the binary.
const SEND: &[u8] = b"\0DUMONT-SEND\n";

/// Runs the script on `control` and feeds it the binary if it asks.
pub async fn start(control: &Connection, target: &Target) -> Result<Started, LinkError> {
    let agent = &target.agent;
    let mut channel = control.exec(&at_home(target, &script(agent))).await?;
    let mut seen: Vec<u8> = Vec::new();
    let mut stderr = Vec::new();
    let mut sent = false;
    loop {
        if find(&seen, MARKER).is_some() {
            let mut decoder = Decoder::after_marker();
            decoder.push(&seen);
            return Ok(Started { channel, decoder });
        }
        if !sent && find(&seen, SEND).is_some() {
            sent = true;
            channel
                .data_bytes(agent.gz)
                .await
                .map_err(|e| LinkError::NoAgent(e.to_string()))?;
        }
        match channel.wait().await {
            Some(ChannelMsg::Data { data }) => seen.extend_from_slice(&data),
            Some(ChannelMsg::ExtendedData { data, .. }) => stderr.extend_from_slice(&data),
            Some(ChannelMsg::ExitStatus { exit_status }) => {
                return Err(LinkError::NoAgent(format!(
                    "exit status {exit_status}{}",
                    tail(&stderr, &seen)
                )));
            }
            Some(ChannelMsg::Failure) => {
                return Err(LinkError::NoAgent("the machine refuses commands".into()));
            }
            Some(ChannelMsg::Close) | None => {
                return Err(LinkError::NoAgent(format!(
                    "the session ended{}",
                    tail(&stderr, &seen)
                )));
            }
            Some(_) => {}
        }
        if seen.len() > 1 << 20 || stderr.len() > 1 << 20 {
            return Err(LinkError::NoAgent("the machine prints without end".into()));
        }
    }
}

/// Where it lies on the machine, below the home directory.
pub fn place(agent: &AgentBinary) -> String {
    format!(".dumont/agent-{}", &agent.digest[..16.min(agent.digest.len())])
}

/// The same line for a machine that others live on, too: in a shell that we know, with the lease's
/// directory for home, which must still be there. Where the workspace's own path is free, it leads
/// into the lease, so that commands which name it work as they do in a container.
pub fn at_home(target: &Target, line: &str) -> String {
    let Some(home) = &target.access.home else {
        return line.to_owned();
    };
    let (inside, outside) = (quoted(&target.access.path(&target.path)), quoted(&target.path));
    let home = quoted(home);
    let script = format!(
        r#"cd {home} || exit 1; export HOME={home}
mkdir -p {inside}
if [ ! -e {outside} ] && [ ! -L {outside} ] && ln -s {inside} {outside} 2>/dev/null; then
  printf '%s' {outside} > link
fi
{line}"#
    );
    format!("exec sh -c {}", quoted(&script))
}

fn script(agent: &AgentBinary) -> String {
    let place = place(agent);
    let length = agent.gz.len();
    format!(
        r#"set -e; umask 077; : > "$HOME/.no_auto_tmux" 2>/dev/null || :
mkdir -p "$HOME/.dumont"; f="$HOME/{place}"
if [ ! -x "$f" ]; then
  printf '\000DUMONT-SEND\n'
  head -c {length} | gzip -dc > "$f.$$"; chmod 700 "$f.$$"; mv "$f.$$" "$f"
fi
exec {AGENT_SESSION}"#
    )
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

fn tail(stderr: &[u8], stdout: &[u8]) -> String {
    let said = if stderr.is_empty() { stdout } else { stderr };
    let text: String = String::from_utf8_lossy(&said[said.len().saturating_sub(300)..])
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if text.trim().is_empty() {
        String::new()
    } else {
        format!(": {}", text.trim())
    }
}
