//! Many worlds, many policies, as many threads as there are cores.

use crate::learner::Learner;
use crate::parameters::{Parameters, Row};
use crate::policy::Policy;
use crate::race;
use crate::world::{TrueCurves, World};
use std::sync::atomic::{AtomicUsize, Ordering};

/// What to run: every policy on every seed.
#[derive(Debug, Clone)]
pub struct Plan {
    pub parameters: Parameters,
    pub policies: Vec<Policy>,
    pub first_seed: u64,
    pub seeds: u64,
}

impl Plan {
    /// The same plan in another market, for some policies.
    pub fn in_row(&self, row: &Row, policies: &[Policy], seeds: u64) -> Self {
        Self {
            parameters: row.parameters,
            policies: policies.to_vec(),
            first_seed: self.first_seed,
            seeds,
        }
    }

    pub fn runs(&self) -> usize {
        self.policies.len() * self.seeds as usize
    }
}

/// Called after every finished run, from any thread.
pub type Progress<'a> = &'a (dyn Fn() + Sync);

/// One policy on one seed.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    pub policy: usize,
    pub seed: u64,
    /// Scored deploys.
    pub deploys: u64,
    /// Seconds to ready of those that got a machine.
    pub ready: Vec<f64>,
    /// Seconds until it was clear that there is none.
    pub unready_seconds: f64,
    pub failed: u64,
    pub dropped: u64,
    pub wasted: f64,
    /// Sums over days of shares of machines.
    pub days: u64,
    pub good_blocked: f64,
    pub lemons_blocked: f64,
    pub blocks: u64,
    pub blocks_on_good: u64,
}

impl Tally {
    pub fn unready(&self) -> u64 {
        self.deploys - self.ready.len() as u64
    }

    /// J: mean seconds to ready, a deploy without a machine costing more, and what was wasted.
    pub fn cost(&self, p: &Parameters) -> f64 {
        let waited = self.ready.iter().sum::<f64>() + self.unready_seconds;
        let without = self.unready() as f64 * p.no_machine_seconds;
        (waited + without + p.gpu_second * self.wasted) / self.deploys.max(1) as f64
    }
}

/// Runs the plan; tallies in the order of policies, then seeds.
pub fn run(plan: &Plan, progress: Progress) -> Vec<Tally> {
    let seeds = plan.seeds as usize;
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        let mut done = Vec::new();
        loop {
            let job = next.fetch_add(1, Ordering::Relaxed);
            if job >= plan.runs() {
                return done;
            }
            let (policy, seed) = (job / seeds, plan.first_seed + (job % seeds) as u64);
            done.push(Tally {
                policy,
                ..one(plan.parameters, &plan.policies[policy], seed)
            });
            progress();
        }
    };
    let mut all: Vec<Tally> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        handles
            .into_iter()
            .flat_map(|h| h.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    all.sort_by_key(|t| (t.policy, t.seed));
    all
}

fn one(parameters: Parameters, policy: &Policy, seed: u64) -> Tally {
    let world = World::new(seed, parameters);
    let mut learner = Learner::new(policy, &world);
    let mut truth = TrueCurves::default();
    let mut tally = Tally {
        seed,
        ..Tally::default()
    };
    let mut day = parameters.warm_up_days;
    for deploy in &world.deploys {
        while deploy.at >= day * 86_400.0 {
            count_blocked(&world, &learner, day * 86_400.0, &mut tally);
            day += 1.0;
        }
        let result = race::deploy(&world, policy, &mut learner, &mut truth, deploy);
        if !deploy.scored {
            continue;
        }
        tally.deploys += 1;
        tally.failed += u64::from(result.failed);
        tally.dropped += u64::from(result.dropped);
        tally.wasted += result.wasted;
        if result.ready {
            tally.ready.push(result.seconds);
        } else {
            tally.unready_seconds += result.seconds;
        }
    }
    (tally.blocks, tally.blocks_on_good) = (learner.blocks, learner.blocks_on_good);
    tally
}

/// The day's share of good machines (p >= 0.8) that are blocked, and of lemons (p < 0.5) that
/// were tried.
fn count_blocked(world: &World, learner: &Learner, t: f64, tally: &mut Tally) {
    let share = |wanted: &dyn Fn(usize) -> bool| {
        let all: Vec<usize> = (0..world.machines.len()).filter(|m| wanted(*m)).collect();
        let blocked = all.iter().filter(|m| learner.blocked(**m, t)).count();
        if all.is_empty() {
            0.0
        } else {
            blocked as f64 / all.len() as f64
        }
    };
    let p = |m: usize| world.machines[m].success(t);
    tally.days += 1;
    tally.good_blocked += share(&|m| p(m) >= 0.8);
    tally.lemons_blocked += share(&|m| p(m) < 0.5 && learner.tried(m));
}
