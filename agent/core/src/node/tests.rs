//! The whole node against a model of its kernel and its containers, which fails, delays and crashes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use proptest::prelude::*;

use super::{Boot, Input, Node, Output, Saved};
use crate::{
    api::{
        ContainerSpec, Endpoint, Meta, NetworkAttachment, PortConfig, Protocol, PublishMode, Task,
        TaskSpec, TaskState, TaskStatus, container::DnsConfig,
    },
    id::Id,
    network::{
        Inputs, MeshMap, NetOp, NetState, Ns, Scope, Step, desired,
        example::{self, id, ingress, my_demo},
        plan,
        state::{Link, LinkKind},
    },
    time::{Now, Timestamp},
    worker::{
        assignments::Assignments,
        container::plan::ContainerId,
        effect::{
            Container, Effect, EffectError, EffectId, EffectResult, Exit, Phase, PulledImage,
            container_id,
        },
    },
};

/// Task 100 of the example's whoami service.
fn whoami() -> Task {
    let attachment = |network_id, address: &str| NetworkAttachment {
        network_id,
        addresses: vec![address.to_owned()],
        aliases: Vec::new(),
    };
    Task {
        id: id(100),
        meta: Meta::default(),
        spec: TaskSpec {
            container_spec: Some(ContainerSpec {
                image: "whoami".to_owned(),
                command: vec!["/whoami".to_owned()],
                dns_config: Some(DnsConfig {
                    nameservers: vec!["9.9.9.9".to_owned()],
                    ..DnsConfig::default()
                }),
                ..ContainerSpec::default()
            }),
            ..TaskSpec::default()
        },
        spec_version: 0,
        service_id: id(20),
        service_name: "whoami".to_owned(),
        service_labels: BTreeMap::new(),
        slot: 1,
        node_id: Some(id(0)),
        status: TaskStatus {
            state: TaskState::Assigned,
            ..TaskStatus::default()
        },
        desired_state: TaskState::Running,
        networks: vec![
            attachment(ingress(), "10.255.0.6/16"),
            attachment(my_demo(), "10.0.1.6/24"),
        ],
        endpoint: Endpoint {
            ports: vec![PortConfig {
                protocol: Protocol::Tcp,
                target_port: 80,
                published_port: 8000,
                publish_mode: PublishMode::Ingress,
                ..PortConfig::default()
            }],
            ..Endpoint::default()
        },
        not_before: None,
        predecessor: None,
        running_since: None,
        job_iteration: None,
    }
}

/// A node and its machine.
struct Bench {
    node: Node,
    now: Now,
    kernel: NetState,
    containers: BTreeMap<ContainerId, Container>,
    under_way: Vec<Output>,
    disk: Option<Saved>,
    statuses: BTreeMap<Id<Task>, TaskStatus>,
    acknowledged: u64,
    signalled: bool,
    names: Option<super::Names>,
}

impl Bench {
    fn new() -> Self {
        Self {
            node: Node::new(boot(None, Vec::new()), Now(0)),
            now: Now(0),
            kernel: NetState::booted(),
            containers: BTreeMap::new(),
            under_way: Vec::new(),
            disk: None,
            statuses: BTreeMap::new(),
            acknowledged: 0,
            signalled: false,
            names: None,
        }
    }

    fn handle(&mut self, input: Input) {
        self.node
            .handle(input, self.now, Timestamp(i128::from(self.now.0)));
        while let Some(output) = self.node.poll_output() {
            match output {
                Output::Status { batch, statuses } => {
                    for (task, status) in statuses {
                        if let Some(before) = self.statuses.insert(task, status.clone()) {
                            assert!(before.state <= status.state, "{before:?} then {status:?}");
                        }
                    }
                    self.node.handle(
                        Input::StatusDone {
                            batch,
                            accepted: true,
                        },
                        self.now,
                        Timestamp(0),
                    );
                }
                Output::MeshApplied(version) => {
                    assert!(version >= self.acknowledged);
                    self.acknowledged = version;
                }
                Output::Names(names) => self.names = Some(names),
                other @ (Output::Effect(..)
                | Output::ReopenAssignments
                | Output::Observe(_)
                | Output::Apply(_)
                | Output::Save(_)) => self.under_way.push(other),
            }
        }
    }

