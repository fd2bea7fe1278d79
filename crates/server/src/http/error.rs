//! Errors as the API shows them: a code for scripts, a message, and what to try next.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use dumont_core::id::InvalidName;
use dumont_core::spec::InvalidSpec;
use dumont_store::Error as StoreError;
use dumont_wire::rest::{ErrorBody, InTheWay, WorkflowKind};

/// An error with its HTTP status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    pub status: StatusCode,
    pub body: ErrorBody,
}

pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    pub fn new(status: StatusCode, code: &str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            status,
            body: ErrorBody::new(code, message, hint),
        }
    }

    pub fn invalid(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", message, hint)
    }

    pub fn not_found(what: &str, name: &str, hint: impl Into<String>) -> Self {
        let code = format!("{what}_not_found");
        Self::new(
            StatusCode::NOT_FOUND,
            &code,
            format!("there is no {what} {name:?}"),
            hint,
        )
    }

    pub fn conflict(code: &str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, message, hint)
    }

    /// Another workflow works on the workspace: which, for whoever wants to wait.
    pub fn busy(workspace: &str, id: &str, kind: WorkflowKind) -> Self {
        let mut error = Self::conflict(
            "workspace_busy",
            format!("a {kind} works on workspace {workspace:?} already ({id})"),
            format!("wait for it: GET /api/v1/workflows/{id}"),
        );
        let id = id.to_owned();
        error.body.workflow = Some(InTheWay { id, kind });
        error
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            message,
            "look at the server's log and at the state of what you called, then repeat",
        )
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status.is_server_error() {
            tracing::error!(code = %self.body.code, "{}", self.body.message);
        }
        (self.status, Json(self.body)).into_response()
    }
}

impl From<StoreError> for ApiError {
    fn from(e: StoreError) -> Self {
        match e {
            StoreError::NotFound { what, id } => {
                Self::not_found(what, &id, "it may have been removed meanwhile")
            }
            StoreError::Conflict { .. } | StoreError::Stale { .. } => {
                Self::conflict("conflict", e.to_string(), "look at its state and try again")
            }
            StoreError::Unavailable(_) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "database_unavailable",
                "the database does not answer",
                "repeat the request when it is back; what runs goes on by itself then",
            ),
            other => Self::internal(format!("the database failed: {other}")),
        }
    }
}

impl From<InvalidName> for ApiError {
    fn from(e: InvalidName) -> Self {
        Self::invalid(format!("{} {:?} is not valid", e.what, e.value), e.rule)
    }
}

impl From<InvalidSpec> for ApiError {
    fn from(e: InvalidSpec) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "invalid_spec",
            e.to_string(),
            format!("change the field {:?} and try again", e.field),
        )
    }
}
