//! Bearer tokens: `dmt_{id}_{secret}`, found by id, compared by hash.
//!
//! The secret is 256 random bits, so a plain SHA-256 is enough and costs nothing per request;
//! a slow hash is for passwords that people choose.

use super::error::ApiError;
use crate::app::App;
use crate::files::write_private;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use dumont_core::time::Timestamp;
use dumont_store::{Store, TokenRow};
use rand::Rng;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use subtle::ConstantTimeEq;
use ulid::Ulid;

const PREFIX: &str = "dmt_";

/// Whose token a request carries; what is written down names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub name: String,
}

/// Lets a request through if it carries a token that is in force.
pub async fn require(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let given = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|v| v.to_str().ok());
    let Some(token) = given.and_then(|v| v.strip_prefix("Bearer ")) else {
        return Err(refused("token_missing", "the request carries no token"));
    };
    let row = check(&app.store, token.trim()).await?;
    app.token_uses.note(&app, &row).await;
    request.extensions_mut().insert(Caller { name: row.name });
    Ok(next.run(request).await)
}

/// When each token was last written down as used.
#[derive(Debug, Default)]
pub struct Uses(Mutex<HashMap<String, Timestamp>>);

/// A token that is used all the time is written down this often: no write per request.
const NOTE_EVERY: Duration = Duration::from_secs(60);

impl Uses {
    async fn note(&self, app: &App, row: &TokenRow) {
        let now = app.now();
        let due = |last: Option<Timestamp>| last.is_none_or(|t| t.plus(NOTE_EVERY) <= now);
        {
            let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if !due(row.last_used_at) || !due(noted.get(&row.id).copied()) {
                return;
            }
            // Before the write: of many requests at once, one writes.
            noted.insert(row.id.clone(), now);
        }
        if let Err(error) = app.store.touch_token(&row.id, now).await {
            tracing::warn!(token = %row.id, %error, "cannot note the use of a token");
        }
    }
}

async fn check(store: &Store, token: &str) -> Result<TokenRow, ApiError> {
    let wrong = || refused("token_invalid", "the token is not known to this server");
    let (id, secret) = token
        .strip_prefix(PREFIX)
        .and_then(|t| t.split_once('_'))
        .ok_or_else(wrong)?;
    let row = store.token(id).await?.ok_or_else(wrong)?;
    if !bool::from(hash(secret).ct_eq(&row.hash)) {
        return Err(wrong());
    }
    if row.revoked_at.is_some() {
        return Err(refused("token_revoked", "the token was revoked"));
    }
    Ok(row)
}

fn refused(code: &str, message: &str) -> ApiError {
    ApiError::new(
        StatusCode::UNAUTHORIZED,
        code,
        message,
        "send `Authorization: Bearer TOKEN`; the first token is in admin.token in the server's data directory",
    )
}

fn hash(secret: &str) -> Vec<u8> {
    Sha256::digest(secret.as_bytes()).to_vec()
}

/// The first run writes an admin token that only its owner can read. A token file whose token
/// is not in force (the database was moved or made anew, the token was revoked) is replaced:
/// who may start the server may use it, and nobody stays locked out.
pub async fn ensure_admin(store: &Store, file: &Path, now: Timestamp) -> Result<(), String> {
    if let Ok(token) = std::fs::read_to_string(file)
        && check(store, token.trim()).await.is_ok()
    {
        return Ok(());
    }
    let minted = mint();
    store
        .insert_token(&minted.id, "admin", &minted.hash, now)
        .await
        .map_err(|e| e.to_string())?;
    write_private(file, format!("{}\n", minted.token).as_bytes())
        .map_err(|e| format!("cannot write {}: {e}", file.display()))
}

/// A new token, not yet known to the database.
pub struct Minted {
    pub id: String,
    pub hash: Vec<u8>,
    /// What its owner sends.
    pub token: String,
}

pub fn mint() -> Minted {
    let mut secret = [0_u8; 32];
    rand::rng().fill_bytes(&mut secret);
    let (id, secret) = (Ulid::generate().to_string(), hex::encode(secret));
    Minted {
        hash: hash(&secret),
        token: format!("{PREFIX}{id}_{secret}"),
        id,
    }
}
