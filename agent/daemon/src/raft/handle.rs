//! The rest of the daemon's way to raft: propose, read, and know who leads.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use openraft::{
    Config, Raft, ServerState, SnapshotPolicy,
    error::{ClientWriteError, InitializeError, RaftError},
};
use skep_core::{
    api::Reachability,
    manager::role,
    store::{Applied, ApplyError, Entry, Proposal, View},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{sleep, timeout},
};

use super::{
    disk::{Disk, WeakDisk},
    lineage::{self, Lineage},
    network::{Network, Reach},
    state::{Published, StateMachine},
    types::{Member, RaftTypes},
};
use crate::{identity::LogKeys, rpc::dial::Dialer};

/// Requests that wait for a place in an entry; more are refused.
const QUEUE: usize = 1024;
/// Proposals in one entry.
const MAX_BATCH: usize = 256;
/// Bytes of the proposals in one entry, unless one alone has more: an entry travels as one message.
const MAX_BATCH_BYTES: usize = 1024 * 1024;
/// Entries in one message to another manager. One that holds a large config takes 1.4 MB, and a message 64 MiB at most.
const MAX_MESSAGE_ENTRIES: u64 = 40;
/// How long a manager waits for a leader before it answers that there is none.
const LEADER_PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of one chunk of a snapshot: below what a server takes as a message, JSON's blow-up included.
const SNAPSHOT_CHUNK: u64 = 512 * 1024;

/// Pause between two looks at a log that is being closed.
const CLOSING: Duration = Duration::from_millis(20);
/// How long a log may take to be closed.
const CLOSING_PATIENCE: Duration = Duration::from_secs(5);

type Results = Vec<Result<Applied, ApplyError>>;

/// Proposals on their way into an entry.
struct Waiting {
    proposals: Vec<Proposal>,
    bytes: usize,
    answer: oneshot::Sender<Result<Results, ProposeError>>,
}

/// Why a proposal did not get into the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Another manager leads, if one is known.
    #[error("this manager does not lead")]
    NotLeader(Option<Member>),
    /// Too many requests wait.
    #[error("too many requests are waiting, try again in a moment")]
    Busy,
    /// Raft has stopped on this node; the journal says why.
    #[error("consensus has stopped on this node: {0}")]
    Stopped(String),
}

/// Raft could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start consensus: {0}")]
pub struct StartError(pub String);

/// Consensus on this manager. Cheap to clone.
#[derive(Clone)]
pub struct RaftHandle {
    raft: Raft<RaftTypes>,
    queue: mpsc::Sender<Waiting>,
    published: Arc<Published>,
    reach: Arc<Reach>,
    lineage: Arc<Lineage>,
    disk: WeakDisk,
    id: u64,
}

impl RaftHandle {
    /// Opens the log in `folder`, which is sealed with `keys`, and takes part in consensus as `id`.
    ///
    /// # Errors
    /// When the log is damaged or in use.
    pub async fn start(
        folder: &Path,
        keys: &LogKeys,
        id: u64,
        dialer: Dialer,
        published: Arc<Published>,
    ) -> Result<Self, StartError> {
        let fail = |error: &dyn std::fmt::Display| StartError(error.to_string());
        skep_host::storage::private_folder(folder).map_err(|error| StartError(error.chain()))?;
        let disk = Disk::open(&folder.join("raft.redb"), keys).map_err(|error| fail(&error))?;
        let lineage = Lineage::open(disk.downgrade()).map_err(|error| fail(&error))?;
        let lineage = Arc::new(lineage);
        let machine = StateMachine::open(disk.clone(), Arc::clone(&published))
            .map_err(|error| fail(&error))?;
        let config = Arc::new(config().validate().map_err(|error| fail(&error))?);
        let reach = Arc::new(watch::Sender::new(BTreeMap::new()));
        let network = Network {
            dialer,
            lineage: Arc::clone(&lineage),
            reach: Arc::clone(&reach),
        };
        let weak = disk.downgrade();
        let raft = Raft::new(id, config, network, disk, machine)
            .await
            .map_err(|error| fail(&error))?;
        let (queue, waiting) = mpsc::channel(QUEUE);
        tokio::spawn(write_batches(raft.clone(), waiting));
        Ok(Self {
            raft,
            queue,
            published,
            reach,
            lineage,
            disk: weak,
            id,
        })
    }

