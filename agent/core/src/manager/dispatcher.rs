//! Sessions of nodes: who is there, what each shall run, what each reports.
//!
//! [`Dispatcher`] is the leader's and lives as long as its leadership. It keeps no truth: it says what it
//! would have written of the nodes ([`Dispatcher::wishes`]), again after each commit, until the store
//! agrees.

mod assignments;
mod reports;

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

pub use assignments::{AssignmentChange, AssignmentSet, assignments, messages, needed};
pub use reports::reports;

use crate::{
    api::{Node, NodeDescription, NodeState, NodeStatus},
    id::Id,
    rng::Rng,
    store::{Change, Proposal, View},
    time::{Now, Timestamp},
};

/// Time between heartbeats unless the cluster's settings say otherwise.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// A node that has been silent for so many periods is down.
const GRACE: u32 = 3;
/// The same for nodes that a new leader has not heard of yet.
const GRACE_UNKNOWN: u32 = 6;
/// At most so many registrations of one node …
const MAX_REGISTRATIONS: usize = 3;
/// … in this time.
const REGISTRATION_WINDOW: Duration = Duration::from_secs(8);

/// Why a node's call was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The store does not know it; `NotFound` on the wire.
    #[error("node {0} not found")]
    UnknownNode(Id<Node>),
    /// It was removed; `PermissionDenied`.
    #[error("node {0} was removed from swarm")]
    Removed(Id<Node>),
    /// It has no session, or a later one; `InvalidArgument`.
    #[error("session invalid")]
    InvalidSession,
    /// It registers too often; `Unavailable`.
    #[error("attempted registration too frequent: wait some seconds")]
    TooFrequent,
    /// Another machine with the same machine id is a node; `AlreadyExists`.
    #[error(
        "machine id {machine_id} belongs to node {other} ({hostname}): give this machine an id of its own, or remove that node"
    )]
    DuplicateMachine {
        /// The machine id.
        machine_id: String,
        /// The node that has it.
        other: Id<Node>,
        /// That node's host name.
        hostname: String,
    },
    /// It reports of a task that it does not have; `PermissionDenied`.
    #[error("task {task} is not assigned to node {node}")]
    ForeignTask {
        /// The task.
        task: String,
        /// The reporter.
        node: Id<Node>,
    },
    /// A report that no node makes; `InvalidArgument`.
    #[error("invalid report of task {task}: {why}")]
    InvalidReport {
        /// The task.
        task: String,
        /// What is wrong.
        why: String,
    },
}

/// The leader's knowledge of who is there.
#[derive(Debug)]
pub struct Dispatcher {
    nodes: BTreeMap<Id<Node>, Presence>,
    registrations: BTreeMap<Id<Node>, Vec<Now>>,
    rng: Rng,
}

#[derive(Debug, Clone)]
enum Presence {
    /// In a session.
    Here(Box<Session>),
    /// Not heard of since this leader began; down at this moment.
    Awaited(Now),
    /// Silent for too long.
    Gone(&'static str),
}

#[derive(Debug, Clone)]
struct Session {
    id: String,
    description: NodeDescription,
    addr: IpAddr,
    /// Silent until then, it is down.
    deadline: Now,
}

impl Dispatcher {
    /// Begins a leadership: each node of the store has some time to come.
    #[must_use]
    pub fn new(view: &View, rng: Rng, now: Now) -> Self {
        let deadline = now + period(view) * GRACE_UNKNOWN;
        let awaited = view
            .nodes()
            .filter(|node| node.status.state != NodeState::Down)
            .map(|node| (node.id.clone(), Presence::Awaited(deadline)));
        Self {
            nodes: awaited.collect(),
            registrations: BTreeMap::new(),
            rng,
        }
    }

    /// A node opens a session. Returns the session's id; an earlier session of the node is over.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn register(
        &mut self,
        view: &View,
        node: &Id<Node>,
        description: NodeDescription,
        addr: IpAddr,
        now: Now,
    ) -> Result<String, Refused> {
        known(view, node)?;
        self.check_rate(node, now)?;
        self.check_machine(view, node, &description)?;
        let id = Id::<Session>::draw(&mut self.rng).to_string();
        let session = Box::new(Session {
            id: id.clone(),
            description,
            addr,
            deadline: now + period(view) * GRACE,
        });
        self.nodes.insert(node.clone(), Presence::Here(session));
        Ok(id)
    }

    fn check_rate(&mut self, node: &Id<Node>, now: Now) -> Result<(), Refused> {
        let recent = self.registrations.entry(node.clone()).or_default();
        recent.retain(|then| now.since(*then) < REGISTRATION_WINDOW);
        if recent.len() >= MAX_REGISTRATIONS {
            return Err(Refused::TooFrequent);
        }
        recent.push(now);
        Ok(())
    }

    /// Two machines from one disk image have one machine id, and soon one identity in many places. The
    /// second one is refused while the first is there; a machine that was set up anew is let in once its
    /// old node is down.
    fn check_machine(
        &self,
        view: &View,
        node: &Id<Node>,
        description: &NodeDescription,
    ) -> Result<(), Refused> {
        if description.machine_id.is_empty() {
            return Ok(());
        }
        let others = view.nodes().filter(|other| other.id != *node);
        for other in others {
            let theirs = self.description(other);
            let same = theirs.is_some_and(|it| it.machine_id == description.machine_id);
            if same && self.is_here(&other.id) {
                return Err(Refused::DuplicateMachine {
                    machine_id: description.machine_id.clone(),
                    other: other.id.clone(),
                    hostname: theirs.map_or_else(String::new, |it| it.hostname.clone()),
                });
            }
        }
        Ok(())
    }

