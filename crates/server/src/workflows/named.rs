//! Search for a machine that somebody asked for by name: its cheapest offer, and no ranking.

use super::search::{ask, candidates, choose};
use super::state::Placement;
use super::{Flow, Run, StepError, StepResult};
use dumont_core::id::MachineRef;

pub async fn run(run: &mut Run, mut state: Placement, machine: &MachineRef) -> StepResult {
    let mut offers = ask(run, Some(machine)).await?;
    offers.retain(|o| o.machine == *machine);
    let found = candidates(run, offers).await?;
    let Some(offer) = found.first().map(|c| &c.offer) else {
        return Err(StepError::failed(
            "machine_not_offered",
            format!("{machine} has no offer that fits this workspace"),
            "it may be rented or offline, dearer than the price allows, or of another GPU: `dumont offers --machine` shows it",
        ));
    };
    // It was free when it was asked for; somebody may have blocked it since.
    let cuda = run.workspace.spec.gpu.cuda;
    if !state.allow_blacklisted
        && let Some(block) = run.app.store.block_for(machine, cuda, run.app.now()).await?
    {
        return Err(StepError::failed(
            "machine_blacklisted",
            block.in_words(),
            "take another, or pass --allow-blacklisted if you know better",
        ));
    }
    run.say(format!("{machine} was asked for by name, ${:.3}/h", offer.price))
        .await;
    choose(&mut state, found.iter());
    run.keep(&state);
    Ok(Flow::Next)
}
