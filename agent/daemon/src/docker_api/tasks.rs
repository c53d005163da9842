//! `/tasks`.

use axum::{
    Json, Router,
    extract::{Path, State},
    routing::get,
};
use serde_json::Value;

use super::error::Failure;
use crate::management::{Management, params::Params};

pub(super) fn routes() -> Router<Management> {
    Router::new()
        .route("/tasks", get(list))
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