    /// Carries out one thing that is under way; `None` while it is not at its end.
    fn carry_out(&mut self, output: &Output) -> Option<Input> {
        Some(match output {
            Output::Observe(scope) => Input::NetworkSeen(Ok(self.observe(scope))),
            Output::Apply(ops) => Input::NetworkApplied(self.apply(ops, usize::MAX)),
            Output::Save(saved) => {
                // Through the disk and back.
                let text = serde_json::to_string(saved).unwrap();
                self.disk = Some(serde_json::from_str(&text).unwrap());
                Input::SavedDone(Ok(()))
            }
            Output::Effect(id, effect) => Input::EffectDone(*id, self.effect(effect)?),
            Output::Status { .. }
            | Output::ReopenAssignments
            | Output::MeshApplied(_)
            | Output::Names(_) => {
                return None;
            }
        })
    }

    fn observe(&self, scope: &Scope) -> NetState {
        self.kernel.restricted(scope)
    }

    fn apply(&mut self, ops: &[NetOp], at_most: usize) -> Vec<String> {
        let carry_out = |op| self.kernel.apply(op).err().map(|error| error.to_string());
        ops.iter().take(at_most).filter_map(carry_out).collect()
    }

    fn effect(&mut self, effect: &Effect) -> Option<EffectResult> {
        Some(match effect {
            Effect::Pull(_) => EffectResult::Pulled(PulledImage {
                id: "sha256:00".to_owned(),
                config: Arc::default(),
            }),
            Effect::OpenDns(id) => match self.namespace(id) {
                true => EffectResult::Done,
                false => failed("no namespace", true),
            },
            Effect::Create(plan, _) => {
                assert!(
                    self.namespace(&plan.id),
                    "a container is made before its namespace"
                );
                let container = Container {
                    plan: Arc::new((**plan).clone()),
                    phase: Phase::Created,
                    pid: 0,
                };
                assert!(
                    !self.containers.contains_key(&plan.id),
                    "two containers for one task"
                );
                self.containers.insert(plan.id.clone(), container.clone());
                EffectResult::Container(Some(container))
            }
            Effect::Start(id) => {
                self.assert_connected(id);
                if let Some(container) = self.containers.get_mut(id) {
                    container.phase = Phase::Running;
                    container.pid = 42;
                }
                EffectResult::Container(self.containers.get(id).cloned())
            }
            Effect::Signal(id, _) => {
                self.signalled = true;
                self.end(id, 143);
                EffectResult::Done
            }
            Effect::Delete(id) => {
                self.containers.remove(id);
                EffectResult::Container(None)
            }
            Effect::Watch(id) => match self.containers.get(id) {
                Some(container) if container.phase == Phase::Running => return None,
                other => EffectResult::Container(other.cloned()),
            },
            Effect::List => EffectResult::Containers(self.containers.values().cloned().collect()),
        })
    }

    fn namespace(&self, id: &ContainerId) -> bool {
        self.kernel
            .namespaces
            .contains_key(&Ns::Named(id.short().to_owned()))
    }

    /// A program starts only when it has all its interfaces.
    fn assert_connected(&self, id: &ContainerId) {
        let links = &self.kernel.namespaces[&Ns::Named(id.short().to_owned())].links;
        let addresses: BTreeSet<Ipv4Addr> = links
            .values()
            .flat_map(|link| &link.addresses)
            .map(|net| net.addr())
            .collect();
        for address in ["10.255.0.6", "10.0.1.6"] {
            assert!(
                addresses.contains(&address.parse().unwrap()),
                "{address} is not in {addresses:?}"
            );
        }
    }

    fn end(&mut self, id: &ContainerId, code: i32) {
        if let Some(container) = self.containers.get_mut(id)
            && container.phase == Phase::Running
        {
            container.phase = Phase::Exited(Exit {
                code,
                ..Exit::default()
            });
        }
    }

