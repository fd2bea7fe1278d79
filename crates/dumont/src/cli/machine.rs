//! `dumont machines`: the machines met so far.

use crate::badge;
use crate::config::Globals;
use crate::output::{self, Styled};
use anyhow::Result;
use dumont_core::level::Colour;
use dumont_wire::rest::Machine;

pub async fn run(globals: &Globals) -> Result<()> {
    let all: Vec<Machine> = globals.client()?.list("/machines").await?;
    if globals.json {
        return output::json(&all);
    }
    if all.is_empty() {
        output::note("No machine was tried yet.");
        return Ok(());
    }
    output::styled_table(&HEADER, &RIGHT, &all.iter().map(row).collect::<Vec<_>>());
    Ok(())
}

const HEADER: [&str; 8] = [
    "MACHINE", "STATUS", "HISTORY", "READY", "FAILED", "BOOT", "LAST TRY", "NOTE",
];
const RIGHT: [usize; 4] = [2, 3, 4, 5];

fn row(m: &Machine) -> Vec<Styled> {
    vec![
        Styled::plain(m.machine.to_string()),
        badge::level(badge::level_of(&m.reliability_status)),
        badge::rate(m.successful_attempts, m.failed_attempts),
        Styled::plain(m.successful_attempts.to_string()),
        Styled::plain(m.failed_attempts.to_string()),
        Styled::plain(output::or_dash(m.avg_boot_time.map(|s| format!("{s:.1} s")))),
        Styled::plain(output::or_dash(m.last_attempt_at.map(output::ago))),
        note(m),
    ]
}

fn note(m: &Machine) -> Styled {
    if m.is_blacklisted {
        let reason = m.blacklist_reason.as_deref().unwrap_or("no reason given");
        return Styled::new(format!("blocked: {reason}"), Colour::Red);
    }
    Styled::plain(match m.uncounted_attempts {
        0 => String::new(),
        n => format!("{n} not counted"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(successful: i64, failed: i64, status: &str, reason: Option<&str>) -> Machine {
        Machine {
            machine: "vast:12345".parse().unwrap(),
            total_attempts: successful + failed + 2,
            successful_attempts: successful,
            failed_attempts: failed,
            uncounted_attempts: 2,
            success_rate: None,
            avg_boot_time: Some(38.26),
            reliability_status: status.into(),
            is_blacklisted: reason.is_some(),
            blacklist_reason: reason.map(str::to_owned),
            last_attempt_at: None,
        }
    }

    #[test]
    fn rates_are_floored_coloured_and_beside_their_attempts_and_reasons_escaped() {
        let machines = [
            machine(899, 101, "good", None),
            machine(0, 3, "blacklisted", Some("gone\u{1b}[31m bad")),
        ];
        let lines = |colour| {
            let rows: Vec<_> = machines.iter().map(row).collect();
            output::styled_lines(&HEADER, &RIGHT, &rows, colour)
        };
        let plain = lines(false);
        for text in ["● good", "89 % of 1000", "2 not counted"] {
            assert!(plain[1].contains(text), "{text}: {}", plain[1]);
        }
        assert!(plain[2].contains("blocked: gone\\u{1b}[31m bad"), "{}", plain[2]);
        let coloured = lines(true);
        assert!(
            coloured[1].contains("\u{1b}[38;5;220m"),
            "yellow: {}",
            coloured[1]
        );
        assert!(coloured[2].contains("\u{1b}[38;5;196m"), "red: {}", coloured[2]);
    }
}
