//! The shared budget of a provider's account: who may send the next request.
//!
//! A turn is taken by one statement, on the database's clock, so that replicas need not agree on
//! the time and a turn costs one round trip. In SQLite it does not wait for the disk, since a power cut
//! takes longer than most distances: what is lost then is a turn, and what was learnt of refusals and
//! quotas is written as everything else. It decides as [`Gate::ask`] does, which the contract
//! suite holds it to; refusals are rare and let `core` decide.

use crate::column::{Column, Record, args};
use crate::engine::{Row, statements, transact};
use crate::{Error, Result, Store};
use dumont_core::budget::{Ask, Endpoint, FARTHEST, GRACE, Gate, KEEPS, Refusal, Rule};
use dumont_core::time::Timestamp;

statements! {
    INSERT: ["INSERT INTO provider_gates (provider, account, endpoint, next_at, stretch, refused_at, closed_until, \
              taken_by, first_who, first_deadline, first_until, asked_at) VALUES ($1, $2, $3, 0, 1.0, 0, 0, 0, 0, 0, 0, 0) \
              ON CONFLICT (provider, account, endpoint) DO NOTHING"];
    // $4 who, $5 deadline, $6 interval, $7 saved turns, $8 keeps, $9 grace, $10 farthest. The inner
    // selects exist to read the clock once: each column below is a function of `c`.
    ASK: ["UPDATE provider_gates SET (next_at, stretch, taken_by, first_who, first_deadline, first_until, asked_at) = ( \
           SELECT CASE WHEN turn THEN CASE WHEN believed > now THEN believed ELSE now END + distance ELSE next_at END, \
                  CASE WHEN turn THEN 1.0 + (stretch - 1.0) * $8 ELSE stretch END, \
                  CASE WHEN turn THEN $4 ELSE taken_by END, \
                  CASE WHEN marks THEN $4 ELSE first_who END, \
                  CASE WHEN marks THEN $5 ELSE first_deadline END, \
                  CASE WHEN marks THEN CASE WHEN opens > now THEN opens ELSE now END + $9 \
                       WHEN turn AND first_who = $4 THEN 0 ELSE first_until END, \
                  now \
           FROM (SELECT now, believed, distance, opens, \
                        NOT closed AND opens <= now AND NOT yields AS turn, \
                        NOT closed AND opens > now AND NOT yields AS marks \
                 FROM (SELECT now, believed, CAST(ROUND($6 * stretch) AS BIGINT) AS distance, \
                              believed - CAST(ROUND($6 * stretch * $7) AS BIGINT) AS opens, \
                              closed_until > now AND closed_until <= now + $10 AS closed, \
                              first_who <> $4 AND first_until > now AND first_deadline <= $5 AS yields \
                       FROM (SELECT now, CASE WHEN next_at > now + $10 THEN now ELSE next_at END AS believed \
                             FROM (SELECT " NOW " AS now) AS clock) AS a) AS b) AS c) \
           WHERE provider = $1 AND account = $2 AND endpoint = $3 \
           RETURNING next_at, stretch, refused_at, closed_until, taken_by, first_who, first_deadline, first_until, \
                     asked_at"];
    GET: ["SELECT next_at, stretch, refused_at, closed_until, taken_by, first_who, first_deadline, first_until, \
           asked_at FROM provider_gates WHERE provider = $1 AND account = $2 AND endpoint = $3"];
    LOCK: ["SELECT next_at, stretch, refused_at, closed_until, taken_by, first_who, first_deadline, first_until, "
           NOW " AS asked_at FROM provider_gates WHERE provider = $1 AND account = $2 AND endpoint = $3" FOR_UPDATE];
    REFUSED: ["UPDATE provider_gates SET next_at = $4, stretch = $5, refused_at = $6, closed_until = $7 \
               WHERE provider = $1 AND account = $2 AND endpoint = $3"];
}

/// An account at a provider, by a name that does not give its key away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub provider: String,
    pub name: String,
}

impl Record for Gate {
    fn read(row: &Row) -> Result<Self> {
        let at = |column| Timestamp::read(row, column);
        Ok(Self {
            next_at: at("next_at")?,
            stretch: f64::read(row, "stretch")?,
            refused_at: at("refused_at")?,
            closed_until: at("closed_until")?,
            asked_at: at("asked_at")?,
            taken_by: i64::read(row, "taken_by")?,
            first_who: i64::read(row, "first_who")?,
            first_deadline: at("first_deadline")?,
            first_until: at("first_until")?,
        })
    }
}

impl Store {
    /// Asks for a turn, and takes it if it is there; [`Gate::verdict`] reads which. A turn whose
    /// reply is lost is lost. Who asks may look away at any moment: no other writer waits for that.
    pub async fn ask_gate(&self, account: &Account, endpoint: Endpoint, ask: &Ask) -> Result<Gate> {
        loop {
            let args = args![
                &account.provider,
                &account.name,
                endpoint.as_str(),
                ask.who,
                ask.deadline,
                ask.rule.interval.as_micros() as i64,
                ask.rule.saved(),
                KEEPS,
                GRACE.as_micros() as i64,
                FARTHEST.as_micros() as i64,
            ];
            if let Some(gate) = self.db.change_unsynced(ASK, args).await?.pop() {
                return Ok(gate);
            }
            let key = args![&account.provider, &account.name, endpoint.as_str()];
            self.db.change_unsynced::<Gate>(INSERT, key).await?;
        }
    }

    /// Lets all replicas know of a refusal.
    pub async fn gate_refused(
        &self,
        account: &Account,
        endpoint: Endpoint,
        rule: Rule,
        refusal: Refusal,
    ) -> Result<()> {
        let key = || args![&account.provider, &account.name, endpoint.as_str()];
        self.db.run(INSERT, key()).await?;
        transact!(self.db, |tx| {
            let Some(mut gate) = tx.first::<Gate>(LOCK, key()).await? else {
                return Err(Error::not_found("gate", endpoint.as_str()));
            };
            // It was asked now: so the database's clock came along.
            gate.refused(rule, refusal, gate.asked_at);
            let mut args = key();
            args.extend(args![
                gate.next_at,
                gate.stretch,
                gate.refused_at,
                gate.closed_until
            ]);
            tx.run(REFUSED, args).await.map(drop)
        })
    }

    /// A gate as it stands, for whoever looks after it.
    pub async fn gate(&self, account: &Account, endpoint: Endpoint) -> Result<Option<Gate>> {
        let key = args![&account.provider, &account.name, endpoint.as_str()];
        self.db.first(GET, key).await
    }
}