    fn settle(&mut self) {
        for _ in 0..40 {
            self.handle(Input::Tick);
            let mut quiet = true;
            for output in std::mem::take(&mut self.under_way) {
                match self.carry_out(&output) {
                    Some(input) => {
                        quiet = false;
                        self.handle(input);
                    }
                    None => self.under_way.push(output),
                }
            }
            if quiet {
                return;
            }
        }
        panic!("it never rests: {:?}", self.under_way);
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        for _ in 0..10_000 {
            self.settle();
            match self.node.deadline() {
                Some(at) if at <= end => self.now = at.max(self.now + Duration::from_millis(1)),
                _ => break,
            }
        }
        self.now = end;
        self.settle();
    }

    fn assign(&mut self, tasks: Vec<Task>) {
        self.handle(Input::SessionBegun(id(0)));
        self.handle(Input::Assignments(Assignments::Complete {
            results_in: "1".to_owned(),
            tasks,
            dependencies: Vec::new(),
        }));
    }

    fn mesh(&mut self, version: u64, in_service: bool) {
        self.handle(Input::Mesh(Arc::new(mesh(version, in_service))));
    }

    fn crash(&mut self) {
        self.under_way.clear();
        self.acknowledged = 0;
        let containers = self.containers.values().cloned().collect();
        self.node = Node::new(boot(self.disk.clone(), containers), self.now);
        self.handle(Input::Tick);
    }

    fn reboot(&mut self) {
        self.containers.clear();
        self.kernel = NetState::booted();
        self.crash();
    }

    fn state(&self) -> TaskState {
        self.statuses[&id(100)].state
    }

    /// Whether the kernel is what it must be with or without the sandbox of task 100.
    fn exact(&self, version: u64, in_service: bool, running: bool) -> bool {
        let mut sandboxes = BTreeMap::new();
        if running {
            let names = self.names.as_ref().unwrap();
            sandboxes.clone_from(&names.sandboxes);
            assert_eq!(sandboxes.len(), 1);
        }
        let want = desired(&Inputs {
            mesh: &mesh(version, in_service),
            node: &example::whoami(0).node,
            sandboxes: &sandboxes,
        });
        let todo = plan(&want, &self.kernel);
        assert_eq!(todo, Vec::new());
        todo.is_empty()
    }
}

fn failed(message: &str, temporary: bool) -> EffectResult {
    EffectResult::Failed(EffectError {
        temporary,
        message: message.to_owned(),
    })
}

fn boot(saved: Option<Saved>, containers: Vec<Container>) -> Boot {
    Boot {
        node: example::whoami(0).node,
        saved,
        containers,
    }
}

fn mesh(version: u64, in_service: bool) -> MeshMap {
    let mut mesh = example::whoami(0).mesh;
    mesh.version = version;
    for network in mesh.networks.values_mut() {
        network.endpoints.remove(&id(110));
        network.services.remove(&id(21));
        if let Some(endpoint) = network.endpoints.get_mut(&id(100)) {
            endpoint.in_service = in_service;
        }
    }
    mesh
}

fn running() -> Bench {
    let mut bench = Bench::new();
    bench.assign(vec![whoami()]);
    bench.mesh(7, true);
    bench.settle();
    assert_eq!(bench.state(), TaskState::Running);
    bench
}

#[test]
fn a_task_runs_once_its_network_is_there() {
    let mut bench = Bench::new();
    bench.assign(vec![whoami()]);
    bench.settle();
    assert_eq!(
        bench.state(),
        TaskState::Preparing,
        "no map of the networks yet"
    );
    assert_eq!(bench.acknowledged, 0);
    bench.mesh(7, true);
    bench.settle();
    assert_eq!(bench.state(), TaskState::Running);
    assert_eq!(bench.acknowledged, 7);
    assert!(bench.exact(7, true, true));
    let sandbox = bench
        .names
        .unwrap()
        .sandboxes
        .values()
        .next()
        .unwrap()
        .clone();
    assert_eq!(sandbox.gateway_address, Some(Ipv4Addr::new(172, 18, 0, 3)));
    assert_eq!(sandbox.name, format!("whoami.1.{}", id::<Task>(100)));
    assert_eq!(sandbox.ports.len(), 1);
    assert_eq!(sandbox.name_servers, ["9.9.9.9".parse::<IpAddr>().unwrap()]);
}

