//! `/swarm`.

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    routing::{get, post},
};
use serde_json::Value;

use super::{error::Failure, request::Document};
use crate::management::{Management, params::Params};

pub(super) fn routes() -> Router<Management> {
    Router::new()
        .route("/swarm", get(inspect))
        .route("/swarm/init", post(init))
        .route("/swarm/join", post(join))
        .route("/swarm/leave", post(leave))
        .route("/swarm/update", post(update))
        .route("/swarm/unlockkey", get(unlock_key))
        .route("/swarm/unlock", post(unlock))
}

async fn inspect(State(management): State<Management>) -> Result<Json<Value>, Failure> {
    std::future::ready(Ok(Json(management.swarm_inspect()?))).await
}

async fn init(
    State(management): State<Management>,
    Document(body): Document,
) -> Result<Json<Value>, Failure> {
    Ok(Json(management.swarm_init(&body).await?))
}

async fn join(
    State(management): State<Management>,
    Document(body): Document,
) -> Result<StatusCode, Failure> {
    management.swarm_join(&body).await?;
    Ok(StatusCode::OK)
}

async fn leave(
    State(management): State<Management>,
    params: Params,
) -> Result<StatusCode, Failure> {
    management.swarm_leave(&params).await?;
    Ok(StatusCode::OK)
}

async fn unlock_key(State(management): State<Management>) -> Result<Json<Value>, Failure> {
    std::future::ready(Ok(Json(management.swarm_unlock_key()?))).await
}

async fn unlock(
    State(management): State<Management>,
    Document(body): Document,
) -> Result<StatusCode, Failure> {
    management.swarm_unlock(&body).await?;
    Ok(StatusCode::OK)
}

async fn update(
    State(management): State<Management>,
    params: Params,
    Document(body): Document,
) -> Result<StatusCode, Failure> {
    management.swarm_update(&params, &body).await?;
    Ok(StatusCode::OK)
}
