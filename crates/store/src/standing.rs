//! What is known of the machines of a search: two queries, however many they are.
//!
//! A market shows the same machines again and again, so both queries ask only for what is not
//! remembered and for what was written since ([`crate::memory`]). An entry of the blacklist is
//! remembered until somebody closes it; whether it is in force is judged by the reader's clock.

use crate::column::{Column, Record, args, json};
use crate::engine::{Row, Sql, statements};
use crate::machine::{Block, MachineRow};
use crate::memory::{Answer, Memory};
use crate::sums::{Priors, SumRow};
use crate::{Result, Store};
use dumont_core::blacklist::{CudaVersion, is_active};
use dumont_core::id::MachineRef;
use dumont_core::offer::Offer;
use dumont_core::reliability::{Bucket, Counts, MACHINE_WEIGHT, Posterior, Sums};
use dumont_core::time::Timestamp;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

/// Machines, and operators, that are remembered of a provider: 0.6 kB and 0.1 kB each, 45 MB in all.
const REMEMBERED: usize = 65_536;
/// Changes that are worth reading; with more, what is remembered is read anew.
const CHANGES: u32 = 10_000;

statements! {
    MACHINES: ["SELECT h.horizon, h.life, h.changes, s.provider, s.machine_id, s.total_attempts, \
            s.successful_attempts, s.failed_attempts, s.uncounted_attempts, s.consecutive_failures, \
            s.ready_attempts, s.ready_total_ms, s.last_attempt_at, s.last_success_at, s.last_failure_at, \
            s.sum_s, s.sum_f, s.sums_at, s.reliability_score, s.host_id, s.bucket, \
            b.blacklist_type, b.reason AS block_reason, b.blacklisted_at, b.expires_at, b.scope \
            FROM (SELECT " HORIZON " AS horizon, " LIFE " AS life, \
            (SELECT COUNT(*) FROM (SELECT 1 FROM machine_stats \
            WHERE changed >= $3 AND changed < " AHEAD " LIMIT $4) AS c) + \
            (SELECT COUNT(*) FROM (SELECT 1 FROM machine_blacklist \
            WHERE changed >= $3 AND changed < " AHEAD " LIMIT $4) AS c) AS changes) AS h LEFT JOIN (\
            SELECT id FROM (SELECT machine_id AS id FROM machine_stats WHERE provider = $1 \
            AND changed >= $3 AND changed < " AHEAD " ORDER BY changed LIMIT $4) AS c UNION \
            SELECT id FROM (SELECT machine_id AS id FROM machine_blacklist WHERE provider = $1 \
            AND changed >= $3 AND changed < " AHEAD " ORDER BY changed LIMIT $4) AS c UNION \
            SELECT value AS id FROM " EACH_2 ") AS k ON TRUE \
            LEFT JOIN machine_stats s ON s.provider = $1 AND s.machine_id = k.id \
            LEFT JOIN machine_blacklist b ON b.provider = s.provider AND b.machine_id = s.machine_id \
            AND b.is_active"];
    SUMS: ["SELECT h.horizon, h.life, h.changes, r.kind, r.name, r.epoch, r.s, r.f, r.as_of \
            FROM (SELECT " HORIZON " AS horizon, " LIFE " AS life, \
            (SELECT COUNT(*) FROM (SELECT 1 FROM reliability_sums \
            WHERE changed >= $3 AND changed < " AHEAD " LIMIT $4) AS c) AS changes) AS h LEFT JOIN (\
            SELECT o.kind, o.name, o.epoch, o.s, o.f, o.as_of FROM (\
            SELECT name FROM (SELECT name FROM reliability_sums WHERE provider = $1 AND kind = 'operator' \
            AND changed >= $3 AND changed < " AHEAD " ORDER BY changed LIMIT $4) AS c UNION \
            SELECT value AS name FROM " EACH_2 ") AS k \
            JOIN reliability_sums o ON o.provider = $1 AND o.kind = 'operator' AND o.name = k.name UNION ALL \
            SELECT kind, name, epoch, SUM(s) AS s, SUM(f) AS f, MAX(as_of) AS as_of FROM reliability_sums \
            WHERE provider = $1 AND kind = 'bucket' GROUP BY kind, name, epoch) AS r ON TRUE"];
}

/// What stood around an attempt, as far as the score, the rules and the boot curve need it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Conditions {
    pub image_digest: Option<String>,
    /// Who reported it: a token's name. `None` for our own.
    pub reporter: Option<String>,
    /// The server that it came from. `None` where it was recorded here first.
    pub source: Option<String>,
    /// The CUDA version that was asked for.
    pub cuda: Option<CudaVersion>,
    /// The provider's own uptime figure then.
    pub provider_reliability: Option<f64>,
    pub inet_down_mbps: Option<f64>,
    /// The machine had been ready with this image in the last 7 days.
    pub warm: bool,
    /// It failed while the incident guard suspected everything or this image.
    pub suspect: bool,
    /// The machine's score when it ended, and the mean that its prior had.
    pub score: Option<f64>,
    pub prior_mean: Option<f64>,
    /// What it adds to the decayed counts (`dumont_core::reliability::contribution`).
    pub counts: Counts,
}

