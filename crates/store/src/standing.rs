//! What the score of a machine stands on, stored so that reading it costs two queries.
//!
//! A machine's own decayed counts are in its row. Those of its operator and of its uptime
//! bucket are shared by many machines: a row that every attempt reads, decays and writes back
//! would make all of them wait for one another's commit. So they are kept by *forward decay*:
//! time is cut into epochs of ten half-lives, and within one an attempt at `t` weighs
//! 2^((t - begin) / half-life), between 1 and 1024. Weights relative to a fixed moment never
//! change, so recording is `s = s + w`, whatever the order. Reading divides by the weight of
//! the moment of reading and adds the epochs up, which is the very sum that `core` defines.

use crate::attempt::NewAttempt;
use crate::column::{Column, args, json, record};
use crate::engine::{Row, Tx, statements};
use crate::machine::{Block, MachineRow};
use crate::{Result, Store};
use dumont_core::blacklist::CudaVersion;
use dumont_core::id::MachineRef;
use dumont_core::offer::Offer;
use dumont_core::reliability::{Bucket, Counts, Evidence, HALF_LIFE_DAYS, MACHINE_WEIGHT, Posterior, Sums};
use dumont_core::time::Timestamp;
use std::collections::{BTreeSet, HashMap};

const OPERATOR: &str = "operator";
const BUCKET: &str = "bucket";
const DAY_MICROS: f64 = 86_400e6;
const EPOCH_MICROS: i64 = 140 * 86_400_000_000;
/// Rows over which a bucket is spread: attempts that end together seldom meet on one.
const SHARDS: u64 = 64;

