//! The first step of a failover: what is lost, and which sources say so.
//!
//! The monitor has judged already when it starts the workflow; its evidence is in the state.
//! A failover that a person asks for is taken as it is: the machine may still run, and is
//! fenced out and destroyed only when the workspace lives elsewhere.

use super::state::Placement;
use super::{Flow, Run, StepResult};

pub async fn run(run: &mut Run) -> StepResult {
    let state: Placement = run.load();
    if let Some(loss) = &state.loss {
        let late = loss.detected_at.millis_since(loss.lost_at);
        let what = loss.machine_id.clone().unwrap_or_else(|| "no machine".into());
        run.say(format!(
            "failover from vast:{what}: {} ({late} ms from loss to decision)",
            loss.trigger
        ))
        .await;
        if loss.dead
            && let Some(key) = &loss.instance_key
            && let Some(link) = run.app.sessions.remove(key)
        {
            link.close().await;
        }
    }
    Ok(Flow::Next)
}
