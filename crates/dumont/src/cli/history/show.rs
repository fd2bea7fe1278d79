//! `dumont history show`: one machine's record, as somebody reads it before renting by hand.

use super::path_of;
use crate::badge;
use crate::client::{Client, query_of};
use crate::config::Globals;
use crate::fail::body_of;
use crate::output::{self, Styled, paint, safe};
use anyhow::Result;
use dumont_core::id::MachineRef;
use dumont_core::level::rate_colour;
use dumont_wire::history::{AttemptsQuery, DayRate, MachineAttempt, MachineHistory};
use dumont_wire::rest::Page;
use serde::Serialize;
use std::collections::BTreeMap;

/// What `--json` prints: the two answers it is made of.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    history: MachineHistory,
    attempts: Vec<MachineAttempt>,
}

pub async fn run(globals: &Globals, machine: &MachineRef, attempts: u32) -> Result<()> {
    let client = globals.client()?;
    let history: MachineHistory = client.get(&path_of("stats", machine)).await?;
    let attempts = newest(&client, machine, attempts).await?;
    if globals.json {
        return output::json(&Shown { history, attempts });
    }
    facts(machine, &history, &attempts);
    if !history.reasons.is_empty() {
        output::line("");
        reasons(&history);
    }
    if !attempts.is_empty() {
        output::line("");
        let rows: Vec<_> = attempts.iter().map(attempt_row).collect();
        output::styled_table(&HEADER, &RIGHT, &rows);
    }
    Ok(())
}

/// A machine's record; `None` for one that was never met.
pub async fn of(client: &Client, machine: &MachineRef) -> Result<Option<MachineHistory>> {
    match client.get(&path_of("stats", machine)).await {
        Ok(history) => Ok(Some(history)),
        Err(e) if body_of(&e).code == "machine_not_found" => Ok(None),
        Err(e) => Err(e),
    }
}

async fn newest(client: &Client, machine: &MachineRef, most: u32) -> Result<Vec<MachineAttempt>> {
    let query = AttemptsQuery {
        provider: Some(machine.provider.clone()),
        machine_id: Some(machine.machine_id.clone()),
        limit: Some(most),
        ..AttemptsQuery::default()
    };
    let page: Page<MachineAttempt> = client
        .get(&format!("/machines/history/attempts{}", query_of(&query)))
        .await?;
    Ok(page.items)
}

fn facts(machine: &MachineRef, history: &MachineHistory, attempts: &[MachineAttempt]) {
    let s = &history.stats;
    let mut pairs = vec![
        ("machine", output::bold(&machine.to_string())),
        ("status", paint(&badge::level(s.reliability_status))),
        (
            "rate",
            format!(
                "{}  {}",
                paint(&badge::rate(s.successful_attempts, s.failed_attempts)),
                dim_counts(history)
            ),
        ),
        (
            "score",
            format!("{:.2}  (what the ranking goes by)", s.reliability_score),
        ),
    ];
    if s.is_blacklisted {
        let reason = safe(s.blacklist_reason.as_deref().unwrap_or("no reason given"));
        pairs.push((
            "blocked",
            format!("{reason} ({})", super::blacklist::end(s.blacklist_expires_at)),
        ));
    }
    if !history.days.is_empty() {
        pairs.push(("trend", trend(&history.days)));
    }
    pairs.push(("boot", boots(history, attempts)));
    if !history.interrupts.is_empty() {
        pairs.push(("lost", losses(history)));
    }
    if let Some(last) = s.last_attempt_at {
        pairs.push(("last try", output::ago(last)));
    }
    output::facts(&pairs);
}

/// How often it went after it was ready, and by whom.
fn losses(history: &MachineHistory) -> String {
    let mut causes: BTreeMap<_, usize> = BTreeMap::new();
    for loss in &history.interrupts {
        *causes.entry(loss.cause).or_default() += 1;
    }
    let causes: Vec<_> = causes.iter().map(|(cause, n)| format!("{n} {cause}")).collect();
    format!("{} in the last 30 days", causes.join(", "))
}

