//! `/tasks`.

use axum::{
    Json, Router,
    extract::{Path, State},
    response::Response,
    routing::get,
};
use serde_json::Value;

use super::{containers::log, error::Failure, request::ApiVersion};
use crate::management::{Management, params::Params};

pub(super) fn routes() -> Router<Management> {
    Router::new()
        .route("/tasks", get(list))
        .route("/tasks/{id}/logs", get(logs))
        .route("/tasks/{id}", get(inspect))
}

async fn list(
    State(management): State<Management>,
    params: Params,
) -> Result<Json<Value>, Failure> {
    std::future::ready(Ok(Json(management.task_list(&params)?))).await
}

async fn inspect(
    State(management): State<Management>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Failure> {
    std::future::ready(Ok(Json(management.task_inspect(&id)?))).await
}

async fn logs(
    State(management): State<Management>,
    Path(id): Path<String>,
    version: ApiVersion,
    params: Params,
) -> Result<Response, Failure> {
    let frames = management.task_log_frames(&id, &params).await?;
    Ok(log(frames, version))
}
