//! What rented machines have cost, by workspace.
//!
//! Nothing is booked: an instance's row has its price and its times, every change of the price is
//! written beside it, and a sum over the rows of this month is right after any crash: each life at
//! the price of now, and for each change what it cost more or less before. One that is being destroyed costs until it is seen to be
//! gone; a rent that nobody has confirmed costs nothing yet, but its hour is counted.

use crate::column::{args, record};
use crate::engine::statements;
use crate::{Result, Store};
use dumont_core::spending::Spent;
use dumont_core::time::Timestamp;

statements! {
    // $1: the month's begin, $2: the day's, $3: now.
    SPENT: ["WITH lives AS (SELECT key, workspace_id, price, 1 AS open, \
             CASE WHEN instance_id IS NULL THEN $3 ELSE COALESCE(rented_at, created_at) END AS began, $3 AS ended \
             FROM instances WHERE state <> 'destroyed' AND NOT (state = 'failed' AND instance_id IS NULL) \
             UNION ALL SELECT key, workspace_id, price, 0 AS open, COALESCE(rented_at, created_at) AS began, \
             destroyed_at AS ended FROM instances WHERE destroyed_at > $1 AND instance_id IS NOT NULL), \
             spans AS (SELECT workspace_id, price, open, began, ended FROM lives \
             UNION ALL SELECT l.workspace_id, p.was - p.price AS price, 0 AS open, l.began, \
             CASE WHEN p.since < l.ended THEN p.since ELSE l.ended END AS ended \
             FROM lives l JOIN instance_prices p ON p.instance_key = l.key) \
             SELECT w.name AS workspace, CAST(SUM(c.month_micros * c.price) / 3600e6 AS DOUBLE PRECISION) AS this_month, \
             CAST(SUM(c.day_micros * c.price) / 3600e6 AS DOUBLE PRECISION) AS today, \
             CAST(SUM(CASE WHEN c.open = 1 THEN c.price ELSE 0 END) AS DOUBLE PRECISION) AS per_hour \
             FROM (SELECT workspace_id, price, open, \
             CASE WHEN began >= ended OR ended <= $1 THEN 0 WHEN began > $1 THEN ended - began ELSE ended - $1 END AS month_micros, \
             CASE WHEN began >= ended OR ended <= $2 THEN 0 WHEN began > $2 THEN ended - began ELSE ended - $2 END AS day_micros \
             FROM spans) AS c \
             JOIN workspaces w ON w.id = c.workspace_id GROUP BY w.name ORDER BY this_month DESC, w.name"];
}

/// Of one workspace's machines; deleted workspaces of one name are added up.
#[derive(Debug, Clone, PartialEq)]
pub struct SpentBy {
    pub workspace: String,
    pub today: f64,
    pub this_month: f64,
    pub per_hour: f64,
}
record!(SpentBy {
    workspace,
    today,
    this_month,
    per_hour
});

impl SpentBy {
    /// Dollars of all of them.
    pub fn total(rows: &[Self]) -> Spent {
        rows.iter().fold(Spent::default(), |sum, row| Spent {
            today: sum.today + row.today,
            this_month: sum.this_month + row.this_month,
            per_hour: sum.per_hour + row.per_hour,
        })
    }
}

impl Store {
    /// Dollars by workspace, the most expensive first.
    pub async fn spending(&self, now: Timestamp) -> Result<Vec<SpentBy>> {
        self.db
            .all(SPENT, args![now.month_start(), now.day_start(), now])
            .await
    }

    /// Dollars of everything.
    pub async fn spent(&self, now: Timestamp) -> Result<Spent> {
        Ok(SpentBy::total(&self.spending(now).await?))
    }
}
