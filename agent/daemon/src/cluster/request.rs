//! A request of a front door on its way to the leader.

use std::time::Duration;

use skep_core::{
    api::{ApiError, ClusterRequest, ClusterResponse},
    wire::skep::{ControlRequest, control_response},
};
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;

use super::{Shared, not_a_manager};
use crate::{
    manager::Manager,
    raft::ProposeError,
    rpc::{managers::read_error, services::skep::control_client::ControlClient},
};

/// How long a request waits for the end of an election.
const LEADER_PATIENCE: Duration = Duration::from_secs(5);
/// Pause between two looks for a leader.
const LEADER_POLL: Duration = Duration::from_millis(50);

/// Carries out one request, on the leader if need be; answers when this manager has what came of it.
///
/// # Errors
/// What the request was refused for, or `Unavailable` on a worker or without a leader.
pub(super) async fn carry_out(
    shared: &Shared,
    request: &ClusterRequest,
) -> Result<ClusterResponse, ApiError> {
    let manager = shared.manager().clone();
    let Some((manager, dialer)) = manager else {
        return Err(not_a_manager(&shared.status.borrow()));
    };
    let begun = Instant::now();
    loop {
        match manager.request(request).await {
            Ok(answer) => return answer,
            Err(ProposeError::NotLeader(Some(leader))) => {
                // A leader that is lost is not waited for: soon there is another one.
                let channel = tokio::select! {
                    channel = dialer.dial(&leader.addr) => channel.ok(),
                    () = manager.raft().leader_changed(&leader) => None,
                };
                if let Some(channel) = channel {
                    return forward(&manager, channel, request).await;
                }
            }
            Err(ProposeError::NotLeader(None)) => {}
            Err(error @ (ProposeError::Busy | ProposeError::Stopped(_))) => {
                return Err(ApiError::Unavailable(error.to_string()));
            }
        }
        // An election is on, and nothing of the request is in the log.
        if begun.elapsed() > LEADER_PATIENCE {
            return Err(no_leader());
        }
        sleep(LEADER_POLL).await;
    }
}

/// Has the leader carry out a request, and waits until this manager has what came of it.
async fn forward(
    manager: &Manager,
    leader: Channel,
    request: &ClusterRequest,
) -> Result<ClusterResponse, ApiError> {
    let unavailable = |why: String| ApiError::Unavailable(why);
    let document = serde_json::to_vec(request).map_err(|error| unavailable(error.to_string()))?;
    let answer = ControlClient::new(leader)
        .request(ControlRequest { document })
        .await
        .map_err(|status| unavailable(format!("the leader answers: {}", status.message())))?
        .into_inner();
    let response = match answer.result {
        Some(control_response::Result::Document(document)) => serde_json::from_slice(&document)
            .map_err(|error| unavailable(format!("the leader's answer: {error}")))?,
        Some(control_response::Result::Error(error)) => return Err(read_error(error)),
        None => return Err(no_leader()),
    };
    manager.raft().caught_up(answer.version).await;
    Ok(response)
}

fn no_leader() -> ApiError {
    ApiError::Unavailable(
        "The swarm does not have a leader. It's possible that too few managers are online. Make sure \
         more than half of the managers are online."
            .to_owned(),
    )
}