fn dim_counts(history: &MachineHistory) -> String {
    let s = &history.stats;
    let uncounted = if s.uncounted_attempts > 0 {
        format!(", {} not counted", s.uncounted_attempts)
    } else {
        String::new()
    };
    output::dim(&format!(
        "({} ready, {} failed{uncounted})",
        s.successful_attempts, s.failed_attempts
    ))
}

/// One bar per day with counted attempts, oldest first, in the rate's colour.
fn trend(days: &[DayRate]) -> String {
    let bars: String = days.iter().map(|d| paint(&bar(d))).collect();
    let tried: i64 = days.iter().map(|d| d.successful + d.failed).sum();
    format!(
        "{bars}  {}",
        output::dim(&format!(
            "(success per day over {} with {} counted, oldest first)",
            output::count(days.len() as u64, "day"),
            output::count(u64::try_from(tried).unwrap_or(0), "attempt")
        ))
    )
}

fn bar(day: &DayRate) -> Styled {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let counted = (day.successful + day.failed).max(1);
    // Floored: only a day without a failure is full.
    let step = usize::try_from(day.successful.max(0) * 7 / counted).unwrap_or(0);
    Styled::new(BARS[step.min(7)], rate_colour(day.successful, counted))
}

/// `38 s on average of 17; of the last 15 tries 22 to 75 s`
fn boots(history: &MachineHistory, attempts: &[MachineAttempt]) -> String {
    let s = &history.stats;
    let Some(average) = s.avg_boot_time else {
        return "never seen to come up".into();
    };
    let seen: Vec<f64> = attempts.iter().filter_map(|a| a.ready_seconds).collect();
    let least = seen.iter().copied().fold(f64::INFINITY, f64::min);
    let most = seen.iter().copied().fold(0.0, f64::max);
    let range = if seen.len() > 1 {
        format!(", lately {least:.1} to {most:.1} s")
    } else {
        String::new()
    };
    format!("{average:.1} s on average of {}{range}", s.ready_attempts)
}

fn reasons(history: &MachineHistory) {
    let rows: Vec<_> = history
        .reasons
        .iter()
        .map(|r| vec![r.reason.clone(), r.count.to_string()])
        .collect();
    output::table(&["FAILED BECAUSE", "TIMES"], &[1], &rows);
}

const HEADER: [&str; 9] = [
    "WHEN", "TYPE", "OUTCOME", "STAGE", "REASON", "TOOK", "READY", "$/H", "MESSAGE",
];
const RIGHT: [usize; 3] = [5, 6, 7];

fn attempt_row(a: &MachineAttempt) -> Vec<Styled> {
    let outcome = match a.success {
        Some(true) => Styled::new(&a.outcome, rate_colour(1, 1)),
        Some(false) => Styled::new(&a.outcome, rate_colour(0, 1)),
        None => Styled::new(&a.outcome, rate_colour(0, 0)),
    };
    let seconds = |s: f64| format!("{s:.1} s");
    let message: String = a.error_message.as_deref().map(safe).unwrap_or_default();
    vec![
        Styled::plain(output::ago(a.created_at)),
        Styled::plain(&a.attempt_type),
        outcome,
        Styled::plain(&a.stage),
        Styled::plain(output::or_dash(a.reason.as_ref())),
        Styled::plain(seconds(a.duration_seconds)),
        Styled::plain(output::or_dash(a.ready_seconds.map(seconds))),
        Styled::plain(format!("{:.3}", a.price)),
        Styled::plain(message.chars().take(60).collect::<String>()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use dumont_core::level::Colour;
    use dumont_core::time::Timestamp;

    #[test]
    fn a_bar_is_full_only_on_a_day_without_failure() {
        let of = |successful, failed| {
            bar(&DayRate {
                day: Timestamp(0),
                successful,
                failed,
            })
        };
        assert_eq!(of(3, 0), Styled::new("█", Colour::Green));
        assert_eq!(of(99, 1), Styled::new("▇", Colour::Green));
        assert_eq!(of(8, 2), Styled::new("▆", Colour::Yellow));
        assert_eq!(of(1, 1), Styled::new("▄", Colour::Red));
        assert_eq!(of(0, 4), Styled::new("▁", Colour::Red));
    }
}
