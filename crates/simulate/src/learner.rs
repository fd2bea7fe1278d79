//! What a controller would know: the same records that the database keeps, in memory.
//!
//! Every policy gets all of it, so that the comparison is about decisions and not about
//! bookkeeping. Attempts are taken in as the store does: statistics, rules, score, boot curve.

use crate::policy::{Order, Patience, Policy};
use crate::world::{Deploy, World};
use dumont_core::blacklist::{Bar, Change, Circumstances, Entry, Settings, Window, change, is_active, judge};
use dumont_core::boot::{BootCurves, Curve, Observation, Stratum, Wait};
use dumont_core::guard::{Guard, Vote, WINDOW};
use dumont_core::history::{Attempt, Outcome, Reason, Stats};
use dumont_core::reliability::{Bucket, Counts, Evidence, Exit, Posterior, Sums, contribution};
use dumont_core::time::Timestamp;
use std::collections::{HashMap, VecDeque};

/// The curve is fitted anew after so many deploys.
const REFIT_EVERY: u64 = 60;
/// A boot within this time makes the next one of the same image a warm one.
const WARM_SECONDS: f64 = 7.0 * 86_400.0;
/// Boots that won before the document's learned timeout replaces 300 s, and how many it
/// looks back on.
const WINNERS_NEEDED: usize = 25;
const WINNERS_KEPT: usize = 500;

pub fn timestamp(seconds: f64) -> Timestamp {
    Timestamp((seconds * 1e6) as i64)
}

/// One attempt as it ended.
#[derive(Debug, Clone)]
pub struct Ended {
    pub machine: usize,
    pub stratum: Stratum,
    /// From the rent to its end.
    pub seconds: f64,
    pub outcome: Outcome,
    pub reason: Option<Reason>,
    pub at: f64,
}

#[derive(Default, Clone)]
struct Known {
    stats: Stats,
    window: Window,
    entry: Option<Entry>,
    sums: Sums,
    /// When it was last ready, by image.
    ready: HashMap<usize, f64>,
    /// Until when we use it ourselves.
    used_until: f64,
}

struct Voted {
    operator: usize,
    image: usize,
    at: Timestamp,
    ready: bool,
    score: f64,
}

pub struct Learner {
    settings: Option<Settings>,
    order: Order,
    patience: Patience,
    machines: Vec<Known>,
    operators: Vec<Sums>,
    buckets: [Sums; 4],
    boots: VecDeque<Observation>,
    curves: BootCurves,
    winners: VecDeque<f64>,
    votes: VecDeque<Voted>,
    deploys: u64,
    /// Blocks set, and how many of them on machines that are in truth good.
    pub blocks: u64,
    pub blocks_on_good: u64,
}

impl Learner {
    pub fn new(policy: &Policy, world: &World) -> Self {
        Self {
            settings: policy.rules.map(|rules| Settings {
                rules,
                ..Settings::default()
            }),
            order: policy.order,
            patience: policy.patience,
            machines: vec![Known::default(); world.machines.len()],
            operators: vec![Sums::default(); world.parameters.operators],
            buckets: [Sums::default(); 4],
            boots: VecDeque::new(),
            curves: BootCurves::default(),
            winners: VecDeque::new(),
            votes: VecDeque::new(),
            deploys: 0,
            blocks: 0,
            blocks_on_good: 0,
        }
    }

    pub fn in_use(&self, machine: usize, t: f64) -> bool {
        self.machines[machine].used_until > t
    }

    pub fn take(&mut self, machine: usize, until: f64) {
        self.machines[machine].used_until = until;
    }

    /// Seconds since the machine last booted this image.
    pub fn idle(&self, machine: usize, image: usize, t: f64) -> Option<f64> {
        self.machines[machine].ready.get(&image).map(|at| t - at)
    }

    pub fn stratum(&self, world: &World, machine: usize, image: usize, t: f64) -> Stratum {
        let warm = self.idle(machine, image, t).is_some_and(|s| s <= WARM_SECONDS);
        Stratum::of(world.machines[machine].download_mbps, warm)
    }

    pub fn curve(&self, stratum: Stratum) -> &Curve {
        self.curves.curve(stratum)
    }

    fn bucket(world: &World, machine: usize) -> usize {
        Bucket::of(world.machines[machine].reliability) as usize
    }

    pub fn posterior(&self, world: &World, machine: usize, t: f64) -> Posterior {
        Evidence {
            machine: self.machines[machine].sums,
            operator: self.operators[world.machines[machine].operator],
            bucket: self.buckets[Self::bucket(world, machine)],
        }
        .posterior(timestamp(t))
    }

    /// The raw record drawn to the fleet's mean by three attempts.
    pub fn record(&self, machine: usize) -> f64 {
        let stats = &self.machines[machine].stats;
        let counts = Counts::new(stats.successful as f64, stats.failed as f64);
        Posterior::new(Counts::default(), Counts::default(), counts).score()
    }

    /// What speaks against the machine; the soft block belongs to the score.
    pub fn bar(&self, world: &World, machine: usize, t: f64) -> Bar {
        let entry = self.machines[machine].entry.map(|e| (e, None));
        Bar {
            soft: self.order == Order::Score && self.posterior(world, machine, t).soft_blocked(),
            entry: Bar::entry(entry, None, timestamp(t)),
        }
    }

    pub fn blocked(&self, machine: usize, t: f64) -> bool {
        let entry = self.machines[machine].entry;
        entry.is_some_and(|e| is_active(&e, timestamp(t)))
    }

