//! The decayed counts that machines share, stored so that nobody waits for anybody.
//!
//! A machine's own decayed counts are in its row. Those of its operator and of its uptime
//! bucket are shared by many machines: a row that every attempt reads, decays and writes back
//! would make all of them wait for one another's commit. So they are kept by *forward decay*:
//! time is cut into epochs of ten half-lives, and within one an attempt at `t` weighs
//! 2^((t - begin) / half-life), between 1 and 1024. Weights relative to a fixed moment never
//! change, so recording is `s = s + w`, whatever the order. Reading divides by the weight of
//! the moment of reading and adds the epochs up, which is the very sum that `core` defines.

use crate::attempt::NewAttempt;
use crate::column::{args, record};
use crate::engine::{Row, Tx, statements};
use crate::{Result, Store};
use dumont_core::reliability::{Bucket, Counts, Evidence, HALF_LIFE_DAYS, Sums};
use dumont_core::time::Timestamp;
use std::collections::HashMap;

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
    ALL_SUMS: ["SELECT provider, kind, name, epoch, SUM(s) AS s, SUM(f) AS f, MAX(as_of) AS as_of \
                FROM reliability_sums WHERE provider = COALESCE($1, provider) \
                GROUP BY provider, kind, name, epoch"];
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

pub(crate) struct SumRow {
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
    pub(crate) operators: HashMap<String, Sums>,
    pub(crate) buckets: HashMap<String, Sums>,
}

impl Priors {
    pub(crate) fn of(rows: impl IntoIterator<Item = SumRow>) -> Self {
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

impl Store {
    /// Those of every operator and bucket, by provider.
    pub(crate) async fn all_priors(&self, provider: Option<&str>) -> Result<HashMap<String, Priors>> {
        let mut out: HashMap<String, Priors> = HashMap::new();
        let add = |row: AnySum| out.entry(row.provider).or_default().add(row.sum);
        self.db.each(ALL_SUMS, args![provider], add).await?;
        Ok(out)
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
        let priors = Priors::of(rows.into_values());
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