#[test]
fn an_older_or_malformed_map_is_refused() {
    let mut bench = running();
    let mut bad = mesh(9, true);
    bad.networks.get_mut(&my_demo()).unwrap().vni = 0;
    bench.handle(Input::Mesh(Arc::new(bad)));
    bench.mesh(6, false);
    bench.settle();
    assert!(bench.exact(7, true, true));
    assert_eq!(bench.acknowledged, 7);
}

#[test]
fn a_stop_waits_until_every_node_has_taken_the_task_out() {
    let mut bench = running();
    bench.handle(Input::MeshSettled(7));
    let mut task = whoami();
    task.desired_state = TaskState::Shutdown;
    bench.assign(vec![task]);
    bench.settle();
    assert!(!bench.signalled, "it is in service still");
    bench.mesh(8, false);
    bench.settle();
    assert_eq!(bench.acknowledged, 8);
    assert!(!bench.signalled, "the others have not said so");
    bench.handle(Input::MeshSettled(8));
    bench.settle();
    assert!(bench.signalled);
    assert_eq!(bench.state(), TaskState::Shutdown);
    assert!(bench.exact(8, false, false), "its sandbox is gone");
}

#[test]
fn a_restart_finds_network_and_container_as_they_were() {
    let mut bench = running();
    bench.pass(Duration::from_secs(2));
    let address = bench
        .names
        .take()
        .unwrap()
        .sandboxes
        .values()
        .next()
        .unwrap()
        .gateway_address;
    let kernel = bench.kernel.clone();
    bench.crash();
    // Whatever it does before a manager answers must leave all as it is.
    bench.pass(Duration::from_secs(100));
    assert_eq!(bench.kernel, kernel);
    assert_eq!(
        bench
            .names
            .as_ref()
            .unwrap()
            .sandboxes
            .values()
            .next()
            .unwrap()
            .gateway_address,
        address
    );
    bench.assign(vec![whoami()]);
    bench.mesh(7, true);
    bench.settle();
    assert_eq!(bench.state(), TaskState::Running);
}

#[test]
fn a_restart_without_its_disk_leaves_the_network_alone_until_it_knows_better() {
    let mut bench = running();
    let kernel = bench.kernel.clone();
    bench.disk = None;
    bench.crash();
    bench.pass(Duration::from_secs(100));
    assert_eq!(bench.kernel, kernel);
    let mut known = whoami();
    known.status = bench.statuses[&id(100)].clone();
    bench.assign(vec![known]);
    bench.mesh(7, true);
    bench.settle();
    assert!(bench.exact(7, true, true));
}

#[test]
fn a_rebooted_node_without_managers_runs_what_it_ran() {
    let mut bench = running();
    bench.pass(Duration::from_secs(5));
    bench.reboot();
    bench.pass(Duration::from_secs(30));
    assert_eq!(
        bench.containers[&container_id(&id(100))].phase,
        Phase::Running
    );
    assert!(bench.exact(7, true, true));
}

#[test]
fn junk_in_the_kernel_is_removed_when_an_event_tells_of_it_and_also_when_none_does() {
    let junk = || Link {
        kind: LinkKind::Bridge,
        mac: None,
        mtu: 1500,
        up: true,
        port: None,
        addresses: BTreeSet::new(),
    };
    for (told, pause) in [(true, 1), (false, 61)] {
        let mut bench = running();
        let ns = Ns::Named("ingress_sbox".to_owned());
        bench
            .kernel
            .namespaces
            .get_mut(&ns)
            .unwrap()
            .links
            .insert("junk0".to_owned(), junk());
        if told {
            bench.handle(Input::NetworkChanged(BTreeSet::from([ns])));
        }
        bench.pass(Duration::from_secs(pause));
        assert!(bench.exact(7, true, true));
    }
}

