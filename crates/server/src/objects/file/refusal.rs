//! Answers that are not a success. Hosts see them, so they name nothing of this machine; what
//! the operator has to know goes to the log.

use crate::objects::ObjectError;
use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use dumont_wire::rest::ErrorBody;

/// Status and JSON body of an error.
pub struct Refusal {
    status: StatusCode,
    body: ErrorBody,
}

impl Refusal {
    pub fn new(status: StatusCode, code: &str, message: String, hint: &str) -> Self {
        Self {
            status,
            body: ErrorBody::new(code, message, hint),
        }
    }

    pub fn signature() -> Self {
        let message = "the signature does not allow this act on this object".into();
        Self::new(
            StatusCode::FORBIDDEN,
            "bad_signature",
            message,
            "use the URL as the controller gave it",
        )
    }

    pub fn size(size: u64) -> Self {
        let message = format!("the grant is for exactly {size} bytes");
        Self::new(
            StatusCode::BAD_REQUEST,
            "size_mismatch",
            message,
            "send the object as it was announced",
        )
    }

    pub fn broken(what: &str) -> Self {
        let message = format!("the upload broke off: {what}");
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "upload_broken",
            message,
            "send it again with the same URL",
        )
    }
}

impl From<ObjectError> for Refusal {
    fn from(e: ObjectError) -> Self {
        let (status, code, hint) = match &e {
            ObjectError::Missing(_) => (StatusCode::NOT_FOUND, "object_missing", "check the key"),
            ObjectError::Exists(_) => (
                StatusCode::CONFLICT,
                "object_exists",
                "ask for a grant under a new key",
            ),
            ObjectError::InvalidKey(_) => (
                StatusCode::BAD_REQUEST,
                "invalid_key",
                "use a key the controller gave",
            ),
            // The last two are no errors of files; a router is of one store only.
            ObjectError::Full(_) | ObjectError::Io(_) | ObjectError::Store(_) | ObjectError::Database(_) => {
                tracing::error!(error = %e, "the object store failed");
                return match e {
                    ObjectError::Full(_) => Self::new(
                        StatusCode::INSUFFICIENT_STORAGE,
                        "store_full",
                        "no space left in the object store".into(),
                        "free some space in the controller's data directory",
                    ),
                    _ => Self::new(
                        StatusCode::INTERNAL_SERVER_ERROR,
                        "store_failed",
                        "the object store cannot read or write".into(),
                        "see the controller's log",
                    ),
                };
            }
        };
        Self::new(status, code, e.to_string(), hint)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}
