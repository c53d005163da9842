//! The leader's part: while this manager leads, one task owns the dispatcher, runs the core's loops
//! after each commit on a thread that may take its time, signs certificates, and proposes what comes out.

mod leader;
pub mod log_broker;
pub mod mesh_hub;

use std::{sync::Arc, time::Duration};

use skep_core::{
    api::{ApiError, ClusterRequest, ClusterResponse, Node, NodeDescription},
    id::Id,
    manager::{Ctx, control, dispatcher::Refused},
    rng::Rng,
    store::View,
};
use skep_host::{HostError, clock, entropy};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::raft::{ProposeError, RaftHandle};

/// Calls of nodes that wait for the leader's task; more are refused.
const QUEUE: usize = 1024;
/// How often a request is decided again when the state has moved on under it.
const MAX_TRIES: usize = 8;

/// A call that the leader's task answers.
enum Call {
    Register {
        node: Id<Node>,
        description: Box<NodeDescription>,
        addr: std::net::IpAddr,
        answer: oneshot::Sender<Result<Session, Refused>>,
    },
    Heartbeat {
        node: Id<Node>,
        session: String,
        answer: oneshot::Sender<Result<Duration, Refused>>,
    },
    Check {
        node: Id<Node>,
        session: String,
        answer: oneshot::Sender<Result<CancellationToken, Refused>>,
    },
    Leave {
        node: Id<Node>,
        session: String,
        answer: oneshot::Sender<Result<(), Refused>>,
    },
}

/// A session as the services see it.
#[derive(Debug, Clone)]
pub struct Session {
    /// Its id.
    pub id: String,
    /// Ends with the session: it was replaced or expired, or this manager no longer leads.
    pub over: CancellationToken,
}

/// Why a node's call was not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The dispatcher's refusal.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Ask the leader.
    #[error("this manager does not lead")]
    NotLeader,
}

/// The manager's side of this node. Cheap to clone.
#[derive(Clone)]
pub struct Manager {
    raft: RaftHandle,
    calls: mpsc::Sender<Call>,
    rng: Arc<Mutex<Rng>>,
    /// The maps of the mesh, for every node that watches this manager.
    pub mesh: mesh_hub::MeshHub,
    /// The subscriptions of logs.
    pub logs: log_broker::LogBroker,
    stop: CancellationToken,
}

impl Manager {
    /// Starts the manager's tasks; they end when `stop` does.
    ///
    /// # Errors
    /// When the kernel gives no randomness.
    pub fn start(raft: RaftHandle, stop: &CancellationToken) -> Result<Self, HostError> {
        let (calls, waiting) = mpsc::channel(QUEUE);
        let rng = Rng::seeded(entropy::bits64()?);
        let mesh = mesh_hub::MeshHub::start(raft.published(), stop);
        let leader = leader::Leader::new(raft.clone(), waiting, rng.fork("leader"));
        tokio::spawn(leader.run(stop.clone()));
        Ok(Self {
            raft,
            calls,
            rng: Arc::new(Mutex::new(rng.fork("control"))),
            mesh,
            logs: log_broker::LogBroker::default(),
            stop: stop.clone(),
        })
    }

    /// Consensus.
    #[must_use]
    pub fn raft(&self) -> &RaftHandle {
        &self.raft
    }

    /// Ends when this node is no longer a manager.
    #[must_use]
    pub fn stopped(&self) -> &CancellationToken {
        &self.stop
    }

    /// A context for one decision.
    pub async fn ctx(&self) -> Ctx {
        let seed = self.rng.lock().await.next_u64();
        Ctx::new(clock::timestamp(), Rng::seeded(seed))
    }

    /// Carries out a request on this manager, which must lead.
    ///
    /// # Errors
    /// The outer one when this manager does not lead; the inner one is the answer to the user.
    pub async fn request(
        &self,
        request: &ClusterRequest,
    ) -> Result<Result<ClusterResponse, ApiError>, ProposeError> {
        let mut last = ApiError::OutOfSequence;
        for _ in 0..MAX_TRIES {
            let view = self.raft.linearizable().await?;
            let mut ctx = self.ctx().await;
            let (proposal, response) = match control::handle(&view, request, &mut ctx) {
                Ok(decided) => decided,
                Err(error) => return Ok(Err(error)),
            };
            match self.raft.propose(proposal).await? {
                Ok(_) => return Ok(Ok(response)),
                Err(error) if control::worth_another_try(&error) => {
                    last = control::refused(&error);
                }
                Err(error) => return Ok(Err(control::refused(&error))),
            }
        }
        Ok(Err(last))
    }

    /// Opens a session of a node.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn register(
        &self,
        node: Id<Node>,
        description: NodeDescription,
        addr: std::net::IpAddr,
    ) -> Result<Session, CallError> {
        let description = Box::new(description);
        self.call(|answer| Call::Register {
            node,
            description,
            addr,
            answer,
        })
        .await
    }

    /// A heartbeat; returns when the next one is due.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn heartbeat(&self, node: Id<Node>, session: String) -> Result<Duration, CallError> {
        self.call(|answer| Call::Heartbeat {
            node,
            session,
            answer,
        })
        .await
    }

    /// Checks a session; returns what ends with it.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn check(
        &self,
        node: Id<Node>,
        session: String,
    ) -> Result<CancellationToken, CallError> {
        self.call(|answer| Call::Check {
            node,
            session,
            answer,
        })
        .await
    }

    /// A node takes its leave.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn leave(&self, node: Id<Node>, session: String) -> Result<(), CallError> {
        self.call(|answer| Call::Leave {
            node,
            session,
            answer,
        })
        .await
    }

    async fn call<T>(
        &self,
        make: impl FnOnce(oneshot::Sender<Result<T, Refused>>) -> Call,
    ) -> Result<T, CallError> {
        if self.raft.leads().is_none() {
            return Err(CallError::NotLeader);
        }
        let (answer, result) = oneshot::channel();
        self.calls
            .try_send(make(answer))
            .map_err(|_| CallError::NotLeader)?;
        match result.await {
            Ok(answered) => Ok(answered?),
            Err(_) => Err(CallError::NotLeader),
        }
    }

    /// The last state applied here, empty before the first.
    #[must_use]
    pub fn view(&self) -> View {
        self.raft.view().unwrap_or_default()
    }
}