#[test]
fn a_network_that_cannot_be_made_rejects_the_task_and_names_the_error() {
    let mut bench = Bench::new();
    bench.assign(vec![whoami()]);
    bench.mesh(7, true);
    for _ in 0..400 {
        bench.handle(Input::Tick);
        for output in std::mem::take(&mut bench.under_way) {
            let broken = vec!["cannot make br0: no such module".to_owned()];
            let input = if matches!(output, Output::Apply(_)) {
                Some(Input::NetworkApplied(broken))
            } else {
                bench.carry_out(&output)
            };
            if let Some(input) = input {
                bench.handle(input);
            }
        }
        bench.now = bench
            .node
            .deadline()
            .unwrap_or(bench.now)
            .max(bench.now + Duration::from_millis(1));
    }
    assert_eq!(bench.state(), TaskState::Rejected);
    assert_eq!(
        bench.statuses[&id(100)].err,
        "network sandbox: it could not be made: cannot make br0: no such module after 60 s"
    );
    assert_eq!(bench.acknowledged, 0);
}

#[test]
fn leaving_the_swarm_takes_everything_away() {
    let mut bench = running();
    bench.handle(Input::Left);
    bench.pass(Duration::from_secs(30));
    assert!(bench.containers.is_empty());
    let left: Vec<_> = bench
        .kernel
        .namespaces
        .keys()
        .filter(|ns| **ns != Ns::Host)
        .collect();
    let want = desired(&Inputs {
        mesh: &MeshMap::default(),
        node: &crate::network::NodeNet {
            node_id: None,
            ..example::whoami(0).node
        },
        sandboxes: &BTreeMap::new(),
    });
    assert_eq!(
        left,
        want.namespaces
            .keys()
            .filter(|ns| **ns != Ns::Host)
            .collect::<Vec<_>>()
    );
    let saved = bench.disk.unwrap();
    assert_eq!((saved.tasks.len(), saved.node_id), (0, None));
}

#[test]
fn another_nodes_saved_state_is_not_used() {
    let bench = running();
    let mut saved = bench.disk.unwrap();
    saved.node_id = Some(id(9));
    let node = Node::new(boot(Some(saved), Vec::new()), Now(0));
    assert_eq!(node.worker.saved().count(), 0);
    assert!(!node.around.has_mesh());
}

/// What may happen.
#[derive(Debug, Clone)]
enum Event {
    /// The end of one thing under way: which, how far it gets.
    End(u8, u8),
    Desired(u8),
    Map(bool),
    Settled,
    Exit,
    Crash,
    Reboot,
    Junk(u8),
    Pass(u16),
    Lost,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        14 => (any::<u8>(), any::<u8>()).prop_map(|(pick, how)| Event::End(pick, how)),
        2 => (0..3u8).prop_map(Event::Desired),
        2 => any::<bool>().prop_map(Event::Map),
        1 => Just(Event::Settled),
        1 => Just(Event::Exit),
        1 => Just(Event::Crash),
        1 => Just(Event::Reboot),
        1 => any::<u8>().prop_map(Event::Junk),
        4 => (0..5000u16).prop_map(Event::Pass),
        1 => Just(Event::Lost),
    ]
}

/// The managers' side of the play.
struct Play {
    bench: Bench,
    task: Option<Task>,
    version: u64,
    in_service: bool,
}

impl Play {
    fn happen(&mut self, event: &Event) {
        let bench = &mut self.bench;
        match event {
            Event::End(pick, how) => end_one(bench, *pick, *how),
            Event::Desired(0) => self.task = None,
            Event::Desired(which) => {
                let state = [TaskState::Running, TaskState::Shutdown][usize::from(which - 1)];
                if let Some(task) = &mut self.task {
                    task.desired_state = task.desired_state.max(state);
                }
            }
            Event::Map(in_service) => {
                self.version += 1;
                self.in_service = *in_service;
                bench.mesh(self.version, self.in_service);
            }
            Event::Settled => bench.handle(Input::MeshSettled(self.version)),
            Event::Exit => bench.end(&container_id(&id(100)), 1),
            Event::Crash => bench.crash(),
            Event::Reboot => bench.reboot(),
            Event::Junk(which) => soil(&mut bench.kernel, *which),
            Event::Pass(millis) => {
                bench.now = bench.now + Duration::from_millis(u64::from(*millis))
            }
            Event::Lost => bench.handle(Input::SessionLost),
        }
        if let Event::Desired(_) = event {
            self.tell();
        }
        self.bench.handle(Input::Tick);
    }

