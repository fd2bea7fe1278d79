//! One deploy: the race plan of `core`, driven over what the world has in store.

use crate::learner::{Ended, Learner};
use crate::policy::{Order, Policy, Width};
use crate::world::{Deploy, Fate, TrueCurves, World};
use dumont_core::blacklist::select;
use dumont_core::boot::{Curve, Stratum};
use dumont_core::history::{Outcome, Reason};
use dumont_core::plan::adaptive::{self, AdaptiveSettings, Bet, Odds};
use dumont_core::plan::{self, Move, RaceSettings, Racer};
use std::time::Duration;

/// What came of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Result {
    /// Seconds to ready, or until nothing was left to try.
    pub seconds: f64,
    pub ready: bool,
    /// Racers that failed or timed out.
    pub failed: u32,
    /// Racers let go because others were the better bet.
    pub dropped: u32,
    /// GPU seconds of all but the winner.
    pub wasted: f64,
}

/// A machine that may be rented, best first.
struct Candidate<'a> {
    machine: usize,
    stratum: Stratum,
    score: f64,
    curve: &'a Curve,
    idle: Option<f64>,
}

impl<'a> Candidate<'a> {
    fn odds(&self) -> Odds<'a> {
        Odds {
            score: self.score,
            curve: self.curve,
        }
    }
}

struct Lane {
    candidate: usize,
    rented: f64,
    fate: Fate,
    state: Racer,
    ended: Option<f64>,
    outcome: Outcome,
    reason: Option<Reason>,
}

impl Lane {
    fn out(&mut self, now: f64, outcome: Outcome, reason: Option<Reason>) {
        self.state = Racer::Out;
        self.ended = Some(now);
        (self.outcome, self.reason) = (outcome, reason);
    }

    /// When it will tell by itself.
    fn tells(&self) -> f64 {
        match self.fate {
            Fate::Gone => self.rented,
            Fate::Ready(after) | Fate::Fails(after, _) => self.rented + after,
            Fate::Hangs => f64::INFINITY,
        }
    }
}

/// Runs one deploy and lets the policy learn from it.
pub fn deploy(
    world: &World,
    policy: &Policy,
    learner: &mut Learner,
    truth: &mut TrueCurves,
    deploy: &Deploy,
) -> Result {
    let candidates = candidates(world, policy, learner, truth, deploy);
    let mut race = Race {
        world,
        policy,
        deploy,
        candidates: &candidates,
        timeout: Duration::from_secs_f64(
            learner.timeout(&candidates.iter().take(15).map(|c| c.stratum).collect::<Vec<_>>()),
        ),
        adaptive: AdaptiveSettings {
            racer_cost: world.parameters.gpu_second,
            ..AdaptiveSettings::default()
        },
        lanes: Vec::new(),
        now: 0.0,
        last_rent: None,
    };
    let winner = race.run();
    let (result, ended) = race.finish(winner);
    if let Some(w) = winner {
        let machine = ended[w].machine;
        learner.take(machine, deploy.at + result.seconds + deploy.kept);
    }
    learner.learn(world, deploy, ended);
    result
}

/// Everything on offer that may be used, best first.
fn candidates<'a>(
    world: &World,
    policy: &Policy,
    learner: &'a Learner,
    truth: &'a mut TrueCurves,
    deploy: &Deploy,
) -> Vec<Candidate<'a>> {
    let t = deploy.at;
    let present: Vec<usize> = (0..world.machines.len())
        .filter(|m| world.machines[*m].present(t) && !learner.in_use(*m, t))
        .collect();
    if policy.order == Order::Truth {
        for m in &present {
            truth.learn(world, deploy.image, *m, learner.idle(*m, deploy.image, t));
        }
    }
    let truth: &TrueCurves = truth;
    let one = |machine: usize| {
        let stratum = learner.stratum(world, machine, deploy.image, t);
        let idle = learner.idle(machine, deploy.image, t);
        let learned = learner.curve(stratum);
        let (score, curve) = match policy.order {
            Order::Truth => (
                world.machines[machine].success(t),
                truth.curve(world, deploy.image, machine, idle).unwrap_or(learned),
            ),
            _ => (learner.posterior(world, machine, t).score(), learned),
        };
        Candidate {
            machine,
            stratum,
            score,
            curve,
            idle,
        }
    };
    let mut all: Vec<(f64, f64, Candidate)> = present
        .into_iter()
        .map(|m| {
            let c = one(m);
            let machine = &world.machines[m];
            let (first, second) = match policy.order {
                Order::Price => (-machine.price, 0.0),
                Order::Provider => (machine.reliability, -machine.price),
                Order::Record => (learner.record(m), machine.reliability),
                Order::Score | Order::Truth => (c.odds().promise(), machine.reliability),
            };
            (first, second, c)
        })
        .collect();
    all.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.total_cmp(&a.1)));
    let mut all: Vec<Option<Candidate>> = all.into_iter().map(|(_, _, c)| Some(c)).collect();
    if policy.rules.is_none() {
        return all.into_iter().flatten().collect();
    }
    let bars: Vec<_> = all
        .iter()
        .flatten()
        .map(|c| learner.bar(world, c.machine, t))
        .collect();
    let keep = learner.keep(match policy.width {
        Width::Fixed(k) => k,
        Width::Adaptive => AdaptiveSettings::default().max_active,
    });
    let picked = select(&bars, keep, crate::learner::timestamp(t)).usable;
    picked.into_iter().filter_map(|i| all[i].take()).collect()
}