statements! {
    ADD_BOTH: ["INSERT INTO reliability_sums (provider, kind, name, epoch, shard, s, f, as_of) VALUES \
                ($1, 'operator', $2, $4, 0, $6, $7, $8), ($1, 'bucket', $3, $4, $5, $6, $7, $8) \
                ON CONFLICT (provider, kind, name, epoch, shard) DO UPDATE SET \
                s = reliability_sums.s + excluded.s, f = reliability_sums.f + excluded.f, \
                as_of = CASE WHEN excluded.as_of > reliability_sums.as_of THEN excluded.as_of \
                ELSE reliability_sums.as_of END"];
    ADD_ONE: ["INSERT INTO reliability_sums (provider, kind, name, epoch, shard, s, f, as_of) VALUES \
               ($1, $2, $3, $4, $5, $6, $7, $8) \
               ON CONFLICT (provider, kind, name, epoch, shard) DO UPDATE SET \
               s = reliability_sums.s + excluded.s, f = reliability_sums.f + excluded.f, \
               as_of = CASE WHEN excluded.as_of > reliability_sums.as_of THEN excluded.as_of \
               ELSE reliability_sums.as_of END"];
    SUMS: ["SELECT kind, name, epoch, SUM(s) AS s, SUM(f) AS f, MAX(as_of) AS as_of FROM reliability_sums \
            WHERE provider = $1 AND kind = 'bucket' GROUP BY kind, name, epoch \
            UNION ALL SELECT kind, name, epoch, s, f, as_of FROM " EACH_2 " JOIN reliability_sums \
            ON provider = $1 AND kind = 'operator' AND name = each.value"];
    ALL_SUMS: ["SELECT provider, kind, name, epoch, SUM(s) AS s, SUM(f) AS f, MAX(as_of) AS as_of \
                FROM reliability_sums WHERE provider = COALESCE($1, provider) \
                GROUP BY provider, kind, name, epoch"];
    MANY: ["SELECT s.provider, s.machine_id, s.total_attempts, s.successful_attempts, s.failed_attempts, \
            s.uncounted_attempts, s.consecutive_failures, s.ready_attempts, s.ready_total_ms, s.last_attempt_at, \
            s.last_success_at, s.last_failure_at, s.sum_s, s.sum_f, s.sums_at, s.reliability_score, s.host_id, s.bucket, \
            b.blacklist_type, b.reason AS block_reason, b.blacklisted_at, b.expires_at, b.scope \
            FROM " EACH_2 " JOIN machine_stats s ON s.provider = $1 AND s.machine_id = each.value \
            LEFT JOIN machine_blacklist b ON b.provider = s.provider AND b.machine_id = s.machine_id \
            AND b.is_active AND (b.expires_at IS NULL OR b.expires_at > $3)"];
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

/// The weight of `at` within its epoch, 1 to 1024.
fn weight(at: Timestamp) -> f64 {
    let days = at.0.rem_euclid(EPOCH_MICROS) as f64 / DAY_MICROS;
    (days / HALF_LIFE_DAYS).exp2()
}

/// Adds what an attempt is worth to its operator and its bucket.
pub(crate) async fn add(tx: &mut Tx, new: &NewAttempt) -> Result<()> {
    let (c, at) = (&new.conditions, new.created_at);
    if c.counts == Counts::default() {
        return Ok(());
    }
    let bucket = c.provider_reliability.map(Bucket::of);
    let (w, epoch) = (weight(at), at.0.div_euclid(EPOCH_MICROS));
    let (s, f) = (c.counts.s * w, c.counts.f * w);
    let provider = &new.machine.provider;
    let shard = shard(&new.attempt_key);
    match (new.host_id.as_deref(), bucket) {
        (Some(host), Some(bucket)) => {
            let args = args![provider, host, bucket.as_str(), epoch, shard, s, f, at];
            tx.run(ADD_BOTH, args).await?;
        }
        (Some(host), None) => {
            let args = args![provider, OPERATOR, host, epoch, 0_i64, s, f, at];
            tx.run(ADD_ONE, args).await?;
        }
        (None, Some(bucket)) => {
            let args = args![provider, BUCKET, bucket.as_str(), epoch, shard, s, f, at];
            tx.run(ADD_ONE, args).await?;
        }
        (None, None) => {}
    }
    Ok(())
}

/// FNV-1a, as keys that are ULIDs differ in their last characters most.
fn shard(key: &str) -> u64 {
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    key.bytes().fold(0xcbf2_9ce4_8422_2325, mix) % SHARDS
}

struct SumRow {
    kind: String,
    name: String,
    epoch: i64,
    s: f64,
    f: f64,
    as_of: Timestamp,
}
record!(SumRow {
    kind,
    name,
    epoch,
    s,
    f,
    as_of
});

/// The same, of any provider.
struct AnySum {
    provider: String,
    sum: SumRow,
}

impl crate::column::Record for AnySum {
    fn read(row: &Row) -> Result<Self> {
        Ok(Self {
            provider: row.get("provider")?,
            sum: crate::column::Record::read(row)?,
        })
    }
}

impl SumRow {
    /// As `core` reads it: decayed to the time of its last attempt.
    fn counts(&self) -> Counts {
        let days = self
            .as_of
            .0
            .saturating_sub(self.epoch.saturating_mul(EPOCH_MICROS)) as f64
            / DAY_MICROS;
        let w = (days / HALF_LIFE_DAYS).exp2();
        Counts::new(self.s / w, self.f / w)
    }
}

/// The decayed counts of some operators and of every bucket of one provider.
#[derive(Debug, Clone, Default)]
pub struct Priors {
    operators: HashMap<String, Sums>,
    buckets: HashMap<String, Sums>,
}

impl Priors {
    fn of(rows: Vec<SumRow>) -> Self {
        let mut out = Self::default();
        for row in rows {
            out.add(row);
        }
        out
    }

    fn add(&mut self, row: SumRow) {
        let counts = row.counts();
        let sums = if row.kind == OPERATOR {
            &mut self.operators
        } else {
            &mut self.buckets
        };
        sums.entry(row.name).or_default().add(counts, row.as_of);
    }

    /// What is known beside the machine's own record.
    pub fn evidence(&self, machine: Sums, host_id: Option<&str>, bucket: Option<Bucket>) -> Evidence {
        let get = |map: &HashMap<String, Sums>, name: Option<&str>| {
            name.and_then(|n| map.get(n)).copied().unwrap_or_default()
        };
        Evidence {
            machine,
            operator: get(&self.operators, host_id),
            bucket: get(&self.buckets, bucket.map(Bucket::as_str)),
        }
    }
}

/// Everything known of the machines of a search.
#[derive(Debug, Clone, Default)]
pub struct Standings {
    machines: HashMap<String, MachineRow>,
    blocks: HashMap<String, Vec<Block>>,
    priors: Priors,
}

impl Standings {
    /// `None` for a machine that was never met.
    pub fn machine(&self, machine: &MachineRef) -> Option<&MachineRow> {
        self.machines.get(&machine.machine_id)
    }

    /// Its entries in force, scoped ones too; `Block::entry` makes them `core`'s.
    pub fn blocks(&self, machine: &MachineRef) -> &[Block] {
        self.blocks.get(&machine.machine_id).map_or(&[], Vec::as_slice)
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
        let machines: BTreeSet<&str> = offers.iter().map(|o| o.machine.machine_id.as_str()).collect();
        let operators: BTreeSet<&str> = offers.iter().filter_map(|o| o.host_id.as_deref()).collect();
        let rows = self.db.all(MANY, args![provider, json(&machines)?, now]);
        // Side by side: each is a round trip, and for thousands of machines a core's work.
        let (rows, priors): (Vec<MachineRow>, Priors) =
            futures::try_join!(rows, self.priors(provider, &operators))?;
        let mut out = Standings {
            priors,
            ..Standings::default()
        };
        // A row per entry: one for everything, and one for each CUDA version.
        for mut row in rows {
            let id = row.machine.machine_id.clone();
            if let Some(block) = row.block.take() {
                if block.scope.is_none() {
                    row.block = Some(block.clone());
                }
                out.blocks.entry(id.clone()).or_default().push(block);
            }
            match out.machines.get_mut(&id) {
                Some(held) => held.block = held.block.take().or(row.block),
                None => drop(out.machines.insert(id, row)),
            }
        }
        Ok(out)
    }

    /// The decayed counts of these operators and of all buckets.
    async fn priors(&self, provider: &str, operators: &BTreeSet<&str>) -> Result<Priors> {
        let rows = self.db.all(SUMS, args![provider, json(operators)?]).await?;
        Ok(Priors::of(rows))
    }

    /// Those of every operator and bucket, by provider.
    pub(crate) async fn all_priors(&self, provider: Option<&str>) -> Result<HashMap<String, Priors>> {
        let mut out: HashMap<String, Priors> = HashMap::new();
        let add = |row: AnySum| out.entry(row.provider).or_default().add(row.sum);
        self.db.each(ALL_SUMS, args![provider], add).await?;
        Ok(out)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten years over epochs, one attempt after the other, against `core`'s own sum.
    #[test]
    fn epochs_add_up_to_the_sum_that_core_defines() {
        let mut direct = Sums::default();
        let mut rows: HashMap<i64, SumRow> = HashMap::new();
        let day = 86_400_000_000_i64;
        for n in 0..500_i64 {
            // Not in order, and denser toward the end.
            let at = Timestamp((n * n % 3_650) * day + n * 1_234_567);
            let counts = Counts::new(f64::from((n % 3) as i32), f64::from((n % 2) as i32));
            direct.add(counts, at);
            let epoch = at.0.div_euclid(EPOCH_MICROS);
            let row = rows.entry(epoch).or_insert(SumRow {
                kind: OPERATOR.into(),
                name: "h".into(),
                epoch,
                s: 0.0,
                f: 0.0,
                as_of: at,
            });
            row.s += counts.s * weight(at);
            row.f += counts.f * weight(at);
            row.as_of = row.as_of.max(at);
        }
        let priors = Priors::of(rows.into_values().collect());
        for later in [3_650, 3_651, 3_700, 5_000] {
            let now = Timestamp(later * day);
            let want = direct.read(now);
            let got = priors
                .evidence(Sums::default(), Some("h"), None)
                .operator
                .read(now);
            assert!(
                (got.s - want.s).abs() <= 1e-9 * want.s.max(1e-12),
                "{got:?} {want:?}"
            );
            assert!(
                (got.f - want.f).abs() <= 1e-9 * want.f.max(1e-12),
                "{got:?} {want:?}"
            );
        }
    }
}
