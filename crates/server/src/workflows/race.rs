//! The race: rent several, take the first that is ready, get rid of the rest.
//!
//! The plan (`dumont_core::plan`) decides; this file does what it says. What makes it hard is
//! the end: the winner must not wait for the losers, yet no loser may be forgotten. Losers are
//! therefore marked `destroying` in the database in the moment of the win, which costs
//! microseconds, and destroyed behind it; whatever dies in between, the reaper reads the mark.

mod lanes;

use super::racer::End;
use super::search::{self, provider_failure};
use super::state::Placement;
use super::{Flow, Run, StepError, StepResult};
use crate::history::{self, Expected};
use crate::providers::ProviderError;
use dumont_core::boot::{BootCurves, HORIZON_SECONDS};
use dumont_core::id::{MachineRef, RentLabel};
use dumont_core::offer::Offer;
use dumont_core::plan::adaptive::{self, AdaptiveSettings, Bet};
use dumont_core::plan::spread::{self, Claim};
use dumont_core::plan::{self, Move, RaceSettings};
use dumont_core::spending::Over;
use dumont_core::time::Timestamp;
use dumont_store::{Asked, InstanceRow, InstanceState, NewInstance};
use lanes::{Lane, LaneState};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::select;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::ReusableBoxFuture;
use ulid::Ulid;

/// A create takes so long to reach the provider's listing of offers, at most.
const UNDER_WAY: Duration = Duration::from_secs(5);

/// How long more offers are looked for: the race stands still meanwhile.
const SEARCH: Duration = Duration::from_secs(10);

/// A race that waits for the account is judged anew after this, whatever happens.
const RETHINK: Duration = Duration::from_secs(1);

/// A racer's row key, and how it ended.
type Ended = (String, End);

/// Every instance this workflow rented or meant to.
pub async fn rented_by(run: &Run) -> Result<Vec<InstanceRow>, dumont_store::Error> {
    let mut rows = run.app.store.instances_of(&run.workspace.id).await?;
    rows.retain(|row| row.workflow_id.as_deref() == Some(run.id.as_str()));
    Ok(rows)
}

/// How many to race: a number that was asked for, or as many as pay.
enum Plan {
    Fixed(RaceSettings),
    Adaptive(AdaptiveSettings),
}

impl Plan {
    /// A fixed race waits for each machine as long as good boots of such machines take, and
    /// before that is known as long as it is told.
    fn of(run: &Run, state: &Placement, curves: &BootCurves) -> Self {
        let Some(width) = run.workspace.spec.failover.racers else {
            return Self::Adaptive(run.app.config.adaptive);
        };
        let settings = &run.app.config.race;
        let strata: Vec<_> = state.expected.values().map(|e| e.stratum).collect();
        Self::Fixed(RaceSettings {
            width: width as usize,
            racer_timeout: if curves.is_cold() {
                settings.racer_timeout
            } else {
                curves.fixed_timeout(&strata)
            },
            ..settings.clone()
        })
    }

    /// The longest that one machine is waited for.
    fn patience(&self) -> Duration {
        match self {
            Self::Fixed(settings) => settings.racer_timeout,
            Self::Adaptive(_) => Duration::from_secs_f64(HORIZON_SECONDS),
        }
    }
}

struct Race<'a> {
    run: &'a Run,
    state: &'a Placement,
    plan: Plan,
    curves: Arc<BootCurves>,
    expected: BTreeMap<MachineRef, Expected>,
    last_rent: Option<Instant>,
    /// Waiting until the account may rent again, and whose account.
    turn: Option<(String, ReusableBoxFuture<'static, Result<(), ProviderError>>)>,
    lanes: Vec<Lane>,
    /// Best promise first.
    offers: Vec<Offer>,
    tried: HashSet<MachineRef>,
    /// What other races have asked for after this key, which is about when ours were found.
    found_at: Option<String>,
    claims: HashMap<MachineRef, Claim>,
    /// When offers were looked for last; a race that is taken up again has just begun to wait.
    searched: Instant,
    disk_bytes: u64,
    ended: mpsc::Sender<Ended>,
    ends: mpsc::Receiver<Ended>,
    /// Accounts that rent nothing more, by provider.
    account: BTreeMap<String, ProviderError>,
    /// The spending cap that ends the renting of what costs something.
    capped: Option<Over>,
}

