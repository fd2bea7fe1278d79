//! The first step of a failover: what is lost, and which sources say so.
//!
//! The monitor has judged already when it starts the workflow; its evidence is in the state.
//! A failover that a person asks for leaves a machine that may still run: what it has and no
//! snapshot yet is taken along if it answers, and it is destroyed only when the workspace
//! lives elsewhere.

use super::state::Placement;
use super::{Flow, Run, StepError, StepResult, abandoned, capture, regain};
use std::time::Duration;
use tokio::time::timeout;

/// How long a move that was asked for waits for the machine's last snapshot.
const LAST_WORDS: Duration = Duration::from_secs(1_800);

pub async fn run(run: &mut Run) -> StepResult {
    let mut state: Placement = run.load();
    if let Some(loss) = &mut state.loss {
        abandoned::note(run, loss).await?;
        if state.snapshot_id.is_none() {
            regain::note(run, loss).await?;
        }
        run.keep(&state);
    }
    if let Some(loss) = &state.loss {
        let late = loss.detected_at.millis_since(loss.lost_at);
        let what = loss
            .machine
            .as_ref()
            .map_or_else(|| "no machine".into(), ToString::to_string);
        run.say(format!(
            "failover from {what}: {} ({late} ms from loss to decision)",
            loss.trigger
        ))
        .await;
        if loss.dead
            && let Some(key) = &loss.instance_key
            && let Some(link) = run.app.sessions.remove(key)
        {
            link.close().await;
        }
        if !loss.dead && loss.instance_key.is_some() && !state.chosen && state.snapshot_id.is_none() {
            let last_words = timeout(LAST_WORDS, capture::last_words(run)).await;
            match last_words.unwrap_or_else(|_| Err(StepError::failed("too_slow", "it takes too long", ""))) {
                Ok(snapshot) => {
                    state.snapshot_id = Some(snapshot.id);
                    state.parting = true;
                }
                Err(StepError::Store(error)) => return Err(StepError::Store(error)),
                Err(StepError::Failed(body)) => {
                    run.say(format!("no last snapshot before the move: {}", body.message))
                        .await;
                }
            }
            run.keep(&state);
        }
    }
    Ok(Flow::Next)
}
