//! `/secrets`.

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
        .route("/secrets", get(list))
        .route("/secrets/create", post(create))
        .route("/secrets/{id}", get(inspect).delete(remove))
        .route("/secrets/{id}/update", post(update))
}

async fn list(
    State(management): State<Management>,
    params: Params,
) -> Result<Json<Value>, Failure> {
    std::future::ready(Ok(Json(management.secret_list(&params)?))).await
}

async fn inspect(
    State(management): State<Management>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Failure> {
    std::future::ready(Ok(Json(management.secret_inspect(&id)?))).await
}

async fn create(
    State(management): State<Management>,
    Document(body): Document,
) -> Result<(StatusCode, Json<Value>), Failure> {
    let created = management.secret_create(&body).await?;
    Ok((StatusCode::CREATED, Json(created)))
}

async fn update(
    State(management): State<Management>,
    Path(id): Path<String>,
    params: Params,
    Document(body): Document,
) -> Result<StatusCode, Failure> {
    management.secret_update(&id, &params, &body).await?;
    Ok(StatusCode::OK)
}

async fn remove(
    State(management): State<Management>,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    management.secret_remove(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}
