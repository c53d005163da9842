//! The node's machine: everything that a node decides between what managers tell it, what it sees of its own
//! host, and what it does there.
//!
//! Here the worker and the network meet. The daemon feeds [`Input`]s, carries out [`Output`]s and wakes the
//! machine at its deadline; each call takes well below a millisecond and cannot fail.

mod network;
mod sandboxes;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use self::{
    network::{NetworkLoop, NetworkStep},
    sandboxes::Surroundings,
};
use crate::{
    api::{DependencyId, Node as NodeObject, Task, TaskStatus},
    id::Id,
    network::{Inputs, MeshMap, NetOp, NetState, NodeNet, Ns, Sandbox, Scope, desired},
    time::{Now, Timestamp},
    worker::{
        Worker, WorkerOutput,
        assignments::Assignments,
        effect::{Container, Effect, EffectId, EffectResult},
    },
};

/// The shortest time between two writes of [`Saved`].
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// How often one input may change the node's own inputs before it waits for the next one.
const ROUNDS: usize = 8;

/// What the node hears.
#[derive(Debug, Clone)]
pub enum Input {
    /// A session with a manager stands; the id is this node's own.
    SessionBegun(Id<NodeObject>),
    /// The session is lost. Everything goes on from what is known.
    SessionLost,
    /// A message of the Assignments stream.
    Assignments(Assignments),
    /// A manager has taken the statuses of message `batch`, or none has (`accepted` is false).
    StatusDone {
        /// Number of the message, from [`Output::Status`].
        batch: u64,
        /// Whether it was taken.
        accepted: bool,
    },
    /// The map of this node's networks, complete: the caller applies differences. A lower version than the
    /// one that is known is refused.
    Mesh(Arc<MeshMap>),
    /// Every live node's kernel equals this version of the mesh or a later one.
    MeshSettled(u64),
    /// This node's own addresses have become known or have changed. Its id is kept when this names none.
    Address(NodeNet),
    /// The node has left the swarm: everything of it goes.
    Left,
    /// An effect has come to its end.
    EffectDone(EffectId, EffectResult),
    /// The state of the kernel's network, within the scope asked for, or why it could not be read.
    NetworkSeen(Result<NetState, String>),
    /// The steps were carried out; one line for each that could not be.
    NetworkApplied(Vec<String>),
    /// Something has changed in these namespaces, whoever did it.
    NetworkChanged(BTreeSet<Ns>),
    /// [`Saved`] was written, or could not be.
    SavedDone(Result<(), String>),
    /// Nothing: a deadline has come.
    Tick,
}

/// What the node wants done.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Do this on the host and answer with [`Input::EffectDone`].
    Effect(EffectId, Effect),
    /// Send these statuses to a manager (`UpdateTaskStatus`) and answer with [`Input::StatusDone`].
    Status {
        /// Number of the message.
        batch: u64,
        /// The statuses.
        statuses: Vec<(Id<Task>, TaskStatus)>,
    },
    /// A message of the Assignments stream is missing: open the stream again.
    ReopenAssignments,
    /// The kernel equals this version of the mesh: tell the manager (`Mesh.Watch`).
    MeshApplied(u64),
    /// Read the kernel's network and answer with [`Input::NetworkSeen`]. One at a time.
    Observe(Scope),
    /// Carry these steps out in order, all of them, also after one that fails, and answer with
    /// [`Input::NetworkApplied`]. One at a time.
    Apply(Vec<NetOp>),
    /// What questions about names are answered from, until the next one. A sandbox that is not in it asks no more.
    Names(Names),
    /// Write this to disk in place of the one before and answer with [`Input::SavedDone`]. One at a time.
    Save(Box<Saved>),
}

/// What questions about names are answered from.
#[derive(Debug, Clone, PartialEq)]
pub struct Names {
    /// The networks.
    pub mesh: Arc<MeshMap>,
    /// Who may ask, by container id.
    pub sandboxes: Arc<BTreeMap<String, Sandbox>>,
    /// This node.
    pub node: NodeNet,
}

