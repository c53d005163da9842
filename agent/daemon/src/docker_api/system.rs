//! `/_ping`, `/version`, `/info`.

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderName, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::Value;

use crate::management::Management;

pub(super) fn routes() -> Router<Management> {
    Router::new()
        .route("/_ping", get(ping))
        .route("/version", get(version))
        .route("/info", get(info))
}

async fn ping(State(management): State<Management>) -> Response {
    let swarm = (HeaderName::from_static("swarm"), management.swarm_header());
    let headers = [
        (header::CACHE_CONTROL, "no-cache, no-store, must-revalidate"),
        (header::PRAGMA, "no-cache"),
        (HeaderName::from_static("builder-version"), "1"),
    ];
    std::future::ready((headers, [swarm], "OK").into_response()).await
}

async fn version(State(management): State<Management>) -> Json<Value> {
    std::future::ready(Json(management.version())).await
}

async fn info(State(management): State<Management>) -> Json<Value> {
    Json(management.info().await)
}