impl Column for Conditions {
    fn read(row: &Row, _: &'static str) -> Result<Self> {
        Ok(Self {
            image_digest: row.get("image_digest")?,
            reporter: row.get("reporter")?,
            source: row.get("source")?,
            cuda: Column::read(row, "cuda")?,
            provider_reliability: row.get("provider_reliability")?,
            inet_down_mbps: row.get("inet_down_mbps")?,
            warm: row.get("warm")?,
            suspect: row.get("suspect")?,
            score: row.get("score")?,
            prior_mean: row.get("prior_mean")?,
            counts: Counts::new(row.get("score_s")?, row.get("score_f")?),
        })
    }
}

/// A machine that was met, and its entries that nobody closed.
#[derive(Debug)]
struct Met {
    /// Without its block, which depends on when one looks.
    row: MachineRow,
    entries: Vec<Block>,
}

type Remembering<V> = Mutex<HashMap<String, Memory<V>>>;

/// What is remembered, by provider. Shared by all clones of a store.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    machines: Remembering<Option<Arc<Met>>>,
    operators: Remembering<Sums>,
}

/// Works on what is remembered of one provider.
fn of_provider<V: Clone + Default, T>(
    all: &Remembering<V>,
    provider: &str,
    work: impl FnOnce(&mut Memory<V>) -> T,
) -> T {
    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
    let memory = all.entry(provider.to_owned());
    work(memory.or_insert_with(|| Memory::new(REMEMBERED)))
}

/// A row of an answer: what proves the answer, and a machine or a sum, if any.
struct Line<T> {
    horizon: i64,
    life: i64,
    changes: i64,
    found: Option<T>,
}

impl<T: Record> Line<T> {
    fn read(row: &Row, key: &'static str) -> Result<Self> {
        let key: Option<String> = row.get(key)?;
        Ok(Self {
            horizon: row.get("horizon")?,
            life: row.get("life")?,
            changes: row.get("changes")?,
            found: key.map(|_| T::read(row)).transpose()?,
        })
    }
}

impl Record for Line<MachineRow> {
    fn read(row: &Row) -> Result<Self> {
        Line::read(row, "machine_id")
    }
}

impl Record for Line<SumRow> {
    fn read(row: &Row) -> Result<Self> {
        Line::read(row, "name")
    }
}

/// Makes an answer of its rows; and what else they say.
type Gathered<V, T, X> = fn(Vec<Line<T>>) -> (Answer<V>, X);

/// What proves them, and what they hold.
fn opened<V, T>(lines: Vec<Line<T>>) -> (Answer<V>, impl Iterator<Item = T>) {
    let first = lines.first();
    let answer = Answer {
        horizon: first.map_or(0, |l| l.horizon),
        life: first.map_or(0, |l| l.life),
        whole: first.is_some_and(|l| l.changes < i64::from(CHANGES)),
        found: HashMap::new(),
    };
    (answer, lines.into_iter().filter_map(|l| l.found))
}

/// A row per entry: one for everything, and one for each CUDA version.
fn machines(lines: Vec<Line<MachineRow>>) -> (Answer<Option<Arc<Met>>>, ()) {
    let (mut answer, rows) = opened(lines);
    let mut all: HashMap<String, Met> = HashMap::new();
    for mut row in rows {
        let entry = row.block.take();
        let met = all.entry(row.machine.machine_id.clone());
        let met = met.or_insert_with(|| Met {
            row,
            entries: Vec::new(),
        });
        met.entries.extend(entry);
    }
    answer.found = all
        .into_iter()
        .map(|(id, met)| (id, Some(Arc::new(met))))
        .collect();
    (answer, ())
}

/// The operators, and beside them every bucket, which nearly every attempt changes.
fn operators(lines: Vec<Line<SumRow>>) -> (Answer<Sums>, Priors) {
    let (mut answer, rows) = opened(lines);
    let mut priors = Priors::of(rows);
    answer.found = std::mem::take(&mut priors.operators);
    (answer, priors)
}

/// Everything known of the machines of a search.
#[derive(Debug, Clone, Default)]
pub struct Standings {
    met: HashMap<String, Option<Arc<Met>>>,
    /// Those with entries in force, and the entries.
    blocked: HashMap<String, (MachineRow, Vec<Block>)>,
    priors: Priors,
}

