//! `/images`: this node's own.

use axum::{
    Json, Router,
    extract::{Path, Request, State},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::Value;

use super::{error::Failure, unsupported};
use crate::management::Management;

pub(super) fn routes() -> Router<Management> {
    Router::new()
        .route("/images/json", get(list))
        .route("/images/{*name}", get(inspect))
}

async fn list(State(management): State<Management>) -> Result<Json<Value>, Failure> {
    Ok(Json(management.image_list().await?))
}

/// `/images/{name}/json`; a name has slashes.
async fn inspect(
    State(management): State<Management>,
    Path(rest): Path<String>,
    request: Request,
) -> Response {
    match rest.strip_suffix("/json") {
        Some(name) => match management.image_inspect(name).await {
            Ok(document) => Json(document).into_response(),
            Err(error) => Failure(error).into_response(),
        },
        None => unsupported::fallback(request).await,
    }
}