    /// Begins a raft group with this manager alone. On a group that has begun it changes nothing.
    ///
    /// # Errors
    /// When raft has stopped.
    pub async fn begin(&self, me: Member) -> Result<(), StartError> {
        if self.lineage.name().is_empty() {
            let name = lineage::draw().map_err(|error| StartError(error.chain()))?;
            let named = self.lineage.meets(&name).await;
            named.map_err(|error| StartError(error.to_string()))?;
        }
        match self.raft.initialize(BTreeMap::from([(self.id, me)])).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(StartError(error.to_string())),
        }
    }

    /// Whether a message under this name is of the raft group that this manager is in; one that is in none is in it now.
    ///
    /// # Errors
    /// When that could not be kept: one line.
    pub async fn is_of_group(&self, lineage: &str) -> Result<bool, String> {
        let meets = self.lineage.meets(lineage).await;
        meets.map_err(|error| error.to_string())
    }

    /// The name of the raft group that this manager is in.
    #[cfg(test)]
    pub(super) fn lineage_name(&self) -> String {
        self.lineage.name()
    }

    /// Seals the whole log with the newest of these keys.
    ///
    /// # Errors
    /// When the log could not be written; it is then as it was.
    pub async fn rotate(&self, keys: &LogKeys) -> Result<(), StartError> {
        let failed = |error: String| StartError(format!("the log could not be sealed: {error}"));
        let disk = self.disk.upgrade();
        let disk = disk.ok_or_else(|| failed("it is closed".to_owned()))?;
        let rotated = disk.rotate(keys).await;
        rotated.map_err(|error| failed(error.to_string()))
    }

    /// Proposes one change and waits until it is committed and applied here.
    ///
    /// # Errors
    /// The outer one when it did not get into the log, the inner one when the store refused it.
    pub async fn propose(
        &self,
        proposal: Proposal,
    ) -> Result<Result<Applied, ApplyError>, ProposeError> {
        let mut results = self.propose_all(vec![proposal]).await?;
        let stopped = || ProposeError::Stopped("an entry came back without results".to_owned());
        results.pop().ok_or_else(stopped)
    }

    /// Proposes independent changes in one entry.
    ///
    /// # Errors
    /// When they did not get into the log.
    pub async fn propose_all(&self, proposals: Vec<Proposal>) -> Result<Results, ProposeError> {
        let (answer, result) = oneshot::channel();
        let bytes = written_size(&proposals);
        let waiting = Waiting {
            proposals,
            bytes,
            answer,
        };
        self.queue
            .try_send(waiting)
            .map_err(|_| ProposeError::Busy)?;
        let stopped = || ProposeError::Stopped("it is shutting down".to_owned());
        result.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// The state with everything that was committed before this call. Reads that decide something ask
    /// here; an isolated leader would not notice otherwise.
    ///
    /// # Errors
    /// When this manager does not lead.
    pub async fn linearizable(&self) -> Result<View, ProposeError> {
        match self.raft.ensure_linearizable().await {
            Ok(_) => Ok(self.view().unwrap_or_default()),
            Err(error) => match error.forward_to_leader() {
                Some(forward) => Err(ProposeError::NotLeader(forward.leader_node.clone())),
                None if error.fatal().is_some() => Err(ProposeError::Stopped(error.to_string())),
                None => Err(ProposeError::NotLeader(None)),
            },
        }
    }

    /// The last state that was applied here.
    #[must_use]
    pub fn view(&self) -> Option<View> {
        self.published.borrow().clone()
    }

    /// Where states are published.
    #[must_use]
    pub fn published(&self) -> &Arc<Published> {
        &self.published
    }

    /// The term in which this manager leads; none if it does not.
    #[must_use]
    pub fn leads(&self) -> Option<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        (metrics.state == ServerState::Leader).then_some(metrics.current_term)
    }

    /// The leader, as far as this manager knows.
    #[must_use]
    pub fn leader(&self) -> Option<Member> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let id = metrics.current_leader?;
        metrics
            .membership_config
            .membership()
            .get_node(&id)
            .cloned()
    }

    /// The raft group, as this manager sees it now.
    #[must_use]
    pub fn group(&self) -> role::Group {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let reach = self.reach.borrow();
        let membership = metrics.membership_config.membership();
        let node_of = |id: u64| membership.get_node(&id)?.node_id.parse().ok();
        let members = membership.nodes().filter_map(|(id, member)| {
            let reachability = match reach.get(id) {
                None => Reachability::Unknown,
                Some(true) => Reachability::Reachable,
                Some(false) => Reachability::Unreachable,
            };
            let shown = role::Member {
                raft_id: *id,
                addr: member.addr.clone(),
                reachability,
            };
            Some((member.node_id.parse().ok()?, shown))
        });
        role::Group {
            leader: metrics.current_leader.and_then(node_of),
            members: members.collect(),
        }
    }

    /// Waits until the raft group may not be `known` any more.
    pub async fn group_changed(&self, known: &role::Group) {
        let mut metrics = self.raft.metrics();
        let mut reach = self.reach.subscribe();
        while self.group() == *known {
            let stopped = tokio::select! {
                changed = metrics.changed() => changed.is_err(),
                changed = reach.changed() => changed.is_err(),
            };
            if stopped {
                return;
            }
        }
    }

    /// Forgets who was reached: a new leader finds out for itself.
    pub fn begin_to_reach(&self) {
        self.reach.send_replace(BTreeMap::new());
    }

    /// Waits until another manager than `known` leads, or none.
    pub async fn leader_changed(&self, known: &Member) {
        let mut metrics = self.raft.metrics();
        let differs = |metrics: &openraft::RaftMetrics<u64, Member>| {
            let membership = metrics.membership_config.membership();
            let leader = metrics
                .current_leader
                .and_then(|id| membership.get_node(&id));
            leader != Some(known)
        };
        // An error means that raft has stopped, which is a change too.
        let _ = metrics.wait_for(differs).await;
    }

    /// Waits until the state here is at least at `version`, or a leader's patience is over.
    pub async fn caught_up(&self, version: u64) {
        let mut states = self.published.subscribe();
        let there = |view: &Option<View>| view.as_ref().is_some_and(|it| it.version() >= version);
        // Either way the caller goes on with the state that there is.
        let _ = timeout(LEADER_PATIENCE, states.wait_for(there)).await;
    }

    /// Waits until this manager leads.
    ///
    /// # Errors
    /// When it does not within a leader's patience.
    pub async fn lead(&self) -> Result<(), StartError> {
        let mut metrics = self.raft.metrics();
        let leads = metrics.wait_for(|metrics| metrics.state == ServerState::Leader);
        match timeout(LEADER_PATIENCE, leads).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(StartError("consensus has stopped".to_owned())),
            Err(_) => Err(StartError("no leader was elected".to_owned())),
        }
    }

    /// Whether this manager is in a raft group.
    pub async fn is_member(&self) -> bool {
        // An error means that raft has stopped, and what has stopped takes no part.
        self.raft.is_initialized().await.unwrap_or(false)
    }

    /// Waits until leadership may have changed.
    pub async fn leadership_changed(&self, known: Option<u64>) {
        let mut metrics = self.raft.metrics();
        let differs = |metrics: &openraft::RaftMetrics<u64, Member>| {
            let leads = (metrics.state == ServerState::Leader).then_some(metrics.current_term);
            leads != known
        };
        // An error means that raft has stopped, which is a change too.
        let _ = metrics.wait_for(differs).await;
    }

    /// Takes a manager into the group: first as a learner, which catches up, then as a voter.
    ///
    /// # Errors
    /// When this manager does not lead or the newcomer cannot be reached.
    pub async fn add_member(&self, id: u64, member: Member) -> Result<(), ProposeError> {
        self.raft
            .add_learner(id, member, true)
            .await
            .map_err(|error| refusal(&error))?;
        let voters = openraft::ChangeMembers::AddVoterIds([id].into());
        self.raft
            .change_membership(voters, true)
            .await
            .map_err(|error| refusal(&error))?;
        Ok(())
    }

    /// Takes a manager out of the group. The others must be a majority that is there, or this waits.
    ///
    /// # Errors
    /// When this manager does not lead.
    pub async fn remove_member(&self, id: u64) -> Result<(), ProposeError> {
        let voter = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow();
            let mut voters = metrics.membership_config.membership().voter_ids();
            voters.any(|voter| voter == id)
        };
        let change = match voter {
            true => openraft::ChangeMembers::RemoveVoters([id].into()),
            false => openraft::ChangeMembers::RemoveNodes([id].into()),
        };
        let changed = self.raft.change_membership(change, false).await;
        changed.map(drop).map_err(|error| refusal(&error))
    }

    /// openraft's own handle, for the messages of other managers.
    #[must_use]
    pub fn raft(&self) -> &Raft<RaftTypes> {
        &self.raft
    }

    /// Stops taking part, and waits until the log is closed.
    pub async fn stop(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "consensus did not stop cleanly: {error}");
        }
        let closed = async {
            while !self.disk.is_closed() {
                sleep(CLOSING).await;
            }
        };
        if timeout(CLOSING_PATIENCE, closed).await.is_err() {
            tracing::warn!("the log stays open although consensus has stopped");
        }
    }
}

