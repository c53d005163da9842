//! `/configs`.

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
        .route("/configs", get(list))
        .route("/configs/create", post(create))
        .route("/configs/{id}", get(inspect).delete(remove))
        .route("/configs/{id}/update", post(update))
}

async fn list(
    State(management): State<Management>,
    params: Params,
) -> Result<Json<Value>, Failure> {
    std::future::ready(Ok(Json(management.config_list(&params)?))).await
}

async fn inspect(
    State(management): State<Management>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Failure> {
    std::future::ready(Ok(Json(management.config_inspect(&id)?))).await
}

async fn create(
    State(management): State<Management>,
    Document(body): Document,
) -> Result<(StatusCode, Json<Value>), Failure> {
    let created = management.config_create(&body).await?;
    Ok((StatusCode::CREATED, Json(created)))
}

async fn update(
    State(management): State<Management>,
    Path(id): Path<String>,
    params: Params,
    Document(body): Document,
) -> Result<StatusCode, Failure> {
    management.config_update(&id, &params, &body).await?;
    Ok(StatusCode::OK)
}

async fn remove(
    State(management): State<Management>,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    management.config_remove(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}
