//! `/networks`.

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
        .route("/networks", get(list))
        .route("/networks/create", post(create))
        .route("/networks/{id}", get(inspect).delete(remove))
}

async fn list(
    State(management): State<Management>,
    params: Params,
) -> Result<Json<Value>, Failure> {
    std::future::ready(Ok(Json(management.network_list(&params)?))).await
}

async fn inspect(
    State(management): State<Management>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Json<Value>, Failure> {
    Ok(Json(management.network_inspect(&id, &params).await?))
}

async fn create(
    State(management): State<Management>,
    Document(body): Document,
) -> Result<(StatusCode, Json<Value>), Failure> {
    let created = management.network_create(&body).await?;
    Ok((StatusCode::CREATED, Json(created)))
}

async fn remove(
    State(management): State<Management>,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    management.network_remove(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}
