//! The lanes of a race: how each begins and ends, and what is written down of it.
//!
//! An end is recorded before anything is done about the machine, so that a crash between the two
//! repeats the act and the attempt's key keeps the record single.

use super::Race;
use crate::history;
use crate::link::Link;
use crate::providers::{ErrorClass, budget};
use crate::workflows::racer::{End, Racer};
use crate::workflows::ready::{NotReady, StageCell, clock_line};
use crate::workflows::{StepError, dispose};
use dumont_core::history::{Outcome, Reason, Stage};
use dumont_store::{Conditions, InstanceRow, InstanceState, NewAttempt};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

/// One machine in the race, as its driver sees it.
pub(super) struct Lane {
    pub(super) row: InstanceRow,
    pub(super) started: Instant,
    stage: StageCell,
    abandon: CancellationToken,
    /// A race that is dropped has given up all its racers.
    _watched: DropGuard,
    /// Picked up after a crash.
    resumed: bool,
    pub(super) state: LaneState,
}

impl Lane {
    pub(super) fn over(row: InstanceRow) -> Self {
        let refused = (row.state == InstanceState::Failed && row.instance_id.is_none()).then(|| NotReady {
            stage: Stage::Rent,
            reason: Reason::NoSuchAsk,
            message: "the provider refused it".to_owned(),
        });
        let abandon = CancellationToken::new();
        Self {
            row,
            started: Instant::now(),
            stage: StageCell::default(),
            _watched: abandon.clone().drop_guard(),
            abandon,
            resumed: true,
            state: LaneState::Out(refused),
        }
    }
}

pub(super) enum LaneState {
    Racing,
    Ready(Arc<Link>),
    Out(Option<NotReady>),
}