struct Race<'a> {
    world: &'a World,
    policy: &'a Policy,
    deploy: &'a Deploy,
    candidates: &'a [Candidate<'a>],
    timeout: Duration,
    adaptive: AdaptiveSettings,
    lanes: Vec<Lane>,
    /// Seconds since the request.
    now: f64,
    last_rent: Option<f64>,
}

impl Race<'_> {
    fn run(&mut self) -> Option<usize> {
        loop {
            match self.judge() {
                Move::Win(at) => return Some(at),
                Move::Rent => self.rent(),
                Move::GiveUp(at) => {
                    self.lanes[at].out(self.now, Outcome::Failed, Some(Reason::BootTimeout));
                }
                Move::Drop(at) => self.lanes[at].out(self.now, Outcome::GaveUp, None),
                Move::Wait(most) => self.wait(most),
                Move::Exhausted => return None,
            }
        }
    }

    fn judge(&self) -> Move {
        let racer = |l: &Lane| match l.state {
            Racer::Racing { .. } => Racer::Racing {
                elapsed: Duration::from_secs_f64((self.now - l.rented).max(0.0)),
            },
            other => other,
        };
        let untried = self.candidates.get(self.lanes.len());
        let since_rent = self.last_rent.map(|at| self.now - at);
        match self.policy.width {
            Width::Fixed(width) => {
                let settings = RaceSettings {
                    width,
                    racer_timeout: self.timeout,
                    ..RaceSettings::default()
                };
                let racers: Vec<Racer> = self.lanes.iter().map(racer).collect();
                let left = self.candidates.len() - self.lanes.len();
                let next = plan::next(&settings, &racers, left);
                // The stagger that the adaptive plan keeps by itself.
                match since_rent.filter(|s| next == Move::Rent && *s < 1.0) {
                    Some(s) => Move::Wait(Duration::from_secs_f64(1.0 - s)),
                    None => next,
                }
            }
            Width::Adaptive => {
                let bets: Vec<Bet> = self
                    .lanes
                    .iter()
                    .map(|l| Bet {
                        racer: racer(l),
                        odds: self.candidates[l.candidate].odds(),
                    })
                    .collect();
                let since = since_rent.map(Duration::from_secs_f64);
                adaptive::next(&self.adaptive, &bets, untried.map(Candidate::odds), since)
            }
        }
    }

    fn rent(&mut self) {
        let candidate = self.lanes.len();
        let c = &self.candidates[candidate];
        let fate = self.world.fate(self.deploy, c.machine, c.idle);
        self.lanes.push(Lane {
            candidate,
            rented: self.now,
            fate,
            state: Racer::Racing {
                elapsed: Duration::ZERO,
            },
            ended: None,
            outcome: Outcome::LostRace,
            reason: None,
        });
        self.last_rent = Some(self.now);
        self.tell();
    }

    fn wait(&mut self, most: Duration) {
        let racing = self
            .lanes
            .iter()
            .filter(|l| matches!(l.state, Racer::Racing { .. }));
        let next = racing.map(Lane::tells).fold(f64::INFINITY, f64::min);
        // At least a microsecond, so that rounding never stops the clock.
        self.now = next.min(self.now + most.as_secs_f64().max(1e-6));
        self.tell();
    }

    /// Lets the lanes speak whose time has come.
    fn tell(&mut self) {
        let now = self.now;
        for lane in &mut self.lanes {
            if !matches!(lane.state, Racer::Racing { .. }) || lane.tells() > now {
                continue;
            }
            match lane.fate.clone() {
                Fate::Gone => {
                    lane.out(now, Outcome::NotHost, Some(Reason::NoSuchAsk));
                    lane.state = Racer::Refused;
                }
                Fate::Fails(_, reason) => lane.out(now, Outcome::Failed, Some(reason)),
                Fate::Ready(_) => lane.state = Racer::Ready,
                Fate::Hangs => {}
            }
        }
    }

    fn finish(self, winner: Option<usize>) -> (Result, Vec<Ended>) {
        let mut result = Result {
            seconds: self.now,
            ready: winner.is_some(),
            ..Result::default()
        };
        let mut ended = Vec::with_capacity(self.lanes.len());
        for (at, lane) in self.lanes.into_iter().enumerate() {
            let candidate = &self.candidates[lane.candidate];
            let won = winner == Some(at);
            let end = lane.ended.unwrap_or(self.now);
            let outcome = if won { Outcome::Won } else { lane.outcome };
            if !won {
                result.wasted += end - lane.rented;
            }
            result.failed += u32::from(outcome == Outcome::Failed);
            result.dropped += u32::from(outcome == Outcome::GaveUp);
            ended.push(Ended {
                machine: candidate.machine,
                stratum: candidate.stratum,
                seconds: end - lane.rented,
                outcome,
                reason: lane.reason,
                at: self.deploy.at + end,
            });
        }
        (result, ended)
    }
}