impl Standings {
    fn of(met: HashMap<String, Option<Arc<Met>>>, priors: Priors, now: Timestamp) -> Self {
        let mut blocked = HashMap::new();
        for (id, met) in &met {
            let Some(met) = met.as_ref().filter(|m| !m.entries.is_empty()) else {
                continue;
            };
            let entries = met.entries.iter().filter(|b| is_active(&b.entry().0, now));
            let entries: Vec<Block> = entries.cloned().collect();
            if !entries.is_empty() {
                let row = MachineRow {
                    block: entries.iter().find(|b| b.scope.is_none()).cloned(),
                    ..met.row.clone()
                };
                blocked.insert(id.clone(), (row, entries));
            }
        }
        Self { met, blocked, priors }
    }

    /// `None` for a machine that was never met.
    pub fn machine(&self, machine: &MachineRef) -> Option<&MachineRow> {
        let id = &machine.machine_id;
        match self.blocked.get(id) {
            Some((row, _)) => Some(row),
            None => self.met.get(id)?.as_ref().map(|met| &met.row),
        }
    }

    /// Its entries in force, scoped ones too; `Block::entry` makes them `core`'s.
    pub fn blocks(&self, machine: &MachineRef) -> &[Block] {
        let blocked = self.blocked.get(&machine.machine_id);
        blocked.map_or(&[], |(_, entries)| entries.as_slice())
    }

    /// The mean that the machine's own record is drawn to.
    pub fn prior_mean(&self, offer: &Offer, now: Timestamp) -> f64 {
        let own = self.machine(&offer.machine).map(|m| m.sums.read(now));
        (self.posterior(offer, now).alpha - own.unwrap_or_default().s) / MACHINE_WEIGHT
    }

    /// What is believed of an offer's machine at `now`.
    pub fn posterior(&self, offer: &Offer, now: Timestamp) -> Posterior {
        let own = self.machine(&offer.machine).map(|m| m.sums).unwrap_or_default();
        let bucket = Some(Bucket::of(offer.provider_reliability));
        self.priors
            .evidence(own, offer.host_id.as_deref(), bucket)
            .posterior(now)
    }
}

impl Store {
    /// Everything known of these offers' machines, which are all of one provider: two queries,
    /// however many they are.
    pub async fn standings(&self, provider: &str, offers: &[Offer], now: Timestamp) -> Result<Standings> {
        let ids: BTreeSet<&str> = offers.iter().map(|o| o.machine.machine_id.as_str()).collect();
        let hosts: BTreeSet<&str> = offers.iter().filter_map(|o| o.host_id.as_deref()).collect();
        let met = self.recall(&self.remembered.machines, MACHINES, machines, provider, &ids);
        // Side by side: each is a round trip, and for thousands of new machines a core's work.
        let ((met, ()), priors) = futures::try_join!(met, self.priors(provider, &hosts))?;
        Ok(Standings::of(met, priors, now))
    }

    /// The decayed counts of these operators and of all buckets.
    async fn priors(&self, provider: &str, hosts: &BTreeSet<&str>) -> Result<Priors> {
        let known = self.recall(&self.remembered.operators, SUMS, operators, provider, hosts);
        let (operators, buckets) = known.await?;
        Ok(Priors { operators, ..buckets })
    }

    /// What these names stand for in one snapshot, and what else the answer says.
    async fn recall<V: Clone + Default, T, X>(
        &self,
        all: &Remembering<V>,
        sql: Sql,
        gathered: Gathered<V, T, X>,
        provider: &str,
        names: &BTreeSet<&str>,
    ) -> Result<(HashMap<String, V>, X)>
    where
        Line<T>: Record,
    {
        let mut afresh = false;
        loop {
            let question = of_provider(all, provider, |m| m.ask(names, afresh));
            let args = args![provider, json(&question.unknown)?, question.since, CHANGES];
            let (answer, beside) = gathered(self.db.all(sql, args).await?);
            if let Some(known) = of_provider(all, provider, |m| m.learn(question, answer)) {
                return Ok((known, beside));
            }
            // With nothing to prove it cannot fail again.
            afresh = true;
        }
    }

    /// Scores of `now` in rows whose stored one is of their last attempt.
    pub(crate) async fn score_now(&self, rows: &mut [MachineRow], now: Timestamp) -> Result<()> {
        let providers: BTreeSet<String> = rows.iter().map(|r| r.machine.provider.clone()).collect();
        for provider in providers {
            let of = |r: &&MachineRow| r.machine.provider == provider;
            let hosts = rows.iter().filter(of).filter_map(|r| r.host_id.as_deref());
            let priors = self.priors(&provider, &hosts.collect()).await?;
            for row in rows.iter_mut().filter(|r| r.machine.provider == provider) {
                row.reliability_score = priors
                    .evidence(row.sums, row.host_id.as_deref(), row.bucket)
                    .score(now);
            }
        }
        Ok(())
    }
}