    pub fn tried(&self, machine: usize) -> bool {
        self.machines[machine].stats.counted() > 0
    }

    /// How many machines must be left to a race of this width.
    pub fn keep(&self, width: usize) -> usize {
        self.settings.as_ref().map_or(0, |s| s.keep(width))
    }

    /// How long a race of fixed width waits for each of `candidates`, seconds.
    pub fn timeout(&self, candidates: &[Stratum]) -> f64 {
        let enough = self.winners.len() >= WINNERS_NEEDED;
        match self.patience {
            Patience::Curve => self.curves.fixed_timeout(candidates).as_secs_f64(),
            Patience::Winners if enough => {
                let mut boots: Vec<f64> = self.winners.iter().copied().collect();
                boots.sort_by(f64::total_cmp);
                boots[(boots.len() * 9 / 10).min(boots.len() - 1)] + 10.0
            }
            Patience::Winners | Patience::Fixed => 300.0,
        }
    }

    /// Takes in what a race has brought, oldest first.
    pub fn learn(&mut self, world: &World, deploy: &Deploy, mut ended: Vec<Ended>) {
        ended.sort_by(|a, b| a.at.total_cmp(&b.at));
        for one in &ended {
            self.attempt(world, deploy, one);
        }
        self.deploys += 1;
        if self.deploys.is_multiple_of(REFIT_EVERY) {
            self.curves = BootCurves::fit(self.boots.make_contiguous());
        }
    }

    fn attempt(&mut self, world: &World, deploy: &Deploy, one: &Ended) {
        let (at, m) = (timestamp(one.at), one.machine);
        let score = self.posterior(world, m, one.at).score();
        let won = one.outcome == Outcome::Won;
        let suspect = self.vote(world, deploy, one, score);
        let around = Circumstances { suspect, cuda: None };
        let exit = Exit::of(one.outcome, one.reason.as_ref(), won, &around);
        let g = self.curves.curve(one.stratum).g(one.seconds);
        let counts = contribution(exit, g, score);
        let operator = world.machines[m].operator;
        self.machines[m].sums.add(counts, at);
        self.operators[operator].add(counts, at);
        self.buckets[Self::bucket(world, m)].add(counts, at);
        self.observe(one, exit);
        if won {
            self.machines[m].ready.insert(deploy.image, one.at);
            self.winners.push_back(one.seconds);
            if self.winners.len() > WINNERS_KEPT {
                self.winners.pop_front();
            }
        }
        self.rules(world, one, at, suspect);
    }

    /// Takes the attempt's vote and asks the guard.
    fn vote(&mut self, world: &World, deploy: &Deploy, one: &Ended, score: f64) -> bool {
        let ready = one.outcome == Outcome::Won;
        let failed = one.outcome == Outcome::Failed;
        let now = timestamp(one.at);
        if ready || failed {
            self.votes.push_back(Voted {
                operator: world.machines[one.machine].operator,
                image: deploy.image,
                at: now,
                ready,
                score,
            });
        }
        let old = now.minus(WINDOW);
        while self.votes.front().is_some_and(|v| v.at <= old) {
            self.votes.pop_front();
        }
        if !failed && one.outcome != Outcome::GaveUp {
            return false;
        }
        let names: Vec<_> = self
            .votes
            .iter()
            .map(|v| (v.operator.to_string(), v.image.to_string()))
            .collect();
        let votes: Vec<_> = self
            .votes
            .iter()
            .zip(&names)
            .map(|(v, (operator, image))| Vote {
                operator,
                image: Some(image),
                at: v.at,
                ready: v.ready,
                score: v.score,
            })
            .collect();
        Guard::of(&votes, now).suspects(Some(&deploy.image.to_string()))
    }

    fn observe(&mut self, one: &Ended, exit: Exit) {
        let wait = match exit {
            Exit::Ready => Wait::Ready,
            Exit::Explicit { suspect: false } => Wait::Failed,
            Exit::GaveUp { suspect: false } | Exit::LostRace => Wait::Censored,
            Exit::Explicit { .. } | Exit::GaveUp { .. } | Exit::NotHost => return,
        };
        self.boots.push_back(Observation {
            stratum: one.stratum,
            seconds: one.seconds,
            wait,
        });
        if self.boots.len() > dumont_core::boot::LAST_ATTEMPTS {
            self.boots.pop_front();
        }
    }

    fn rules(&mut self, world: &World, one: &Ended, at: Timestamp, suspect: bool) {
        let attempt = Attempt {
            outcome: one.outcome,
            reason: one.reason.clone(),
            ready_seconds: (one.outcome == Outcome::Won).then_some(one.seconds),
            at,
        };
        let known = &mut self.machines[one.machine];
        known.stats.record(&attempt);
        let Some(settings) = &self.settings else {
            return;
        };
        let ended = known.entry.and_then(|e| e.expires_at);
        if let Some(end) = ended.filter(|end| *end <= at) {
            known.window.restart(end);
        }
        let around = Circumstances { suspect, cuda: None };
        let Some(proposal) = judge(&mut known.window, &attempt, &around, settings) else {
            return;
        };
        if change(known.entry.as_ref(), &proposal, at) == Change::Keep {
            return;
        }
        known.entry = Some(Entry {
            blacklist_type: proposal.blacklist_type,
            expires_at: proposal.duration.map(|d| at.plus(d)),
            open: true,
        });
        self.blocks += 1;
        self.blocks_on_good += u64::from(world.machines[one.machine].success(one.at) >= 0.8);
    }
}
