//! `/events`: changes of the cluster from now on. No history is kept.

use std::{collections::VecDeque, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use futures_util::stream;
use skep_core::{
    api::{ApiError, Filters},
    store::View,
};
use tokio::sync::watch;

use super::error::Failure;
use skep_host::clock;

use crate::management::{
    Management,
    events::{self, Event},
    filter,
    params::Params,
};

pub(super) fn routes() -> Router<Management> {
    Router::new().route("/events", get(follow))
}

struct Follower {
    management: Management,
    changes: watch::Receiver<u64>,
    seen: View,
    filters: Filters,
    pending: VecDeque<Bytes>,
}

async fn follow(State(management): State<Management>, params: Params) -> Result<Response, Failure> {
    if params.moment("since")?.is_some() {
        return Err(Failure(ApiError::Unsupported(
            "since (no history of events is kept)".to_owned(),
        )));
    }
    let filters = params.filters()?;
    filter::check_keys(&filters, &["event", "type"])?;
    let limit = params
        .moment("until")?
        .map(|until| until.since(clock::timestamp()));
    let changes = management.changes();
    let follower = Follower {
        seen: management.view().unwrap_or_default(),
        management,
        changes,
        filters,
        pending: VecDeque::new(),
    };
    let deadline = tokio::time::Instant::now() + limit.unwrap_or(Duration::from_secs(365 * 86_400));
    let lines = stream::unfold(follower, move |mut follower| async move {
        let line = tokio::time::timeout_at(deadline, follower.next()).await;
        let line = line.ok().flatten()?;
        Some((Ok::<_, std::convert::Infallible>(line), follower))
    });
    let kind = [(header::CONTENT_TYPE, "application/json")];
    Ok(std::future::ready((kind, Body::from_stream(lines)).into_response()).await)
}

impl Follower {
    /// The next event's line; `None` when the daemon stops.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.pending.pop_front() {
                return Some(line);
            }
            self.changes.changed().await.ok()?;
            let now = self.management.view().unwrap_or_default();
            let at = clock::timestamp();
            let lines = events::between(&self.seen, &now)
                .into_iter()
                .filter(|event| self.wants(event))
                .map(|event| Bytes::from(format!("{}\n", event.document(at))))
                .collect();
            self.pending = lines;
            self.seen = now;
        }
    }

    fn wants(&self, event: &Event) -> bool {
        let accepts = |key: &str, value: &str| {
            self.filters
                .get(key)
                .is_none_or(|values| values.iter().any(|wanted| wanted == value))
        };
        accepts("type", event.kind) && accepts("event", event.action)
    }
}