fn config() -> Config {
    Config {
        cluster_name: "skep".to_owned(),
        // A busy machine must not lose its leadership for that alone.
        heartbeat_interval: 200,
        election_timeout_min: 1_000,
        election_timeout_max: 1_600,
        install_snapshot_timeout: 2_000,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(5_000),
        max_payload_entries: MAX_MESSAGE_ENTRIES,
        snapshot_max_chunk_size: SNAPSHOT_CHUNK,
        max_in_snapshot_log_to_keep: 1_000,
        ..Config::default()
    }
}

/// Puts what waits into entries: while one is on its way, the next one fills.
async fn write_batches(raft: Raft<RaftTypes>, mut waiting: mpsc::Receiver<Waiting>) {
    let mut batch = Vec::new();
    let mut next = None;
    loop {
        let first = match next.take() {
            Some(first) => first,
            None => match waiting.recv().await {
                Some(first) => first,
                None => return,
            },
        };
        next = fill(&mut batch, first, || waiting.try_recv().ok());
        let sizes: Vec<usize> = batch.iter().map(|one| one.proposals.len()).collect();
        let proposals = batch
            .iter_mut()
            .flat_map(|one| std::mem::take(&mut one.proposals))
            .collect();
        let written = raft.client_write(Entry { proposals }).await;
        let mut results = match written {
            Ok(written) => Ok(written.data.results.into_iter()),
            Err(error) => Err(refusal(&error)),
        };
        for (one, size) in batch.drain(..).zip(sizes) {
            let answer = match &mut results {
                Ok(results) => Ok(results.by_ref().take(size).collect()),
                Err(error) => Err(error.clone()),
            };
            // Who no longer waits does not need the answer.
            let _ = one.answer.send(answer);
        }
    }
}

