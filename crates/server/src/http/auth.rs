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
use dumont_store::{Store, TokenRow};
use rand::Rng;
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Arc;
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
    let name = check(&app.store, token.trim()).await?.name;
    request.extensions_mut().insert(Caller { name });
    Ok(next.run(request).await)
}

async fn check(store: &Store, token: &str) -> Result<TokenRow, ApiError> {
    let wrong = || refused("token_invalid", "the token is not known to this server");
    let (id, secret) = token
        .strip_prefix(PREFIX)
        .and_then(|t| t.split_once('_'))
        .ok_or_else(wrong)?;
    let row = store
        .token(id)
        .await
        .map_err(|e| ApiError::internal(e.to_string()))?
        .ok_or_else(wrong)?;
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
/// the database does not know (it was moved or made anew) is replaced.
pub async fn ensure_admin(
    store: &Store,
    file: &Path,
    now: dumont_core::time::Timestamp,
) -> Result<(), String> {
    if let Ok(token) = std::fs::read_to_string(file)
        && check(store, token.trim()).await.is_ok()
    {
        return Ok(());
    }
    let mut secret = [0_u8; 32];
    rand::rng().fill_bytes(&mut secret);
    let (id, secret) = (Ulid::generate().to_string(), hex::encode(secret));
    store
        .insert_token(&id, "admin", &hash(&secret), now)
        .await
        .map_err(|e| e.to_string())?;
    write_private(file, format!("{PREFIX}{id}_{secret}\n").as_bytes())
        .map_err(|e| format!("cannot write {}: {e}", file.display()))
}