    fn description<'a>(&'a self, node: &'a Node) -> Option<&'a NodeDescription> {
        match self.nodes.get(&node.id) {
            Some(Presence::Here(session)) => Some(&session.description),
            Some(Presence::Awaited(_) | Presence::Gone(_)) | None => node.description.as_ref(),
        }
    }

    fn is_here(&self, node: &Id<Node>) -> bool {
        matches!(self.nodes.get(node), Some(Presence::Here(_)))
    }

    /// A heartbeat. Returns when the next one is due: the period with 10 % of jitter, so that nodes that
    /// began together do not stay together.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn heartbeat(
        &mut self,
        view: &View,
        node: &Id<Node>,
        session: &str,
        now: Now,
    ) -> Result<Duration, Refused> {
        known(view, node)?;
        let period = period(view);
        let current = self.session(node, session)?;
        current.deadline = now + period * GRACE;
        let tenth = u64::try_from(period.as_nanos() / 10).unwrap_or(u64::MAX / 4);
        let jitter = Duration::from_nanos(self.rng.below(2 * tenth + 1));
        Ok(period - Duration::from_nanos(tenth) + jitter)
    }

    /// Whether the node may call in this session.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn check_session(
        &mut self,
        view: &View,
        node: &Id<Node>,
        session: &str,
    ) -> Result<(), Refused> {
        known(view, node)?;
        self.session(node, session).map(|_| ())
    }

    fn session(&mut self, node: &Id<Node>, id: &str) -> Result<&mut Session, Refused> {
        match self.nodes.get_mut(node) {
            Some(Presence::Here(session)) if session.id == id => Ok(session),
            Some(_) | None => Err(Refused::InvalidSession),
        }
    }

    /// A node takes its leave: it is down at once, not after the grace time.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn left(&mut self, view: &View, node: &Id<Node>, session: &str) -> Result<(), Refused> {
        self.check_session(view, node, session)?;
        let gone = Presence::Gone("node left the swarm");
        self.nodes.insert(node.clone(), gone);
        Ok(())
    }

    /// Ends the sessions of nodes that were silent for too long.
    pub fn tick(&mut self, now: Now) {
        for presence in self.nodes.values_mut() {
            let (end, why) = match presence {
                Presence::Here(session) => (session.deadline, "heartbeat failure"),
                Presence::Awaited(deadline) => {
                    (*deadline, "heartbeat failure for node in \"unknown\" state")
                }
                Presence::Gone(_) => continue,
            };
            if end <= now {
                *presence = Presence::Gone(why);
            }
        }
        self.registrations.retain(|_, recent| {
            recent.retain(|then| now.since(*then) < REGISTRATION_WINDOW);
            !recent.is_empty()
        });
    }

    /// When [`Dispatcher::tick`] has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Now> {
        let ends = self.nodes.values().filter_map(|presence| match presence {
            Presence::Here(session) => Some(session.deadline),
            Presence::Awaited(deadline) => Some(*deadline),
            Presence::Gone(_) => None,
        });
        ends.min()
    }

    /// What the store should say of nodes and does not. Ask again after each commit and each tick; the
    /// proposals are independent of one another.
    pub fn wishes(&mut self, view: &View, now: Timestamp) -> Vec<Proposal> {
        self.nodes.retain(|id, _| view.node(id).is_some());
        let wishes = self.nodes.iter().filter_map(|(id, presence)| {
            let node = view.node(id)?;
            let mut next = Node::clone(node);
            let state = match presence {
                Presence::Here(session) => {
                    next.description = Some(session.description.clone());
                    next.status.addr = Some(session.addr);
                    (NodeState::Ready, "")
                }
                Presence::Awaited(_) => (
                    NodeState::Unknown,
                    "node moved to \"unknown\" state due to leadership change in cluster",
                ),
                Presence::Gone(why) => (NodeState::Down, *why),
            };
            set_state(&mut next.status, state, now);
            next.meta.updated_at = now;
            let changed = next.status != node.status || next.description != node.description;
            changed.then(|| Proposal::of([Change::put_node(next)]))
        });
        wishes.collect()
    }
}

fn set_state(status: &mut NodeStatus, (state, message): (NodeState, &str), now: Timestamp) {
    if status.state != state {
        status.state = state;
        status.since = now;
        message.clone_into(&mut status.message);
    }
}

pub(super) fn known(view: &View, node: &Id<Node>) -> Result<(), Refused> {
    if view.node(node).is_some() {
        return Ok(());
    }
    let removed = view.cluster().map(|cluster| &cluster.removed_nodes);
    match removed.is_some_and(|removed| removed.contains_key(node)) {
        true => Err(Refused::Removed(node.clone())),
        false => Err(Refused::UnknownNode(node.clone())),
    }
}

/// The cluster's time between heartbeats.
#[must_use]
pub fn period(view: &View) -> Duration {
    let chosen = view.cluster().map(|it| it.spec.dispatcher.heartbeat_period);
    chosen.filter(|it| !it.is_zero()).unwrap_or(HEARTBEAT)
}