/// Fills a batch up to its bounds; gives back the one that no longer fits.
fn fill(
    batch: &mut Vec<Waiting>,
    first: Waiting,
    mut more: impl FnMut() -> Option<Waiting>,
) -> Option<Waiting> {
    let mut bytes = first.bytes;
    batch.push(first);
    while batch.len() < MAX_BATCH {
        let one = more()?;
        bytes = bytes.saturating_add(one.bytes);
        if bytes > MAX_BATCH_BYTES {
            return Some(one);
        }
        batch.push(one);
    }
    None
}

/// Bytes that proposals take in the log.
fn written_size(proposals: &[Proposal]) -> usize {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 = self.0.saturating_add(bytes.len());
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    match serde_json::to_writer(&mut count, proposals) {
        Ok(()) => count.0,
        // The log will say what is wrong with it; nothing else shares its entry.
        Err(_) => MAX_BATCH_BYTES,
    }
}

fn refusal(error: &RaftError<u64, ClientWriteError<u64, Member>>) -> ProposeError {
    match error.forward_to_leader() {
        Some(forward) => ProposeError::NotLeader(forward.leader_node.clone()),
        None => ProposeError::Stopped(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(bytes: usize) -> Waiting {
        Waiting {
            proposals: Vec::new(),
            bytes,
            answer: oneshot::channel().0,
        }
    }

    #[test]
    fn a_batch_is_bound_by_bytes_and_by_number_and_is_never_empty() {
        let mut batch = Vec::new();
        let left = fill(&mut batch, waiting(usize::MAX), || Some(waiting(1)));
        assert_eq!((batch.len(), left.map(|one| one.bytes)), (1, Some(1)));
        batch.clear();
        let left = fill(&mut batch, waiting(0), || {
            Some(waiting(MAX_BATCH_BYTES / 2))
        });
        assert_eq!((batch.len(), left.is_some()), (3, true));
        batch.clear();
        assert!(fill(&mut batch, waiting(0), || Some(waiting(0))).is_none());
        assert_eq!(batch.len(), MAX_BATCH);
    }
}