    fn tell(&mut self) {
        let mut tasks = Vec::from_iter(self.task.clone());
        for task in &mut tasks {
            if let Some(status) = self.bench.statuses.get(&task.id) {
                task.status = status.clone();
            }
        }
        if tasks.is_empty() {
            self.bench.statuses.clear();
        }
        self.bench.assign(tasks);
    }
}

fn end_one(bench: &mut Bench, pick: u8, how: u8) {
    if bench.under_way.is_empty() {
        return;
    }
    let output = bench
        .under_way
        .remove(usize::from(pick) % bench.under_way.len());
    let input = match (&output, how % 5) {
        (Output::Apply(ops), 0) => {
            // It gets as far as this and then the connection to the kernel breaks.
            let mut errors = bench.apply(ops, usize::from(how) / 5);
            errors.push("broken".to_owned());
            Some(Input::NetworkApplied(errors))
        }
        (Output::Observe(_), 0) => Some(Input::NetworkSeen(Err("broken".to_owned()))),
        (Output::Save(_), 0) => Some(Input::SavedDone(Err("disk full".to_owned()))),
        (Output::Effect(id, _), 0) => Some(Input::EffectDone(*id, failed("broken", true))),
        _ => bench.carry_out(&output),
    };
    match input {
        Some(input) => bench.handle(input),
        None => bench.under_way.push(output),
    }
}

/// A foreign hand that nobody tells of.
fn soil(kernel: &mut NetState, which: u8) {
    let names: Vec<Ns> = kernel.namespaces.keys().cloned().collect();
    let ns = &names[usize::from(which) % names.len()];
    let Some(namespace) = kernel.namespaces.get_mut(ns) else {
        return;
    };
    match which % 3 {
        0 => namespace.routes.clear(),
        1 => namespace.neighbours.clear(),
        _ => namespace.ipvs.clear(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    /// Whatever happens, once the trouble is over the kernel is exact, the newest map is acknowledged and the task
    /// is where the managers want it. On the way no program starts without its interfaces (`assert_connected`).
    #[test]
    fn the_node_converges(events in prop::collection::vec(event(), 0..100)) {
        let mut bench = Bench::new();
        bench.assign(vec![whoami()]);
        bench.mesh(7, true);
        let mut play = Play { bench, task: Some(whoami()), version: 7, in_service: true };
        for event in &events {
            play.happen(event);
        }
        play.tell();
        play.version += 1;
        play.bench.mesh(play.version, play.in_service);
        play.bench.pass(Duration::from_secs(400));
        let phase = play.bench.containers.get(&container_id(&id(100))).map(|one| one.phase.clone());
        let runs = phase == Some(Phase::Running);
        prop_assert!(play.bench.exact(play.version, play.in_service, runs));
        prop_assert_eq!(play.bench.acknowledged, play.version);
        match &play.task {
            None => prop_assert_eq!(phase, None),
            Some(task) => {
                let state = play.bench.state();
                let ended = state.is_terminal();
                prop_assert!(ended || state == TaskState::Running, "{state:?}");
                prop_assert_eq!(ended, !runs, "{:?} {:?}", state, phase);
                prop_assert!(ended || task.desired_state == TaskState::Running);
            }
        }
    }
}

#[test]
fn the_model_refuses_nonsense() {
    // The model must be able to fail, or the tests above prove nothing.
    let mut kernel = NetState::booted();
    let op = NetOp {
        ns: Ns::Named("nowhere".to_owned()),
        step: Step::SetUp("eth0".to_owned(), true),
    };
    assert!(kernel.apply(&op).is_err());
    let _ = EffectId(0);
}
