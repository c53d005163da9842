//! `/nodes`.

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    routing::{get, post},
};
use serde_json::Value;

use super::{error::Failure, request::Document};
use crate::management::{Management, params::Params};

pub(super) fn routes() -> Router<Management> {
    Router::new()
        .route("/nodes", get(list))
        .route("/nodes/{id}", get(inspect).delete(remove))
        .route("/nodes/{id}/update", post(update))
}

async fn list(
    State(management): State<Management>,
    params: Params,
) -> Result<Json<Value>, Failure> {
    std::future::ready(Ok(Json(management.node_list(&params)?))).await
}

async fn inspect(
    State(management): State<Management>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Failure> {
    std::future::ready(Ok(Json(management.node_inspect(&id)?))).await
}

async fn remove(
    State(management): State<Management>,
    Path(id): Path<String>,
    params: Params,
) -> Result<StatusCode, Failure> {
    management.node_remove(&id, &params).await?;
    Ok(StatusCode::OK)
}

async fn update(
    State(management): State<Management>,
    Path(id): Path<String>,
    params: Params,
    Document(body): Document,
) -> Result<StatusCode, Failure> {
    management.node_update(&id, &params, &body).await?;
    Ok(StatusCode::OK)
}
