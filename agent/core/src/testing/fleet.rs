//! Nodes of a simulated cluster: the real [`Node`] machine over a model of its kernel, its containers and its
//! disk, all of which fail, take their time, and forget.

mod machine;

use std::{net::IpAddr, sync::Arc, time::Duration};

pub use machine::{Machine, Program};

use crate::{
    api::{Config, DependencyId, Node as NodeObject, Payload, Secret, Task, TaskStatus},
    id::Id,
    manager::{
        dispatcher::{self, AssignmentSet, Dispatcher},
        mesh::{Mesh, MeshDelta, WatcherId, Watchers},
    },
    network::{MeshMap, NodeNet},
    node::{Boot, Input, Node, Output},
    rng::Rng,
    store::{Change, View},
    testing::bench,
    time::{Now, Timestamp},
    worker::assignments::{self, Assignments},
};

/// A node with its host.
#[derive(Debug)]
pub struct SimNode {
    /// Its identity.
    pub id: Id<NodeObject>,
    /// Its host name.
    pub hostname: String,
    /// Its address.
    pub addr: IpAddr,
    /// Whether it reaches the managers.
    pub connected: bool,
    /// Kernel, containers and disk.
    pub machine: Machine,
    life: Option<Life>,
    rng: Rng,
}

/// One life of the agent, from its start to a crash, a restart or a power cut.
#[derive(Debug)]
struct Life {
    node: Node,
    under_way: Vec<(Now, Output)>,
    session: Option<String>,
    next_heartbeat: Now,
    /// What was sent on the stream of assignments, and the stream's counter.
    assigned: Option<(AssignmentSet, u64)>,
    /// Status messages whose fate is not known.
    reports: Vec<u64>,
    watcher: Option<WatcherId>,
    mesh: MeshMap,
    settled: u64,
    /// The version that the kernel equals, said again on each new stream.
    applied: u64,
}

/// What a node has to say to the leader.
#[derive(Debug)]
pub struct Report {
    /// Number of the message, for [`SimNode::reported`].
    pub batch: u64,
    /// What it changes.
    pub changes: Vec<Change>,
}

/// The managers as a node that reaches them sees them.
#[derive(Debug)]
pub struct Managers<'a> {
    /// The committed state.
    pub view: &'a View,
    /// The networks of that state.
    pub mesh: &'a Mesh,
    /// Whoever makes the mesh true.
    pub watchers: &'a mut Watchers,
    /// The leader's sessions, while there is a leader.
    pub leader: Option<&'a mut Dispatcher>,
}

impl SimNode {
    /// A node that has just booted.
    #[must_use]
    pub fn new(id: Id<NodeObject>, hostname: &str, addr: IpAddr, rng: Rng, now: Now) -> Self {
        let mut node = Self {
            id,
            hostname: hostname.to_owned(),
            addr,
            connected: true,
            machine: Machine::new(rng.fork("machine")),
            life: None,
            rng,
        };
        node.begin(now);
        node
    }

    /// Whether the machine has power.
    #[must_use]
    pub fn is_powered(&self) -> bool {
        self.life.is_some()
    }

    fn begin(&mut self, now: Now) {
        let net = NodeNet {
            node_id: Some(self.id.clone()),
            vtep: self.addr,
            gateway_bridge: NodeNet::DEFAULT_GATEWAY_BRIDGE,
            name_servers: Vec::new(),
        };
        let boot = Boot {
            node: net,
            saved: self.machine.disk.clone(),
            containers: self.machine.containers(),
        };
        self.life = Some(Life {
            node: Node::new(boot, now),
            under_way: Vec::new(),
            session: None,
            next_heartbeat: now,
            assigned: None,
            reports: Vec::new(),
            watcher: None,
            mesh: MeshMap::default(),
            settled: 0,
            applied: 0,
        });
    }

    /// Turns the power off or on.
    pub fn switch(&mut self, watchers: &mut Watchers, now: Now) {
        if self.is_powered() {
            self.end_life(watchers);
            self.machine.lose_power();
        } else {
            self.begin(now);
        }
    }

    /// Kills the agent and starts it again: containers and kernel stay as they are.
    pub fn restart_agent(&mut self, watchers: &mut Watchers, now: Now) {
        if self.is_powered() {
            self.end_life(watchers);
            self.begin(now);
        }
    }

    fn end_life(&mut self, watchers: &mut Watchers) {
        let life = self.life.take();
        if let Some(watcher) = life.and_then(|life| life.watcher) {
            watchers.close(watcher);
        }
    }

