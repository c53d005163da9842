//! Errors as the Engine API has them: a status and `{"message": …}`.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::json;
use skep_core::api::ApiError;

/// An error on its way to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure(pub ApiError);

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let message = json!({ "message": self.0.to_string() });
        (status(&self.0), Json(message)).into_response()
    }
}

/// Docker's status for an error.
fn status(error: &ApiError) -> StatusCode {
    match error {
        ApiError::NotFound { .. } => StatusCode::NOT_FOUND,
        ApiError::Ambiguous { .. } | ApiError::Invalid { .. } | ApiError::Precondition(_) => {
            StatusCode::BAD_REQUEST
        }
        ApiError::Unsupported(_) => StatusCode::NOT_IMPLEMENTED,
        ApiError::Conflict(_) => StatusCode::CONFLICT,
        ApiError::OutOfSequence => StatusCode::INTERNAL_SERVER_ERROR,
        ApiError::Unauthorized(_) => StatusCode::UNAUTHORIZED,
        ApiError::Forbidden(_) => StatusCode::FORBIDDEN,
        ApiError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}