/// What outlives a restart and a reboot, so that a node goes on when no manager answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// Whose it is. Another node's is not used.
    pub node_id: Option<Id<NodeObject>>,
    /// The assigned tasks, each with the status that this node has observed.
    pub tasks: Vec<Task>,
    /// The last map of the networks.
    pub mesh: Option<Arc<MeshMap>>,
}

/// What the node starts from.
#[derive(Debug)]
pub struct Boot {
    /// This node; without an id it is the one that was saved.
    pub node: NodeNet,
    /// What an earlier life left.
    pub saved: Option<Saved>,
    /// Every container on the host.
    pub containers: Vec<Container>,
}

/// The node's machine.
#[derive(Debug)]
pub struct Node {
    worker: Worker,
    around: Surroundings,
    network: NetworkLoop,
    desired: Arc<NetState>,
    generation: u64,
    /// The desired state, or what names are answered from, is older than what it follows from.
    outdated: bool,
    acknowledged: Option<u64>,
    unsaved: bool,
    saving: bool,
    save_not_before: Now,
    outputs: VecDeque<Output>,
    deadline: Option<Now>,
}

impl Node {
    /// Takes up what is there. Call [`Self::handle`] with [`Input::Tick`] to begin.
    #[must_use]
    pub fn new(boot: Boot, now: Now) -> Self {
        let mut node = boot.node;
        let own = |saved: &Saved| node.node_id.is_none() || saved.node_id == node.node_id;
        let saved = boot.saved.filter(own);
        if let Some(saved) = &saved {
            node.node_id.clone_from(&saved.node_id);
        }
        let (tasks, mesh) = saved.map_or((Vec::new(), None), |saved| (saved.tasks, saved.mesh));
        let worker = Worker::adopt(tasks, boot.containers, now);
        let mesh = mesh.filter(|mesh| mesh.validate().is_ok());
        Self {
            around: Surroundings::new(node, mesh, &worker),
            worker,
            network: NetworkLoop::new(now),
            desired: Arc::default(),
            generation: 0,
            outdated: true,
            acknowledged: None,
            unsaved: false,
            saving: false,
            save_not_before: now,
            outputs: VecDeque::new(),
            deadline: None,
        }
    }

    /// Takes one input and decides.
    pub fn handle(&mut self, input: Input, now: Now, wall: Timestamp) {
        match input {
            Input::SessionBegun(id) => self.begin_session(id),
            Input::SessionLost => self.worker.end_session(),
            Input::Assignments(message) => self.worker.assign(message),
            Input::StatusDone { batch, accepted } => self.worker.status_done(batch, accepted, now),
            Input::Mesh(mesh) => self.take_mesh(mesh),
            Input::MeshSettled(version) => self.around.settled = self.around.settled.max(version),
            Input::Address(node) => self.take_address(node),
            Input::Left => self.leave(),
            Input::EffectDone(id, result) => self.worker.effect_done(id, result, now, wall),
            Input::NetworkSeen(result) => self.network.observed(result, now),
            Input::NetworkApplied(errors) => self.network.applied(&errors, now),
            Input::NetworkChanged(namespaces) => self.network.changed(namespaces, now),
            Input::SavedDone(result) => self.saved_done(result),
            Input::Tick => {}
        }
        self.decide(now, wall);
    }

    fn begin_session(&mut self, id: Id<NodeObject>) {
        if self.around.node.node_id.as_ref() != Some(&id) {
            if self.around.node.node_id.is_some() {
                // Another swarm's map says nothing about this one's.
                self.around.forget_mesh();
                self.acknowledged = None;
            }
            self.around.node.node_id = Some(id);
            self.outdated = true;
            self.unsaved = true;
        }
        self.worker.begin_session();
    }

    fn take_address(&mut self, mut node: NodeNet) {
        if node.node_id.is_none() {
            node.node_id.clone_from(&self.around.node.node_id);
        }
        self.outdated |= self.around.node != node;
        self.around.node = node;
    }

