//! `POST /skep/debug`: the one endpoint that Docker does not have. The answer is 101 and then the frames
//! of [`crate::management::debug`] in both directions.

use axum::{
    Extension, Router,
    body::Body,
    extract::{FromRequest, Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use hyper_util::rt::TokioIo;
use skep_core::api::ApiError;

use super::{Peer, error::Failure, request::Document};
use crate::management::{Management, debug};

pub(super) fn routes() -> Router<Management> {
    Router::new().route("/skep/debug", post(start))
}

async fn start(
    State(management): State<Management>,
    Extension(Peer(operator)): Extension<Peer>,
    mut request: Request,
) -> Result<Response, Failure> {
    if !request.headers().contains_key(header::UPGRADE) {
        return Err(Failure(ApiError::Invalid {
            field: "Upgrade".to_owned(),
            why: "the request has no such header: ask for \"Upgrade: tcp\"".to_owned(),
        }));
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let Document(body) = Document::from_request(request, &()).await?;
    let session = management.debug(&body, operator).await?;
    tokio::spawn(async move {
        match upgrade.await {
            Ok(connection) => debug::relay(session, TokioIo::new(connection)).await,
            Err(error) => tracing::debug!(%error, "the client of a debug container went away"),
        }
    });
    let headers = [(header::CONNECTION, "Upgrade"), (header::UPGRADE, "tcp")];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers, Body::empty()).into_response())
}
