//! `/tokens`: who may use this API.
//!
//! Every token may do everything; one per person and per program is what makes it possible to
//! take one away. The secret is in the answer that makes it and nowhere else. The last token in
//! force cannot be revoked, so that nobody is locked out by a slip; who has lost every token
//! starts the server again: it puts a new one into its data directory (`auth::ensure_admin`).

use super::auth::mint;
use super::body::Body;
use super::error::{ApiError, ApiResult};
use super::params::{Params, Path, limit};
use crate::app::App;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use dumont_store::{Error as StoreError, TokenRow};
use dumont_wire::rest::{CreateToken, ErrorBody, NewToken, Page, PageQuery, Token};
use std::sync::Arc;

/// Tokens, oldest first, revoked ones too; never their secrets.
#[utoipa::path(
    get,
    path = "/tokens",
    tag = "tokens",
    params(PageQuery),
    responses((status = 200, description = "One page", body = Page<Token>)),
)]
pub async fn list(
    State(app): State<Arc<App>>,
    Params(page): Params<PageQuery>,
) -> ApiResult<Json<Page<Token>>> {
    let rows = app
        .store
        .list_tokens(page.after.as_deref(), limit(&page)?)
        .await?;
    Ok(Json(Page {
        items: rows.items.into_iter().map(shown).collect(),
        next: rows.next,
    }))
}

/// Makes a token. It is shown in this answer and never again.
#[utoipa::path(
    post,
    path = "/tokens",
    tag = "tokens",
    request_body = CreateToken,
    responses((status = 201, description = "The token", body = NewToken)),
)]
pub async fn create(
    State(app): State<Arc<App>>,
    Body(wanted): Body<CreateToken>,
) -> ApiResult<(StatusCode, Json<NewToken>)> {
    let name = wanted.name;
    if name.trim().is_empty() || name.chars().count() > 100 || name.chars().any(char::is_control) {
        return Err(ApiError::invalid(
            "name must be 1 to 100 characters without control characters",
            "say whose it is, e.g. ci or anna-laptop",
        ));
    }
    let now = app.now();
    let minted = mint();
    app.store
        .insert_token(&minted.id, &name, &minted.hash, now)
        .await?;
    let created = NewToken {
        id: minted.id,
        name,
        token: minted.token,
        created_at: now,
    };
    Ok((StatusCode::CREATED, Json(created)))
}

/// Takes a token out of force, from the next request on.
#[utoipa::path(
    delete,
    path = "/tokens/{id}",
    tag = "tokens",
    params(("id" = String, Path)),
    responses(
        (status = 200, description = "The token, revoked now or before", body = Token),
        (status = 409, description = "It is the last one in force", body = ErrorBody),
    ),
)]
pub async fn revoke(State(app): State<Arc<App>>, Path(id): Path<String>) -> ApiResult<Json<Token>> {
    let revoked = app.store.revoke_token_unless_last(&id, app.now()).await;
    match revoked {
        Ok(row) => Ok(Json(shown(row))),
        Err(StoreError::Conflict { .. }) => Err(ApiError::conflict(
            "last_token",
            "this is the last token in force; without it nobody could use the API",
            "make another one first: dumont token create NAME",
        )),
        Err(StoreError::NotFound { .. }) => Err(ApiError::not_found(
            "token",
            &id,
            "`dumont token list` shows those there are",
        )),
        Err(other) => Err(other.into()),
    }
}

fn shown(row: TokenRow) -> Token {
    Token {
        id: row.id,
        name: row.name,
        created_at: row.created_at,
        last_used_at: row.last_used_at,
        revoked_at: row.revoked_at,
    }
}
