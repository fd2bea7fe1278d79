//! The machines at the two ends of the score, in the order of what it is worth now.
//!
//! A score cannot be kept in order by an index: it decays, and it moves with what the
//! operator's *other* machines do, without the machine's own row being touched. Two machines
//! may change places while nothing happens to either. So each page is one pass over the
//! machines that may be in it: their stored sums are read and weighed by `core`, and only the
//! rows of the page are kept in memory. Its cost is bounded by the number of machines, never of
//! attempts.
//!
//! A walk over several pages needs one order. So the first page's moment travels in the cursor,
//! and every later page is weighed as of it; what is recorded meanwhile may still move a
//! machine, time alone may not.

use crate::column::{args, json, record};
use crate::engine::statements;
use crate::machine::MachineRow;
use crate::{Page, Result, Store};
use dumont_core::id::MachineRef;
use dumont_core::reliability::{Bucket, Sums};
use dumont_core::time::Timestamp;
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::str::FromStr;

statements! {
    PROBLEMATIC: ["SELECT s.provider, s.machine_id, s.sum_s, s.sum_f, s.sums_at, s.host_id, s.bucket \
            FROM machine_stats s LEFT JOIN machine_blacklist b ON b.provider = s.provider \
            AND b.machine_id = s.machine_id AND b.is_active AND b.scope IS NULL \
            AND (b.expires_at IS NULL OR b.expires_at > $1) \
            WHERE (b.id IS NOT NULL OR s.success_rate < 0.5) \
            AND s.successful_attempts + s.failed_attempts >= $2 AND s.provider = COALESCE($3, s.provider) \
            AND COALESCE(s.last_attempt_at, 0) >= COALESCE($4, 0)"];
    RELIABLE: ["SELECT s.provider, s.machine_id, s.sum_s, s.sum_f, s.sums_at, s.host_id, s.bucket \
            FROM machine_stats s LEFT JOIN machine_blacklist b ON b.provider = s.provider \
            AND b.machine_id = s.machine_id AND b.is_active AND b.scope IS NULL \
            AND (b.expires_at IS NULL OR b.expires_at > $1) \
            WHERE b.id IS NULL AND s.success_rate >= 0.7 \
            AND s.successful_attempts + s.failed_attempts >= $2 AND s.provider = COALESCE($3, s.provider) \
            AND COALESCE(s.last_attempt_at, 0) >= COALESCE($4, 0)"];
    NAMED: ["SELECT s.*, b.blacklist_type, b.reason AS block_reason, b.blacklisted_at, b.expires_at, b.scope \
            FROM " EACH_2 " JOIN machine_stats s ON s.provider = $1 AND s.machine_id = each.value \
            LEFT JOIN machine_blacklist b ON b.provider = s.provider \
            AND b.machine_id = s.machine_id AND b.is_active AND b.scope IS NULL \
            AND (b.expires_at IS NULL OR b.expires_at > $3)"];
}

/// Which end of the ranking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extreme {
    /// Blocked now, or a rate under fair; worst score first.
    Problematic,
    /// Not blocked, and a rate of good or better; best score first.
    Reliable,
}

/// Which machines a list of extremes shows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MachineFilter {
    pub provider: Option<String>,
    /// Tried at or after.
    pub since: Option<Timestamp>,
    /// Counted attempts, at least.
    pub min_attempts: u32,
}

/// Where a page of machines ordered by score begins. The score travels as its bits: a
/// rounded one would repeat or skip a machine.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreCursor {
    /// When the first page was asked for.
    pub as_of: Timestamp,
    pub score: f64,
    pub machine: MachineRef,
}

impl fmt::Display for ScoreCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}.{:016x}:{}",
            self.as_of.0,
            self.score.to_bits(),
            self.machine
        )
    }
}

impl FromStr for ScoreCursor {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let parts = s.split_once(':').and_then(|(place, machine)| {
            let (as_of, bits) = place.split_once('.')?;
            let score = f64::from_bits(u64::from_str_radix(bits, 16).ok()?);
            let (as_of, machine) = (Timestamp(as_of.parse().ok()?), machine.parse().ok()?);
            score.is_finite().then_some(Self {
                as_of,
                score,
                machine,
            })
        });
        parts.ok_or_else(|| {
            format!(
                "{:?} is no place in a list of machines",
                s.chars().take(80).collect::<String>()
            )
        })
    }
}