    /// The managers have taken a report, or nobody knows.
    pub fn reported(&mut self, batch: u64, accepted: bool, now: Now, wall: Timestamp) {
        if let Some(life) = &mut self.life
            && life.reports.contains(&batch)
        {
            life.reports.retain(|one| *one != batch);
            let input = Input::StatusDone { batch, accepted };
            life.node.handle(input, now, wall);
        }
    }

    /// One turn: hear the managers, then work until nothing is due. Returns what is to be reported.
    pub fn step(&mut self, mut managers: Managers<'_>, now: Now, wall: Timestamp) -> Vec<Report> {
        let Some(mut life) = self.life.take() else {
            return Vec::new();
        };
        self.machine.fail_some(now);
        if !self.connected {
            self.machine.mark_cut();
        }
        let inputs = self.hear(&mut life, &mut managers, now);
        for input in inputs {
            life.node.handle(input, now, wall);
        }
        if life.node.deadline().is_none_or(|deadline| deadline <= now) {
            life.node.handle(Input::Tick, now, wall);
        }
        let mut said = Vec::new();
        for _ in 0..100 {
            self.collect(&mut life, now, &mut said);
            let done = self.machine.carry_out(&mut life.under_way, now);
            if done.is_empty() {
                break;
            }
            for input in done {
                life.node.handle(input, now, wall);
            }
        }
        let reports = self.say(&mut life, said, &mut managers, now, wall);
        self.life = Some(life);
        reports
    }

    /// What a node hears in this turn.
    fn hear(&mut self, life: &mut Life, managers: &mut Managers<'_>, now: Now) -> Vec<Input> {
        let mut inputs = Vec::new();
        if self.connected {
            self.watch_mesh(life, managers, &mut inputs);
        } else if let Some(watcher) = life.watcher.take() {
            managers.watchers.close(watcher);
        }
        let stood = life.session.is_some();
        let view = managers.view;
        let leader = managers.leader.as_deref_mut().filter(|_| self.connected);
        let stands = leader.is_some_and(|leader| self.keep_session(life, view, leader, now));
        if !stands {
            life.session = None;
            life.assigned = None;
            if stood {
                inputs.push(Input::SessionLost);
                let lost = std::mem::take(&mut life.reports).into_iter();
                inputs.extend(lost.map(|batch| Input::StatusDone {
                    batch,
                    accepted: false,
                }));
            }
            return inputs;
        }
        if !stood {
            inputs.push(Input::SessionBegun(self.id.clone()));
        }
        let assigned = dispatcher::assignments(view, &self.id);
        for task in assigned.tasks.values() {
            self.machine.know(task);
        }
        inputs.extend(assignments_message(life, assigned));
        inputs
    }

    fn watch_mesh(&self, life: &mut Life, managers: &mut Managers<'_>, inputs: &mut Vec<Input>) {
        let watcher = *life.watcher.get_or_insert_with(|| {
            life.mesh = MeshMap::default();
            let watcher = managers.watchers.open();
            managers.watchers.applied(watcher, life.applied);
            watcher
        });
        let map = managers.mesh.map(managers.view, &self.id);
        if map.version > life.mesh.version {
            let delta = MeshDelta::between(&life.mesh, &map);
            let news = !delta.is_empty() || life.mesh.version == 0;
            managers.watchers.looked(watcher, map.version, news);
            // What the node puts together is what the manager has.
            life.mesh = delta.apply(&life.mesh).unwrap_or_default();
            assert_eq!(life.mesh, map, "a difference leads astray");
            if news {
                inputs.push(Input::Mesh(Arc::new(map)));
            }
        }
        if let Some(settled) = managers.watchers.settled()
            && settled > life.settled
        {
            life.settled = settled;
            inputs.push(Input::MeshSettled(settled));
        }
    }

    fn keep_session(
        &mut self,
        life: &mut Life,
        view: &View,
        leader: &mut Dispatcher,
        now: Now,
    ) -> bool {
        if let Some(session) = &life.session {
            if leader.check_session(view, &self.id, session).is_err() {
                // The loss is heard before a new session begins.
                return false;
            }
            if now >= life.next_heartbeat {
                match leader.heartbeat(view, &self.id, session, now) {
                    Ok(next) => life.next_heartbeat = now + next,
                    Err(_) => return false,
                }
            }
            return true;
        }
        let described = bench::description(&self.hostname);
        let session = leader.register(view, &self.id, described, self.addr, now);
        life.session = session.ok();
        life.next_heartbeat = now;
        life.session.is_some()
    }

    /// Takes what the machine wants: work gets a time at which it is done, words are kept.
    fn collect(&mut self, life: &mut Life, now: Now, said: &mut Vec<Output>) {
        while let Some(output) = life.node.poll_output() {
            match output {
                Output::Effect(..) | Output::Observe(_) | Output::Apply(_) | Output::Save(_) => {
                    let pause = Duration::from_millis(self.rng.below(machine::slowness(&output)));
                    life.under_way.push((now + pause, output));
                }
                Output::Status { .. } | Output::ReopenAssignments | Output::MeshApplied(_) => {
                    said.push(output);
                }
                Output::Names(_) => {}
            }
        }
    }

