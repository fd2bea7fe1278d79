//! What an account may ask of a provider, and who goes first.
//!
//! Providers limit an account by endpoint: so long between two requests, or so many a minute.
//! All replicas share that through one [`Gate`] per account and endpoint. The hard part is that
//! nobody may own a place in a queue: whoever waits may die. So nothing is handed out ahead; the
//! gate only says when it opens next, and each who waits asks again then. Order comes from
//! *deadlines*: a request's deadline is when it came plus the patience of its class, and the
//! earliest one that waits leaves a mark, to which later ones yield until the mark has run out.
//! What is urgent thus passes what is not, and what is not is never passed for longer than its
//! patience. A crash between the turn and the request costs that one turn.
//!
//! Refusals widen the distance by half and say how long to stay away; every turn that is given
//! takes a fifth of the widening back. The real thresholds are not published, so both matter.

mod limits;
#[cfg(test)]
mod tests;

pub use limits::{BadLimits, Limits, Rule};

use crate::time::Timestamp;
use std::fmt;
use std::time::Duration;

/// What a provider limits together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Endpoint {
    List,
    Show,
    /// Start, stop, label, reboot.
    Change,
    Destroy,
    Create,
    Bid,
    AddKey,
    Search,
}

impl Endpoint {
    pub const ALL: [Self; 8] = [
        Self::List,
        Self::Show,
        Self::Change,
        Self::Destroy,
        Self::Create,
        Self::Bid,
        Self::AddKey,
        Self::Search,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Show => "show",
            Self::Change => "change",
            Self::Destroy => "destroy",
            Self::Create => "create",
            Self::Bid => "bid",
            Self::AddKey => "add_key",
            Self::Search => "search",
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How urgent a request is, by what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Class {
    /// Somebody's work stands still, or money runs: failovers, destroying.
    Urgent,
    /// A deploy.
    Normal,
    /// Sweeps, and searches that only show.
    #[default]
    Background,
}

impl Class {
    /// How long more urgent requests that come later may pass this one.
    pub fn patience(self) -> Duration {
        match self {
            Self::Urgent => Duration::ZERO,
            Self::Normal => Duration::from_secs(30),
            Self::Background => Duration::from_secs(120),
        }
    }

    /// The deadline of a request that comes now.
    pub fn deadline(self, now: Timestamp) -> Timestamp {
        now.plus(self.patience())
    }
}

/// A mark outlives the moment it waits for by this, for its owner to come.
pub const GRACE: Duration = Duration::from_millis(250);
/// A gate that opens later than this was left by a clock that has since been set back.
pub const FARTHEST: Duration = Duration::from_secs(25 * 3600);
/// The widest that refusals make a distance.
const WIDEST: f64 = 8.0;
const WIDENS: f64 = 1.5;
/// What is left of a widening after each turn that is given.
pub const KEEPS: f64 = 0.8;
/// A provider that asks for more is not believed: an hour is long for any limit but a day's.
const LONGEST_REFUSAL: Duration = Duration::from_secs(3600);

/// The state of one endpoint of one account. `Default` is one that nobody has used.
#[derive(Debug, Clone, PartialEq)]
pub struct Gate {
    /// When it opens, if nothing is saved up for bursts.
    pub next_at: Timestamp,
    /// What distances are multiplied with, from 1 upwards.
    pub stretch: f64,
    /// The last refusal that widened it.
    pub refused_at: Timestamp,
    /// Nothing at all before this: a day's quota is used up.
    pub closed_until: Timestamp,
    /// When it was last asked, and who had the last turn.
    pub asked_at: Timestamp,
    pub taken_by: i64,
    /// The earliest that waits, and until when that is believed.
    pub first_who: i64,
    pub first_deadline: Timestamp,
    pub first_until: Timestamp,
}

impl Default for Gate {
    fn default() -> Self {
        let never = Timestamp(0);
        Self {
            next_at: never,
            stretch: 1.0,
            refused_at: never,
            closed_until: never,
            asked_at: never,
            taken_by: 0,
            first_who: 0,
            first_deadline: never,
            first_until: never,
        }
    }
}

/// One request that wants a turn. The same `who` and deadline at every try.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ask {
    pub who: i64,
    pub deadline: Timestamp,
    pub rule: Rule,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Send it now.
    Turn,
    /// Ask again after this long.
    Wait(Duration),
    /// The day's quota is used up, for this long.
    Closed(Duration),
}

/// Why a provider refused.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Refusal {
    TooOften {
        /// As the provider says; most do not.
        retry_after: Option<Duration>,
    },
    /// A day's quota; when it comes back, if that is said.
    Quota { resets_in: Option<Duration> },
}

