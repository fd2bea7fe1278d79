//! `dumont spending`: what rented machines have cost, next to the caps.

use crate::config::Globals;
use crate::output;
use anyhow::Result;
use dumont_wire::rest::Spending;

pub async fn run(globals: &Globals) -> Result<()> {
    let spending: Spending = globals.client()?.get("/spending").await?;
    if globals.json {
        return output::json(&spending);
    }
    let dollars = |n: f64| format!("{n:.2}");
    let rows: Vec<_> = spending
        .workspaces
        .iter()
        .map(|w| {
            vec![
                w.workspace.clone(),
                dollars(w.today),
                dollars(w.this_month),
                format!("{:.3}", w.per_hour),
            ]
        })
        .collect();
    if !rows.is_empty() {
        output::table(&["WORKSPACE", "TODAY $", "MONTH $", "$/H NOW"], &[1, 2, 3], &rows);
    }
    output::facts(&[
        ("today", of(spending.today, spending.cap_per_day)),
        ("this month", of(spending.this_month, spending.cap_per_month)),
        ("now", format!("${:.3} per hour", spending.per_hour)),
    ]);
    if spending.orphans > 0 {
        output::note(&format!(
            "{} with this server's label belong to no workspace: `dumont instances --orphans` shows them",
            output::count(spending.orphans, "instance")
        ));
    }
    Ok(())
}

fn of(spent: f64, cap: f64) -> String {
    if cap > 0.0 {
        format!("${spent:.2} of ${cap:.2} (UTC)")
    } else {
        format!("${spent:.2}, no cap (UTC)")
    }
}
