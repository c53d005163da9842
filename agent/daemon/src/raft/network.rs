//! Raft between managers: openraft's messages as JSON over `skep.v1.Raft`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use openraft::{
    error::{InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Unreachable},
    network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest,
        InstallSnapshotResponse, VoteRequest, VoteResponse,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use skep_core::wire::skep::RaftMessage;
use tokio::sync::watch;
use tonic::{Code, transport::Channel};

use super::{
    lineage::Lineage,
    types::{Member, RaftTypes},
};
use crate::rpc::{MAX_CLIENT_MESSAGE, dial::Dialer, services::skep::raft_client::RaftClient};

/// Pause before a manager that was not reached is tried again.
const UNREACHABLE: Duration = Duration::from_millis(200);

/// So many messages in a row that a manager did not answer make it unreachable: about a second of heartbeats.
const MISSES: u32 = 5;

/// Whether the other managers answer the leader's messages, by their ids in the group; those that were tried.
pub(super) type Reach = watch::Sender<BTreeMap<u64, bool>>;

type Answer<T, E = RaftError<u64>> = Result<T, RPCError<u64, Member, E>>;

/// Makes connections to the other managers.
pub(super) struct Network {
    pub(super) dialer: Dialer,
    pub(super) lineage: Arc<Lineage>,
    pub(super) reach: Arc<Reach>,
}

/// One other manager.
pub(super) struct Link {
    target: u64,
    client: RaftClient<Channel>,
    lineage: Arc<Lineage>,
    reach: Arc<Reach>,
    misses: u32,
}

enum Method {
    Append,
    Vote,
    Snapshot,
}

impl RaftNetworkFactory<RaftTypes> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: u64, node: &Member) -> Link {
        let client = RaftClient::new(self.dialer.lazy(&node.addr))
            .max_decoding_message_size(MAX_CLIENT_MESSAGE);
        Link {
            target,
            client,
            lineage: Arc::clone(&self.lineage),
            reach: Arc::clone(&self.reach),
            misses: 0,
        }
    }
}

impl Link {
    async fn call<Q, A, E>(&mut self, method: Method, request: &Q, limit: Duration) -> Answer<A, E>
    where
        Q: Serialize,
        A: DeserializeOwned,
        E: std::error::Error + DeserializeOwned,
    {
        let document = serde_json::to_vec(request)
            .map_err(|error| RPCError::Network(NetworkError::new(&error)))?;
        let mut message = tonic::Request::new(RaftMessage {
            document,
            lineage: self.lineage.name(),
        });
        message.set_timeout(limit);
        let answered = match method {
            Method::Append => self.client.append(message).await,
            Method::Vote => self.client.vote(message).await,
            Method::Snapshot => self.client.snapshot(message).await,
        };
        let answer = answered
            .map_err(|status| match status.code() == Code::Unavailable {
                true => RPCError::Unreachable(Unreachable::new(&status)),
                // It is there and slow: the next message goes out without a pause.
                false => RPCError::Network(NetworkError::new(&status)),
            })?
            .into_inner();
        let result: Result<A, E> = serde_json::from_slice(&answer.document)
            .map_err(|error| RPCError::Network(NetworkError::new(&error)))?;
        result.map_err(|error| RPCError::RemoteError(RemoteError::new(self.target, error)))
    }
}

impl Link {
    /// Remembers whether a message of the leader was answered.
    fn note(&mut self, answered: bool) {
        self.misses = match answered {
            true => 0,
            false => self.misses.saturating_add(1),
        };
        if answered || self.misses >= MISSES {
            let target = self.target;
            self.reach
                .send_if_modified(|reach| reach.insert(target, answered) != Some(answered));
        }
    }
}

impl RaftNetwork<RaftTypes> for Link {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<RaftTypes>,
        option: RPCOption,
    ) -> Answer<AppendEntriesResponse<u64>> {
        let answer = self.call(Method::Append, &request, option.hard_ttl()).await;
        // A refusal is an answer.
        self.note(matches!(answer, Ok(_) | Err(RPCError::RemoteError(_))));
        answer
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<RaftTypes>,
        option: RPCOption,
    ) -> Answer<InstallSnapshotResponse<u64>, RaftError<u64, InstallSnapshotError>> {
        self.call(Method::Snapshot, &request, option.hard_ttl())
            .await
    }

    /// Between two attempts to reach a manager that is not there. Short of an election's time: one that
    /// comes back must hear of its leader before it begins an election.
    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(UNREACHABLE))
    }

    async fn vote(
        &mut self,
        request: VoteRequest<u64>,
        option: RPCOption,
    ) -> Answer<VoteResponse<u64>> {
        self.call(Method::Vote, &request, option.hard_ttl()).await
    }
}
