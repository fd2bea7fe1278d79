//! API tokens: only the hash of the secret is kept, found by the token's id.

use crate::column::{args, record};
use crate::engine::{statements, transact};
use crate::{Error, Page, Result, Store};
use dumont_core::time::Timestamp;

statements! {
    INSERT: ["INSERT INTO tokens (id, name, hash, created_at) VALUES ($1, $2, $3, $4) \
              ON CONFLICT (id) DO NOTHING"];
    GET: ["SELECT * FROM tokens WHERE id = $1"];
    LIST: ["SELECT * FROM tokens WHERE id > $1 ORDER BY id LIMIT $2"];
    IN_FORCE: ["SELECT * FROM tokens WHERE revoked_at IS NULL ORDER BY id" FOR_UPDATE];
    REVOKE: ["UPDATE tokens SET revoked_at = COALESCE(revoked_at, $2) WHERE id = $1"];
    TOUCH: ["UPDATE tokens SET last_used_at = $2 WHERE id = $1"];
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRow {
    pub id: String,
    pub name: String,
    pub hash: Vec<u8>,
    pub created_at: Timestamp,
    pub revoked_at: Option<Timestamp>,
    pub last_used_at: Option<Timestamp>,
}
record!(TokenRow {
    id,
    name,
    hash,
    created_at,
    revoked_at,
    last_used_at
});

impl Store {
    pub async fn insert_token(&self, id: &str, name: &str, hash: &[u8], now: Timestamp) -> Result<()> {
        match self.db.run(INSERT, args![id, name, hash, now]).await? {
            0 => Err(Error::conflict("token", id)),
            _ => Ok(()),
        }
    }

    /// Revoked ones too: the caller says why it refuses.
    pub async fn token(&self, id: &str) -> Result<Option<TokenRow>> {
        self.db.first(GET, args![id]).await
    }

    pub async fn list_tokens(&self, after: Option<&str>, limit: u32) -> Result<Page<TokenRow>> {
        let rows = self
            .db
            .all(LIST, args![after.unwrap_or(""), u64::from(limit) + 1])
            .await?;
        Ok(Page::cut(rows, limit, |t: &TokenRow| t.id.clone()))
    }

    /// Keeps the time of the first revocation.
    pub async fn revoke_token(&self, id: &str, now: Timestamp) -> Result<()> {
        match self.db.run(REVOKE, args![id, now]).await? {
            0 => Err(Error::not_found("token", id)),
            _ => Ok(()),
        }
    }

    /// Repeatable. `Conflict` if no other token would be left in force.
    pub async fn revoke_token_unless_last(&self, id: &str, now: Timestamp) -> Result<TokenRow> {
        transact!(self.db, |tx| {
            // All are locked: two that revoke each other's must not both find one left.
            let in_force: Vec<TokenRow> = tx.all(IN_FORCE, args![]).await?;
            if in_force.len() == 1 && in_force.iter().all(|t| t.id == id) {
                return Err(Error::conflict("last token in force", id));
            }
            tx.run(REVOKE, args![id, now]).await?;
            let row: Option<TokenRow> = tx.first(GET, args![id]).await?;
            row.ok_or_else(|| Error::not_found("token", id))
        })
    }

    /// A write: the caller does it once in a while, not at every request.
    pub async fn touch_token(&self, id: &str, now: Timestamp) -> Result<()> {
        self.db.run(TOUCH, args![id, now]).await.map(drop)
    }
}