impl Race<'_> {
    pub(super) fn launch(&mut self, row: InstanceRow, resumed: bool) {
        // A resumed racer has been waiting since it was intended.
        let waited = self
            .run
            .app
            .now()
            .millis_since(row.created_at)
            .max(0)
            .unsigned_abs();
        let second_look = self.run.app.config.timing.second_look;
        let waited = Duration::from_millis(waited).min(self.plan.patience().saturating_sub(second_look));
        let abandon = CancellationToken::new();
        let lane = Lane {
            started: Instant::now().checked_sub(waited).unwrap_or_else(Instant::now),
            stage: StageCell::default(),
            _watched: abandon.clone().drop_guard(),
            abandon,
            resumed,
            state: LaneState::Racing,
            row: row.clone(),
        };
        let racer = Racer {
            app: self.run.app.clone(),
            row,
            spec: self.run.workspace.spec.clone(),
            disk_bytes: self.disk_bytes,
            stage: lane.stage.clone(),
            abandon: lane.abandon.clone(),
            resumed,
        };
        let (key, ends) = (lane.row.key.clone(), self.ended.clone());
        let app = self.run.app.clone();
        self.lanes.push(lane);
        let class = budget::class();
        tokio::spawn(async move {
            let end = budget::as_class(class, racer.run()).await;
            // Nobody listens when the race is over: the rent is known by now, so reap it.
            if ends.send((key, end)).await.is_err() {
                app.reap.notify_one();
            }
        });
    }

    pub(super) async fn ended(&mut self, key: &str, end: End) -> Result<(), StepError> {
        let Some(at) = self.lanes.iter().position(|l| l.row.key == key) else {
            return Ok(());
        };
        if !matches!(self.lanes[at].state, LaneState::Racing) {
            // Given up while its word was on the way.
            return Ok(());
        }
        match end {
            End::Ready(link) => {
                let seconds = self.lanes[at].started.elapsed().as_secs_f64();
                self.run
                    .say(format!(
                        "{} is ready after {seconds:.1} s",
                        self.lanes[at].row.offer.machine
                    ))
                    .await;
                if let Some(line) = clock_line(link.facts()) {
                    self.run
                        .say(format!("{}: {line}", self.lanes[at].row.offer.machine))
                        .await;
                }
                self.lanes[at].state = LaneState::Ready(link);
            }
            End::Abandoned => self.lanes[at].state = LaneState::Out(None),
            End::Out(why) => self.fall_out(at, why).await?,
            End::AccountFailed(error) => {
                let why = NotReady {
                    stage: Stage::Rent,
                    reason: if error.class == ErrorClass::Credit {
                        Reason::NoMoney
                    } else {
                        Reason::ProviderError
                    },
                    message: error.to_string(),
                };
                let provider = self.lanes[at].row.machine.provider.clone();
                self.account.insert(provider, error);
                self.fall_out(at, why).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn give_up(&mut self, at: usize) -> Result<(), StepError> {
        let lane = &self.lanes[at];
        lane.abandon.cancel();
        let stage = lane.stage.get();
        let reason = match stage {
            Stage::Rent => Reason::ProviderError,
            Stage::Boot => Reason::BootTimeout,
            Stage::Ssh => Reason::SshFailed,
            Stage::Hello => Reason::HelloFailed,
            Stage::Gpu | Stage::Ready => Reason::GpuNotReady,
        };
        let message = format!("not ready within {} s", lane.started.elapsed().as_secs());
        self.fall_out(
            at,
            NotReady {
                stage,
                reason,
                message,
            },
        )
        .await
    }

    /// Others are the better bet: nothing is said about the machine.
    pub(super) async fn drop_out(&mut self, at: usize) -> Result<(), StepError> {
        let lane = &self.lanes[at];
        lane.abandon.cancel();
        let waited = lane.started.elapsed().as_secs();
        self.run
            .say(format!(
                "{} is let go after {waited} s: the others are the better bet",
                lane.row.offer.machine
            ))
            .await;
        self.record(lane, Outcome::GaveUp, None).await?;
        self.discard(lane).await?;
        self.lanes[at].state = LaneState::Out(None);
        Ok(())
    }

    async fn fall_out(&mut self, at: usize, why: NotReady) -> Result<(), StepError> {
        let lane = &self.lanes[at];
        self.run
            .say(format!(
                "{} is out at {}: {} ({})",
                lane.row.offer.machine, why.stage, why.message, why.reason
            ))
            .await;
        self.record(lane, why.reason.outcome(), Some(&why)).await?;
        self.discard(lane).await?;
        self.lanes[at].state = LaneState::Out(Some(why));
        Ok(())
    }

    /// Marks a lane for destruction. An intent whose rent is uncertain stays one: the reaper
    /// looks for its label until that can no longer appear.
    async fn discard(&self, lane: &Lane) -> Result<(), StepError> {
        Ok(dispose::owe(&self.run.app, &lane.row.key).await?)
    }

    pub(super) async fn finish(mut self, winner: usize) -> Result<(String, Arc<Link>), StepError> {
        for at in 0..self.lanes.len() {
            if at == winner {
                continue;
            }
            let lane = &self.lanes[at];
            if matches!(lane.state, LaneState::Racing | LaneState::Ready(_)) {
                lane.abandon.cancel();
                self.record(lane, Outcome::LostRace, None).await?;
                self.discard(lane).await?;
            }
        }
        let lane = self.lanes.swap_remove(winner);
        self.record(&lane, Outcome::Won, None).await?;
        let LaneState::Ready(link) = lane.state else {
            return Err(StepError::failed(
                "internal",
                "the winner of the race is not ready",
                "report this",
            ));
        };
        self.run.app.sessions.put(&lane.row.key, link.clone());
        Ok((lane.row.key, link))
    }

    /// Recorded before anything is done about the machine: a crash between the two repeats the
    /// act, and the attempt's key keeps the record single.
    async fn record(&self, lane: &Lane, outcome: Outcome, why: Option<&NotReady>) -> Result<(), StepError> {
        let app = &self.run.app;
        let mut attempt = self.attempt(lane, outcome, why);
        // The lane holds the intent; the contract was written to its row since.
        attempt.instance_id = app
            .store
            .instance(&lane.row.key)
            .await?
            .and_then(|r| r.instance_id);
        let expected = self.expected_of(&lane.row.offer);
        attempt.conditions = history::Ended {
            offer: &lane.row.offer,
            image: &self.run.workspace.spec.image,
            cuda: self.run.workspace.spec.gpu.cuda,
            outcome,
            reason: attempt.reason.as_ref(),
            was_ready: matches!(lane.state, LaneState::Ready(_)),
            seconds: attempt.duration_seconds,
            at: attempt.created_at,
        }
        .conditions(app, expected, self.curves.curve(expected.stratum))
        .await;
        let recorded = app.store.record_attempt(&attempt, &app.config.blacklist).await?;
        if recorded.first {
            crate::metrics::attempt(&attempt);
        }
        if let Some(entry) = recorded.blocked {
            self.run.say(history::blocked(&entry, app.now())).await;
        }
        Ok(())
    }

    fn attempt(&self, lane: &Lane, outcome: Outcome, why: Option<&NotReady>) -> NewAttempt {
        let offer = &lane.row.offer;
        let seconds = lane.started.elapsed().as_secs_f64();
        let ready = matches!(lane.state, LaneState::Ready(_));
        NewAttempt {
            attempt_key: lane.row.key.clone(),
            machine: offer.machine.clone(),
            attempt_type: self.run.kind.as_str().to_owned(),
            workflow_id: Some(self.run.id.clone()),
            workspace_id: Some(self.run.workspace.id.clone()),
            host_id: offer.host_id.clone(),
            offer_id: Some(offer.offer_id.clone()),
            instance_id: lane.row.instance_id.clone(),
            gpu_name: offer.gpu_name.clone(),
            price: offer.price,
            region: offer.region.clone(),
            image: Some(self.run.workspace.spec.image.clone()),
            stage: why.map_or_else(|| lane.stage.get(), |w| w.stage),
            outcome,
            reason: why.map(|w| w.reason.clone()),
            error_message: why.map(|w| w.message.chars().take(1000).collect()),
            duration_seconds: seconds,
            // After a crash the wait is partly our own absence, which is no boot time.
            ready_seconds: (ready && !lane.resumed).then_some(seconds),
            created_at: self.run.app.now(),
            conditions: Conditions::default(),
        }
    }
}