pub async fn run(run: &mut Run) -> StepResult {
    let mut state: Placement = run.load();
    let disk_bytes = super::placement::choose_snapshot(run, &mut state).await?;
    let curves = history::curves(&run.app).await?;
    let (ended, ends) = mpsc::channel(64);
    let mut race = Race {
        run,
        state: &state,
        plan: Plan::of(run, &state, &curves),
        curves,
        expected: state.expected.clone(),
        last_rent: None,
        turn: None,
        lanes: Vec::new(),
        offers: state.offers.clone(),
        tried: HashSet::new(),
        found_at: (state.searched_at > Timestamp(0)).then(|| key_of(state.searched_at)),
        claims: HashMap::new(),
        searched: Instant::now(),
        disk_bytes,
        ended,
        ends,
        account: BTreeMap::new(),
        capped: None,
    };
    race.pick_up().await?;
    let winner = race.until_won().await?;
    let (key, link) = race.finish(winner).await?;
    state.winner = Some(key);
    run.link = Some(link);
    run.keep(&state);
    Ok(Flow::Next)
}

/// Keys begin with their time.
fn key_of(searched_at: Timestamp) -> String {
    let since = searched_at.minus(UNDER_WAY).0 / 1_000;
    Ulid::from_parts(since.max(0).unsigned_abs(), 0).to_string()
}

