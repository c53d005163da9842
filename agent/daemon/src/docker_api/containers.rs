//! `/containers`: this node's own.

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, State},
    http::header,
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::Value;

use super::{error::Failure, request::ApiVersion};
use skep_host::clock;

use crate::management::{Management, logs::FrameStream, params::Params};

pub(super) fn routes() -> Router<Management> {
    Router::new()
        .route("/containers/json", get(list))
        .route("/containers/{id}/json", get(inspect))
        .route("/containers/{id}/logs", get(logs))
}

async fn list(
    State(management): State<Management>,
    params: Params,
) -> Result<Json<Value>, Failure> {
    Ok(Json(
        management
            .container_list(&params, clock::timestamp())
            .await?,
    ))
}

async fn inspect(
    State(management): State<Management>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Failure> {
    Ok(Json(management.container_inspect(&id).await?))
}

async fn logs(
    State(management): State<Management>,
    Path(id): Path<String>,
    version: ApiVersion,
    params: Params,
) -> Result<Response, Failure> {
    let frames = management.container_log_frames(&id, &params).await?;
    Ok(log(frames, version))
}

/// A log as the body of an answer.
pub(super) fn log(frames: FrameStream, version: ApiVersion) -> Response {
    let kind = if version >= ApiVersion(1, 42) {
        "application/vnd.docker.multiplexed-stream"
    } else {
        "application/vnd.docker.raw-stream"
    };
    ([(header::CONTENT_TYPE, kind)], Body::from_stream(frames)).into_response()
}
