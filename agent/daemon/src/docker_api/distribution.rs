//! `/distribution/{name}/json`: what the registry says of an image. The client asks before it creates a
//! service, to pin the digest; it only warns if there is no answer.

use axum::{
    Json, Router,
    extract::{Path, State},
    routing::get,
};
use serde_json::Value;
use skep_core::api::ApiError;

use super::error::Failure;
use crate::management::Management;

pub(super) fn routes() -> Router<Management> {
    Router::new().route("/distribution/{*name}", get(resolve))
}

async fn resolve(
    State(management): State<Management>,
    Path(rest): Path<String>,
) -> Result<Json<Value>, Failure> {
    let name = rest.strip_suffix("/json").ok_or(ApiError::NotFound {
        kind: "page",
        reference: rest.clone(),
    })?;
    Ok(Json(management.image_resolve(name).await?))
}
