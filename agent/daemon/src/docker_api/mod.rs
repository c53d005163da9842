//! The Engine API, as the stock `docker` client speaks it: HTTP/1.1 on 2376 with mutual TLS.
//!
//! One file per resource parses requests and names statuses; what is done stands in
//! [`crate::management`]. What Docker knows and Skep does not have yet answers 501 with its name.

mod configs;
mod containers;
mod debug;
mod distribution;
mod error;
mod events;
mod images;
pub mod listener;
mod networks;
mod nodes;
mod request;
mod secrets;
mod services;
mod swarm;
mod system;
mod tasks;
mod unsupported;

#[cfg(test)]
pub(crate) mod tests;

use axum::{
    Router,
    body::Body,
    http::{HeaderName, HeaderValue, Request, Response, header},
    response::IntoResponse,
};
use tower::ServiceExt;

use crate::management::{
    Management,
    system::{API_VERSION, VERSION},
};

/// Who is on the other side of a connection, for the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer(pub String);

/// The Engine API over a node and its cluster. Serve requests through [`answer`].
pub fn router(management: Management) -> Router {
    Router::new()
        .merge(system::routes())
        .merge(events::routes())
        .merge(swarm::routes())
        .merge(nodes::routes())
        .merge(services::routes())
        .merge(tasks::routes())
        .merge(networks::routes())
        .merge(secrets::routes())
        .merge(configs::routes())
        .merge(containers::routes())
        .merge(images::routes())
        .merge(distribution::routes())
        .merge(debug::routes())
        .merge(unsupported::routes())
        .fallback(unsupported::fallback)
        .method_not_allowed_fallback(unsupported::fallback)
        .with_state(management)
}

/// Answers one request: takes the `/v1.NN` off its path, and puts the headers that every reply has.
pub async fn answer(router: Router, request: Request<Body>) -> Response<Body> {
    let mut response = match request::without_version(request) {
        Ok(request) => router
            .oneshot(request)
            .await
            .unwrap_or_else(|never| match never {}),
        Err(error) => error::Failure(error).into_response(),
    };
    let headers = response.headers_mut();
    let fixed = [
        ("api-version", API_VERSION),
        ("docker-experimental", "false"),
        ("ostype", "linux"),
    ];
    for (name, value) in fixed {
        headers.insert(
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        );
    }
    if let Ok(server) = HeaderValue::from_str(&format!("Docker/skep-{VERSION} (linux)")) {
        headers.insert(header::SERVER, server);
    }
    response
}
