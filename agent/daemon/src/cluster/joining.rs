//! A join under way.

use std::{net::IpAddr, sync::Arc, time::Duration};

use skep_core::{
    api::{ApiError, Node},
    id::Id,
    rng::Rng,
};
use tokio::{sync::oneshot, task::JoinHandle, time::sleep};

use super::{JoinParams, Shared};
use crate::{
    identity::{NodeIdentity, Vault},
    rpc::{
        dial::own_address,
        join::{self, JoinFailure},
        with_port,
    },
};

/// The pause between two attempts to join grows from this …
const MIN_BACKOFF: Duration = Duration::from_millis(200);
/// … to this.
const MAX_BACKOFF: Duration = Duration::from_secs(8);

/// A join under way.
pub(super) struct Joining {
    pub(super) attempts: JoinHandle<Result<(NodeIdentity, String), String>>,
    pub(super) advertise: Option<IpAddr>,
    pub(super) waiting: Option<oneshot::Sender<Result<Id<Node>, ApiError>>>,
    pub(super) deadline: tokio::time::Instant,
}

/// Tries each manager in turn, for ever, unless none of them will ever take this node. Returns the
/// identity and the manager that gave it.
pub(super) async fn attempts(
    vault: Vault,
    params: JoinParams,
    advertise: Option<IpAddr>,
    shared: Arc<Shared>,
    mut rng: Rng,
) -> Result<(NodeIdentity, String), String> {
    let mut backoff = MIN_BACKOFF;
    if let Some(advertise) = advertise {
        own_address(advertise).await;
    }
    loop {
        let mut hopeless = true;
        let mut last = String::new();
        for addr in &params.remote_addrs {
            let addr = with_port(addr);
            let token = &params.join_token;
            let availability = params.availability;
            match join::join(&vault, token, &addr, availability, advertise).await {
                Ok(identity) => return Ok((identity, addr)),
                Err(failure) => {
                    hopeless &= matches!(failure, JoinFailure::Final(_));
                    last = failure.to_string();
                }
            }
        }
        if hopeless {
            return Err(last);
        }
        tracing::warn!(error = %last, "not joined yet, trying again");
        shared.status.send_modify(|status| status.error = last);
        let half = u64::try_from(backoff.as_millis() / 2).unwrap_or(0);
        sleep(backoff / 2 + Duration::from_millis(rng.below(half + 1))).await;
        backoff = (backoff * 3 / 2).min(MAX_BACKOFF);
    }
}