impl Race<'_> {
    /// After a crash: the machines this workflow has already rented, or meant to.
    async fn pick_up(&mut self) -> Result<(), StepError> {
        for row in rented_by(self.run).await? {
            self.tried.insert(row.machine.clone());
            if matches!(
                row.state,
                InstanceState::Intended | InstanceState::Rented | InstanceState::Ready
            ) {
                self.launch(row, true);
            } else {
                // Counts toward the rents of this workflow, whatever became of it. The crash may
                // have come before its attempt was recorded.
                history::cancelled(&self.run.app, &row).await?;
                self.lanes.push(Lane::over(row));
            }
        }
        Ok(())
    }

    async fn until_won(&mut self) -> Result<usize, StepError> {
        loop {
            let next = self.next_move();
            if next != Move::Rent {
                // A place in the line that nobody looks at would hold up all behind it.
                self.turn = None;
            }
            match next {
                Move::Win(at) => return Ok(at),
                Move::Rent => self.rent_when_due().await?,
                Move::GiveUp(at) => self.give_up(at).await?,
                Move::Drop(at) => self.drop_out(at).await?,
                Move::Wait(most) => match self.search_in() {
                    Some(Duration::ZERO) => self.search_again().await?,
                    due => self.wait(due.map_or(most, |due| due.min(most))).await?,
                },
                Move::Exhausted if self.search_in() == Some(Duration::ZERO) => self.search_again().await?,
                Move::Exhausted => return Err(self.exhausted()),
            }
        }
    }

    fn next_move(&self) -> Move {
        match &self.plan {
            Plan::Fixed(settings) => {
                let left = self.offers.iter().filter(|o| self.may_rent(o)).count();
                plan::next(settings, &self.view(), left)
            }
            Plan::Adaptive(settings) => {
                let racers = self.view();
                let bets: Vec<Bet> = racers
                    .iter()
                    .zip(&self.lanes)
                    .map(|(racer, lane)| Bet {
                        racer: *racer,
                        odds: self.expected_of(&lane.row.offer).odds(&self.curves),
                    })
                    .collect();
                let best = self.pick(|_| true);
                let best = best.map(|o| self.expected_of(o).odds(&self.curves));
                adaptive::next(settings, &bets, best, self.last_rent.map(|at| at.elapsed()))
            }
        }
    }

    /// Untried, and neither of an account that is out of credit nor over the cap.
    fn may_rent(&self, offer: &Offer) -> bool {
        (self.capped.is_none() || offer.price <= 0.0)
            && !self.account.contains_key(&offer.machine.provider)
            && !self.tried.contains(&offer.machine)
    }

    /// The best that is left, those that other races are after last.
    fn pick(&self, fits: impl Fn(&Offer) -> bool) -> Option<&Offer> {
        let open = self.offers.iter().filter(|o| self.may_rent(o) && fits(o));
        spread::pick(open, |o| self.claims.get(&o.machine).copied().unwrap_or_default())
    }

    /// What other races have asked for meanwhile.
    async fn look_at_claims(&mut self) -> Result<(), StepError> {
        if let Some(key) = &self.found_at {
            let asked = self.run.app.store.asked_after(key, &self.run.id).await?;
            let claim = |a: Asked| (a.machine, if a.held { Claim::Held } else { Claim::Asked });
            self.claims = asked.into_iter().map(claim).collect();
        }
        Ok(())
    }

    fn expected_of(&self, offer: &Offer) -> Expected {
        let known = self.expected.get(&offer.machine);
        known.copied().unwrap_or_else(|| Expected::unknown(offer))
    }

    fn view(&self) -> Vec<plan::Racer> {
        let one = |lane: &Lane| match lane.state {
            LaneState::Racing => plan::Racer::Racing {
                elapsed: lane.started.elapsed(),
            },
            LaneState::Ready(_) => plan::Racer::Ready,
            LaneState::Out(Some(ref why)) if why.was_refused() => plan::Racer::Refused,
            LaneState::Out(_) => plan::Racer::Out,
        };
        self.lanes.iter().map(one).collect()
    }

    /// Rents as soon as the account may, unless something happens before: then the race is
    /// judged anew. A race that is won meanwhile has not rented in vain.
    async fn rent_when_due(&mut self) -> Result<(), StepError> {
        let Some(offer) = self.pick(|_| true).cloned() else {
            return Ok(());
        };
        if !self.affords(&offer).await? {
            return Ok(());
        }
        let provider = self.run.market(&offer.machine.provider)?.provider.clone();
        let name = provider.name();
        if self.turn.as_ref().is_some_and(|(of, _)| of != name) {
            self.turn = None;
        }
        let (_, turn) = self.turn.get_or_insert_with(|| {
            let turn = async move { provider.rent_turn().await };
            (name.to_owned(), ReusableBoxFuture::new(turn))
        });
        let due = select! {
            biased;
            due = turn => due,
            Some((key, end)) = self.ends.recv() => return self.ended(&key, end).await,
            () = sleep(RETHINK) => return Ok(()),
        };
        self.turn = None;
        match due {
            Ok(()) => self.rent_best(offer).await,
            Err(error) => {
                self.run.say(format!("cannot rent yet: {error}")).await;
                sleep(RETHINK).await;
                Ok(())
            }
        }
    }

    /// With the turn in hand, so that of races at one account each sees what the one before took;
    /// one at a time in this process, where there may be no turns.
    async fn rent_best(&mut self, meant: Offer) -> Result<(), StepError> {
        let app = self.run.app.clone();
        let _one = app.renting.lock().await;
        self.look_at_claims().await?;
        let fits = |o: &Offer| o.machine.provider == meant.machine.provider;
        let best = self.pick(fits).cloned().unwrap_or_else(|| meant.clone());
        if best.price > meant.price && !self.affords(&best).await? {
            return Ok(());
        }
        self.rent(best).await
    }

    /// Whether the caps allow it; if not, nothing is rented any more.
    async fn affords(&mut self, offer: &Offer) -> Result<bool, StepError> {
        let app = &self.run.app;
        let spent = app.store.spent(app.now()).await?;
        if offer.price > 0.0
            && let Err(over) = app.config.caps.allow(&spent, offer.price)
        {
            self.run.say(format!("nothing more is rented: {over}")).await;
            self.capped = Some(over);
            return Ok(false);
        }
        Ok(true)
    }

    async fn rent(&mut self, offer: Offer) -> Result<(), StepError> {
        let app = &self.run.app;
        self.tried.insert(offer.machine.clone());
        self.last_rent = Some(Instant::now());
        let leased = self.run.market(&offer.machine.provider)?.provider.ends_leases();
        let key = Ulid::generate().to_string();
        let label = RentLabel {
            controller: app.controller_id.clone(),
            workspace: self.run.workspace.name.to_string(),
            attempt: key.clone(),
        };
        let row = app
            .store
            .insert_intent(
                &NewInstance {
                    key,
                    workspace_id: self.run.workspace.id.clone(),
                    workflow: Some((self.run.id.clone(), self.run.fence)),
                    label: label.to_string(),
                    lease: app.config.abandon_after.filter(|_| leased),
                    offer,
                },
                app.now(),
            )
            .await?;
        let bid = row
            .offer
            .bid
            .map_or_else(String::new, |bid| format!(", bid ${bid:.3}"));
        let line = format!(
            "renting {} ({}, ${:.3}/h{bid})",
            row.offer.machine, row.offer.gpu_name, row.offer.price
        );
        // First the request, then the talk: every write costs the racer its time.
        self.launch(row, false);
        self.run.say(line).await;
        Ok(())
    }

    /// When it is time to look for more, where all that was found was tried and more may be rented.
    fn search_in(&self) -> Option<Duration> {
        let max_rents = match &self.plan {
            Plan::Fixed(settings) => settings.max_rents,
            Plan::Adaptive(settings) => settings.max_rents,
        };
        let more = self.state.machine.is_none()
            && self.capped.is_none()
            && self.account.is_empty()
            && self.pick(|_| true).is_none()
            && plan::may_rent(max_rents, self.view().iter().copied());
        let every = self.run.app.config.timing.search_again;
        more.then(|| every.saturating_sub(self.searched.elapsed()))
    }

    /// An end of a racer's goes first; the search is then begun anew.
    async fn search_again(&mut self) -> Result<(), StepError> {
        let (run, state) = (self.run, self.state);
        let tried = self.tried.clone();
        let known = move |m: &MachineRef| tried.contains(m) || state.lost_machine() == Some(m);
        let found = select! {
            biased;
            Some((key, end)) = self.ends.recv() => return self.ended(&key, end).await,
            found = timeout(SEARCH, search::again(run, known)) => found,
        };
        self.searched = Instant::now();
        match found {
            Ok(Ok(found)) => {
                if !found.is_empty() {
                    run.say(format!("{} more machines are on offer", found.len()))
                        .await;
                }
                for one in found {
                    self.expected.insert(one.offer.machine.clone(), one.expected);
                    self.offers.push(one.offer);
                }
                Ok(())
            }
            Ok(Err(StepError::Store(error))) => Err(error.into()),
            // It was said in the log, or comes again.
            Ok(Err(StepError::Failed(_))) | Err(_) => Ok(()),
        }
    }

    async fn wait(&mut self, most: Duration) -> Result<(), StepError> {
        let Ok(Some((key, end))) = timeout(most, self.ends.recv()).await else {
            return Ok(());
        };
        self.ended(&key, end).await
    }

    fn exhausted(&self) -> StepError {
        if let Some((provider, error)) = self.account.first_key_value() {
            return provider_failure(provider, error);
        }
        if let Some(over) = &self.capped {
            return StepError::failed(
                "spending_cap",
                over.to_string(),
                "raise SPENDING_CAP_PER_DAY or SPENDING_CAP_PER_MONTH, or delete what is not needed: `dumont spending` shows what costs what",
            );
        }
        let reasons: Vec<String> = self
            .lanes
            .iter()
            .filter_map(|lane| match &lane.state {
                LaneState::Out(Some(why)) => Some(format!(
                    "{}: {} at {} ({})",
                    lane.row.offer.machine,
                    why.reason,
                    why.stage,
                    why.message.chars().take(120).collect::<String>()
                )),
                _ => None,
            })
            .collect();
        let misdescribed =
            |lane: &Lane| matches!(&lane.state, LaneState::Out(Some(why)) if why.is_misdescribed());
        let hint = if self.lanes.iter().any(misdescribed) {
            "correct what the inventory says of your machine: repeat its `dumont machine add` with another --gpu, or change gpu in the file"
        } else {
            "everything rented was given back; try again, or widen the GPU, price or image"
        };
        StepError::failed(
            "no_machine_ready",
            format!(
                "none of {} machines became ready: {}",
                self.lanes.len(),
                reasons.join("; ")
            ),
            hint,
        )
    }
}
