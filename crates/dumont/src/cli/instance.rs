//! `dumont instances`: everything that is rented now.

use super::workspace::gpu;
use crate::config::Globals;
use crate::output;
use anyhow::Result;
use dumont_core::id::RentLabel;
use dumont_wire::rest::Instance;

pub async fn run(globals: &Globals) -> Result<()> {
    let all: Vec<Instance> = globals.client()?.list("/instances").await?;
    if globals.json {
        return output::json(&all);
    }
    if all.is_empty() {
        output::note("Nothing is rented.");
        return Ok(());
    }
    let rows: Vec<_> = all
        .iter()
        .map(|i| {
            let owner = RentLabel::parse(&i.label).map_or_else(|| i.label.clone(), |l| l.workspace);
            let ssh = i
                .ssh_host
                .as_ref()
                .zip(i.ssh_port)
                .map(|(host, port)| format!("{host}:{port}"));
            vec![
                format!("{}:{}", i.provider, i.instance_id),
                i.machine.to_string(),
                owner,
                gpu(&i.gpu_name, i.gpu_count),
                format!("{:.3}", i.price),
                output::or_dash(i.region.as_ref()),
                output::or_dash(ssh),
                output::ago(i.created_at),
            ]
        })
        .collect();
    output::table(
        &[
            "INSTANCE",
            "MACHINE",
            "WORKSPACE",
            "GPU",
            "$/H",
            "REGION",
            "SSH",
            "RENTED",
        ],
        &[4],
        &rows,
    );
    let total: f64 = all.iter().map(|i| i.price).sum();
    output::note(&format!(
        "{}, ${total:.3} per hour",
        output::count(all.len() as u64, "instance")
    ));
    Ok(())
}