impl Gate {
    /// Judges a request, and takes its turn if it has one. The store does the same in one
    /// statement; its contract tests hold the two together.
    pub fn ask(&mut self, ask: &Ask, now: Timestamp) -> Verdict {
        self.asked_at = now;
        if now < self.closed_until && self.closed_until <= now.plus(FARTHEST) {
            return Verdict::Closed(between(now, self.closed_until));
        }
        let opens = self.opens(ask, now);
        let mine = self.first_who == ask.who;
        let yields = !mine && now < self.first_until && self.first_deadline <= ask.deadline;
        if opens <= now && !yields {
            let distance = micros(ask.rule.interval) as f64 * self.stretch;
            self.next_at = Timestamp(now.0.max(self.believed(now).0) + distance.round() as i64);
            self.stretch = 1.0 + (self.stretch - 1.0) * KEEPS;
            self.taken_by = ask.who;
            if mine {
                self.first_until = Timestamp(0);
            }
            return Verdict::Turn;
        }
        if !yields {
            self.first_who = ask.who;
            self.first_deadline = ask.deadline;
            self.first_until = opens.max(now).plus(GRACE);
        }
        self.verdict(ask)
    }

    /// What the gate said to who asked last, read from the state it was left in.
    pub fn verdict(&self, ask: &Ask) -> Verdict {
        let now = self.asked_at;
        if self.taken_by == ask.who {
            return Verdict::Turn;
        }
        if now < self.closed_until && self.closed_until <= now.plus(FARTHEST) {
            return Verdict::Closed(between(now, self.closed_until));
        }
        let opens = self.opens(ask, now);
        // Open, and yielding: the one that goes first has until then to come.
        let until = if opens > now { opens } else { self.first_until };
        Verdict::Wait(between(now, until).max(Duration::from_millis(1)))
    }

    /// Takes note of a refusal. Several for one cause widen once.
    pub fn refused(&mut self, rule: Rule, refusal: Refusal, now: Timestamp) {
        match refusal {
            Refusal::Quota { resets_in } => {
                let left = resets_in.unwrap_or_else(|| until_midnight(now));
                self.closed_until = now.plus(left.min(FARTHEST));
            }
            Refusal::TooOften { retry_after } => {
                let distance = rule.interval.mul_f64(self.stretch);
                if now.0.saturating_sub(self.refused_at.0) >= micros(distance) || self.refused_at > now {
                    self.stretch = (self.stretch * WIDENS).min(WIDEST);
                    self.refused_at = now;
                }
                let asked = retry_after.unwrap_or_default().min(LONGEST_REFUSAL);
                let away = rule.interval.mul_f64(self.stretch).max(rule.penalty).max(asked);
                let saved = micros(rule.interval) as f64 * self.stretch * f64::from(rule.saved());
                let next = now.plus(away).0.saturating_add(saved.round() as i64);
                self.next_at = Timestamp(next.max(self.believed(now).0));
            }
        }
    }

    /// When this rule lets the next one through.
    fn opens(&self, ask: &Ask, now: Timestamp) -> Timestamp {
        let saved = micros(ask.rule.interval) as f64 * self.stretch * f64::from(ask.rule.saved());
        Timestamp(self.believed(now).0 - saved.round() as i64)
    }

    fn believed(&self, now: Timestamp) -> Timestamp {
        if self.next_at > now.plus(FARTHEST) {
            now
        } else {
            self.next_at
        }
    }
}

fn micros(d: Duration) -> i64 {
    i64::try_from(d.as_micros()).unwrap_or(i64::MAX)
}

fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::from_micros(to.0.saturating_sub(from.0).max(0).unsigned_abs())
}

/// Quotas are of days in UTC.
pub fn until_midnight(now: Timestamp) -> Duration {
    const DAY: i64 = 86_400_000_000;
    Duration::from_micros((DAY - now.0.rem_euclid(DAY)).unsigned_abs())
}