/// What the score of one machine needs, besides its operator's and its bucket's record.
struct Candidate {
    machine: MachineRef,
    sums: Sums,
    host_id: Option<String>,
    bucket: Option<Bucket>,
}
record!(Candidate {
    machine,
    sums,
    host_id,
    bucket
});

/// A machine's place in the list.
#[derive(Debug, Clone, PartialEq)]
struct Place {
    score: f64,
    machine: MachineRef,
}

impl Place {
    /// Worst first, or best first; the machine's name makes it total.
    fn order(&self, other: &Self, which: Extreme) -> Ordering {
        let rising = self
            .score
            .total_cmp(&other.score)
            .then_with(|| self.machine.cmp(&other.machine));
        match which {
            Extreme::Problematic => rising,
            Extreme::Reliable => rising.reverse(),
        }
    }
}

/// The first `most` places of many, in memory for a few times as many.
struct First {
    which: Extreme,
    most: usize,
    held: Vec<Place>,
}

impl First {
    fn add(&mut self, place: Place) {
        self.held.push(place);
        if self.held.len() >= self.most.saturating_mul(4) {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let which = self.which;
        if self.held.len() > self.most {
            self.held
                .select_nth_unstable_by(self.most - 1, |a, b| a.order(b, which));
            self.held.truncate(self.most);
        }
    }

    fn sorted(mut self) -> Vec<Place> {
        self.cut();
        self.held.sort_by(|a, b| a.order(b, self.which));
        self.held
    }
}

impl Store {
    /// By the score as it is worth at `now`, or at the moment of the first page; see [`Extreme`].
    pub async fn extreme_machines(
        &self,
        which: Extreme,
        filter: &MachineFilter,
        after: Option<&ScoreCursor>,
        limit: u32,
        now: Timestamp,
    ) -> Result<Page<MachineRow>> {
        let as_of = after.map_or(now, |c| c.as_of);
        let from = after.map(|c| Place {
            score: c.score,
            machine: c.machine.clone(),
        });
        let priors = self.all_priors(filter.provider.as_deref()).await?;
        let sql = match which {
            Extreme::Problematic => PROBLEMATIC,
            Extreme::Reliable => RELIABLE,
        };
        let args = args![
            as_of,
            filter.min_attempts,
            filter.provider.as_deref(),
            filter.since
        ];
        let mut first = First {
            which,
            most: usize::try_from(limit).unwrap_or(usize::MAX).saturating_add(1),
            held: Vec::new(),
        };
        let none = Default::default();
        self.db
            .each(sql, args, |c: Candidate| {
                let known = priors.get(&c.machine.provider).unwrap_or(&none);
                let evidence = known.evidence(c.sums, c.host_id.as_deref(), c.bucket);
                let place = Place {
                    score: evidence.score(as_of),
                    machine: c.machine,
                };
                if from.as_ref().is_none_or(|f| place.order(f, which).is_gt()) {
                    first.add(place);
                }
            })
            .await?;
        let rows = self.in_places(first.sorted(), as_of).await?;
        Ok(Page::cut(rows, limit, |m: &MachineRow| {
            let (score, machine) = (m.reliability_score, m.machine.clone());
            let cursor = ScoreCursor {
                as_of,
                score,
                machine,
            };
            cursor.to_string()
        }))
    }

    /// The rows of these places, in their order, with the score that they have it for.
    async fn in_places(&self, places: Vec<Place>, as_of: Timestamp) -> Result<Vec<MachineRow>> {
        let mut names: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for place in &places {
            let machine = &place.machine;
            names
                .entry(&machine.provider)
                .or_default()
                .push(&machine.machine_id);
        }
        let mut rows: HashMap<MachineRef, MachineRow> = HashMap::new();
        for (provider, ids) in names {
            let found: Vec<MachineRow> = self.db.all(NAMED, args![provider, json(&ids)?, as_of]).await?;
            rows.extend(found.into_iter().map(|row| (row.machine.clone(), row)));
        }
        let placed = places.into_iter().filter_map(|place| {
            let row = rows.remove(&place.machine)?;
            Some(MachineRow {
                reliability_score: place.score,
                ..row
            })
        });
        Ok(placed.collect())
    }
}
