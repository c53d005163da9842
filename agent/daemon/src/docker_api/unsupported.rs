//! What Docker has and Skep does not have (yet): empty where that is the truth, «not found» for the
//! probes of `docker inspect`, else 501 with its name.

use axum::{
    Json, Router,
    extract::{Path, Request},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::{Value, json};
use skep_core::api::ApiError;

use super::error::Failure;
use crate::management::Management;

/// First parts of the paths that Docker serves.
const KNOWN: [&str; 20] = [
    "auth",
    "build",
    "commit",
    "configs",
    "containers",
    "distribution",
    "events",
    "exec",
    "grpc",
    "images",
    "networks",
    "nodes",
    "plugins",
    "secrets",
    "services",
    "session",
    "swarm",
    "system",
    "tasks",
    "volumes",
];

pub(super) fn routes() -> Router<Management> {
    Router::new()
        .route("/plugins", get(nothing))
        .route("/plugins/{name}/json", get(no_plugin))
        .route("/volumes/{name}", get(no_volume))
}

async fn nothing() -> Json<Value> {
    std::future::ready(Json(json!([]))).await
}

async fn no_plugin(Path(name): Path<String>) -> Failure {
    std::future::ready(not_found("plugin", name)).await
}

async fn no_volume(Path(name): Path<String>) -> Failure {
    std::future::ready(not_found("volume", name)).await
}

fn not_found(kind: &'static str, reference: String) -> Failure {
    Failure(ApiError::NotFound { kind, reference })
}

/// Everything that no route takes.
pub(super) async fn fallback(request: Request) -> Response {
    let path = request.uri().path();
    let first = path.trim_start_matches('/').split('/').next();
    let response = if first.is_some_and(|first| KNOWN.contains(&first)) {
        let name: String = path.chars().take(120).collect();
        Failure(ApiError::Unsupported(format!(
            "{} {name}",
            request.method()
        )))
        .into_response()
    } else {
        let message = Json(json!({ "message": "page not found" }));
        (StatusCode::NOT_FOUND, message).into_response()
    };
    std::future::ready(response).await
}