    fn take_mesh(&mut self, mesh: Arc<MeshMap>) {
        if let Err(error) = mesh.validate() {
            tracing::error!(%error, version = mesh.version, "a map of the networks is refused");
            return;
        }
        if self.around.take_mesh(mesh, &self.worker) {
            self.outdated = true;
            self.unsaved = true;
        }
    }

    fn leave(&mut self) {
        self.worker.leave();
        self.around.leave();
        self.acknowledged = None;
        self.outdated = true;
        self.unsaved = true;
    }

    /// Runs every part until none gives another new work.
    fn decide(&mut self, now: Now, wall: Timestamp) {
        for _ in 0..ROUNDS {
            self.outdated |= self.around.refresh(&self.worker);
            self.refresh_network(now);
            self.worker.run(&self.around, now, wall);
            while let Some(output) = self.worker.poll_output() {
                self.outputs.push_back(match output {
                    WorkerOutput::Effect(id, effect) => Output::Effect(id, effect),
                    WorkerOutput::Status(batch, statuses) => Output::Status { batch, statuses },
                    WorkerOutput::ReopenAssignments => Output::ReopenAssignments,
                });
            }
            if !self.worker.take_changed() {
                break;
            }
            self.unsaved = true;
        }
        self.save(now);
        let deadlines = [
            self.worker.deadline(),
            self.network.deadline(),
            self.save_deadline(),
        ];
        self.deadline = deadlines.into_iter().flatten().min();
    }

    fn refresh_network(&mut self, now: Now) {
        // Without a map nothing can be said of the networks of what runs: leave them alone until one comes.
        let Some(mesh) = self.around.mesh_to_use() else {
            return;
        };
        if self.outdated {
            self.outdated = false;
            self.outputs.push_back(Output::Names(Names {
                mesh: Arc::clone(&mesh),
                sandboxes: Arc::clone(&self.around.sandboxes),
                node: self.around.node.clone(),
            }));
            let wanted = desired(&Inputs {
                mesh: &mesh,
                node: &self.around.node,
                sandboxes: &self.around.sandboxes,
            });
            if wanted != *self.desired || self.generation == 0 {
                self.desired = Arc::new(wanted);
                self.generation += 1;
            }
        }
        match self.network.step(&self.desired, self.generation, now) {
            Some(NetworkStep::Observe(scope)) => self.outputs.push_back(Output::Observe(scope)),
            Some(NetworkStep::Apply(ops)) => self.outputs.push_back(Output::Apply(ops)),
            None => {}
        }
        let exact = self.network.is_exact(self.generation);
        self.around.judge(&self.network, &self.desired, exact);
        if exact
            && self.around.has_mesh()
            && self
                .acknowledged
                .is_none_or(|version| version < mesh.version)
        {
            self.acknowledged = Some(mesh.version);
            self.outputs.push_back(Output::MeshApplied(mesh.version));
        }
    }

    fn save(&mut self, now: Now) {
        if self.unsaved && !self.saving && now >= self.save_not_before {
            self.unsaved = false;
            self.saving = true;
            self.save_not_before = now + SAVE_EVERY;
            self.outputs.push_back(Output::Save(Box::new(Saved {
                node_id: self.around.node.node_id.clone(),
                tasks: self.worker.saved().collect(),
                mesh: self.around.mesh.clone(),
            })));
        }
    }

    fn saved_done(&mut self, result: Result<(), String>) {
        self.saving = false;
        if let Err(error) = result {
            tracing::error!(%error, "what this node knows could not be written to disk");
            self.unsaved = true;
        }
    }

    fn save_deadline(&self) -> Option<Now> {
        (self.unsaved && !self.saving).then_some(self.save_not_before)
    }

    /// The secrets and configs that it holds for its tasks, in memory only.
    pub fn dependencies(&self) -> impl Iterator<Item = &DependencyId> {
        self.worker.dependencies()
    }

    /// What to do next, in order; `None` when all is said.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Self::handle`] with [`Input::Tick`] at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Now> {
        self.deadline
    }
}
