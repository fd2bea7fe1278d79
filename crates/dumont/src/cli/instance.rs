//! `dumont instances`: everything that is rented now.

use super::workspace::gpu;
use crate::config::Globals;
use crate::fail::usage;
use crate::output;
use anyhow::Result;
use clap::Args;
use dumont_core::id::RentLabel;
use dumont_wire::rest::{Instance, Orphan};

#[derive(Debug, Args)]
pub struct InstancesArgs {
    /// Those that carry this server's label and belong to no workspace; asks the providers
    #[arg(long)]
    orphans: bool,
    /// Destroy these, however many they are
    #[arg(long, requires = "orphans")]
    destroy: bool,
    /// Do not ask
    #[arg(long, requires = "destroy")]
    yes: bool,
}

pub async fn run(globals: &Globals, args: &InstancesArgs) -> Result<()> {
    if args.orphans {
        return orphans(globals, args).await;
    }
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
    let still = all.iter().filter(|i| i.price < i.running_price).count();
    let still = match still {
        0 => String::new(),
        n => format!(", {n} of them for the disk alone: stopped or outbid"),
    };
    output::note(&format!(
        "{}, ${total:.3} per hour{still}",
        output::count(all.len() as u64, "instance")
    ));
    Ok(())
}

async fn orphans(globals: &Globals, args: &InstancesArgs) -> Result<()> {
    let client = globals.client()?;
    let found: Vec<Orphan> = client.list("/instances/orphans").await?;
    if !args.destroy {
        return show(globals, &found, "Every instance belongs to a workspace.");
    }
    if !found.is_empty() && !args.yes {
        show(globals, &found, "")?;
        let question = format!("Destroy {}?", output::count(found.len() as u64, "instance"));
        if !super::confirm(&question)? {
            return Err(usage(
                "nothing was destroyed",
                "give --yes to destroy without being asked",
            ));
        }
    }
    let mut gone: Vec<Orphan> = Vec::new();
    loop {
        let some: Vec<Orphan> = client.delete("/instances/orphans").await?;
        if some.is_empty() {
            break;
        }
        gone.extend(some);
        output::note(&format!("{} of {} destroyed", gone.len(), found.len()));
    }
    show(globals, &gone, "There was nothing to destroy.")?;
    if gone.len() < found.len() {
        output::note("Not all are gone yet: the server goes on, or run this again.");
    }
    Ok(())
}

fn show(globals: &Globals, orphans: &[Orphan], none: &str) -> Result<()> {
    if globals.json {
        return output::json(&orphans);
    }
    if orphans.is_empty() {
        output::note(none);
        return Ok(());
    }
    let row = |o: &Orphan| {
        vec![
            format!("{}:{}", o.provider, o.instance_id),
            format!("{}:{}", o.provider, o.machine_id),
            o.label.clone(),
            format!("{:.3}", o.price),
        ]
    };
    let rows: Vec<_> = orphans.iter().map(row).collect();
    output::table(&["INSTANCE", "MACHINE", "LABEL", "$/H"], &[3], &rows);
    Ok(())
}