    fn say(
        &self,
        life: &mut Life,
        said: Vec<Output>,
        managers: &mut Managers<'_>,
        now: Now,
        wall: Timestamp,
    ) -> Vec<Report> {
        let mut reports = Vec::new();
        for output in said {
            match output {
                Output::MeshApplied(version) => {
                    life.applied = version;
                    if let Some(watcher) = life.watcher {
                        managers.watchers.applied(watcher, version);
                    }
                }
                Output::ReopenAssignments => life.assigned = None,
                Output::Status { batch, statuses } => {
                    let in_session = life.session.is_some();
                    match self
                        .report(managers.view, statuses, wall)
                        .filter(|_| in_session)
                    {
                        Some(changes) => {
                            life.reports.push(batch);
                            reports.push(Report { batch, changes });
                        }
                        None => {
                            let refused = Input::StatusDone {
                                batch,
                                accepted: false,
                            };
                            life.node.handle(refused, now, wall);
                        }
                    }
                }
                Output::Effect(..)
                | Output::Observe(_)
                | Output::Apply(_)
                | Output::Names(_)
                | Output::Save(_) => {}
            }
        }
        reports
    }

    fn report(
        &self,
        view: &View,
        statuses: Vec<(Id<Task>, TaskStatus)>,
        wall: Timestamp,
    ) -> Option<Vec<Change>> {
        let statuses = statuses.into_iter();
        let statuses = statuses.map(|(id, status)| (id.to_string(), status));
        dispatcher::reports(view, &self.id, statuses.collect(), wall).ok()
    }

    /// The secrets and configs in its agent's memory.
    pub fn dependencies(&self) -> impl Iterator<Item = &DependencyId> {
        let life = self.life.iter();
        life.flat_map(|life| life.node.dependencies())
    }

    /// The task of each program that runs here, and what is known of the program.
    pub fn running(&self) -> impl Iterator<Item = (&Arc<Task>, &Program)> {
        self.machine.running()
    }
}

/// The next message of the stream of assignments, if there is anything to say.
fn assignments_message(life: &mut Life, now: AssignmentSet) -> Option<Input> {
    let message = match &life.assigned {
        None => {
            let tasks = now.tasks.values().map(|task| Task::clone(task)).collect();
            let secrets = now.secrets.values().map(|it| provided_secret(it));
            let configs = now.configs.values().map(|it| provided_config(it));
            let dependencies = secrets.chain(configs).collect();
            life.assigned = Some((now, 1));
            Assignments::Complete {
                results_in: "1".to_owned(),
                tasks,
                dependencies,
            }
        }
        Some((before, counter)) => {
            let changes = before.diff(&now);
            let counter = *counter;
            if changes.is_empty() {
                return None;
            }
            life.assigned = Some((now, counter + 1));
            Assignments::Incremental {
                applies_to: counter.to_string(),
                results_in: (counter + 1).to_string(),
                changes: changes.into_iter().map(worker_change).collect(),
            }
        }
    };
    Some(Input::Assignments(message))
}

fn worker_change(change: dispatcher::AssignmentChange) -> assignments::AssignmentChange {
    match change {
        dispatcher::AssignmentChange::Update(task) => {
            assignments::AssignmentChange::Update(Box::new(Task::clone(&task)))
        }
        dispatcher::AssignmentChange::Remove(id) => assignments::AssignmentChange::Remove(id),
        dispatcher::AssignmentChange::UpdateSecret(secret) => {
            let (id, content) = provided_secret(&secret);
            assignments::AssignmentChange::Provide(id, content)
        }
        dispatcher::AssignmentChange::UpdateConfig(config) => {
            let (id, content) = provided_config(&config);
            assignments::AssignmentChange::Provide(id, content)
        }
        dispatcher::AssignmentChange::RemoveSecret(id) => {
            assignments::AssignmentChange::Withdraw(DependencyId::Secret(id))
        }
        dispatcher::AssignmentChange::RemoveConfig(id) => {
            assignments::AssignmentChange::Withdraw(DependencyId::Config(id))
        }
    }
}

fn provided_secret(secret: &Secret) -> (DependencyId, Payload) {
    let id = DependencyId::Secret(secret.id.clone());
    (id, secret.spec.data.clone())
}

fn provided_config(config: &Config) -> (DependencyId, Payload) {
    let id = DependencyId::Config(config.id.clone());
    (id, config.spec.data.clone())
}
