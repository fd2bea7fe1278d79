//! `dumont machines`: the machines met so far.

use crate::config::Globals;
use crate::output;
use anyhow::Result;
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
    let rows: Vec<_> = all
        .iter()
        .map(|m| {
            let rate = m.success_rate.map(|r| format!("{:.0} %", r * 100.0));
            vec![
                m.machine.to_string(),
                m.reliability_status.clone(),
                output::or_dash(rate),
                m.total_attempts.to_string(),
                m.successful_attempts.to_string(),
                m.failed_attempts.to_string(),
                m.uncounted_attempts.to_string(),
                output::or_dash(m.avg_boot_time.map(|s| format!("{s:.1} s"))),
                output::or_dash(m.last_attempt_at.map(output::ago)),
                if m.is_blacklisted {
                    m.blacklist_reason.clone().unwrap_or_else(|| "yes".into())
                } else {
                    "-".into()
                },
            ]
        })
        .collect();
    let header = [
        "MACHINE",
        "STATUS",
        "SUCCESS",
        "TRIES",
        "WON",
        "FAILED",
        "UNCOUNTED",
        "BOOT",
        "LAST",
        "BLACKLISTED",
    ];
    output::table(&header, &[2, 3, 4, 5, 6, 7], &rows);
    Ok(())
}
