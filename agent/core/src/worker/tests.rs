//! The worker against a model of a host that fails, delays, forgets and crashes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use proptest::prelude::*;

use super::{
    Environment, NetworkFact, TaskFacts, Worker, WorkerOutput,
    assignments::{AssignmentChange, Assignments},
    container::plan::{ContainerId, ContainerPlan, EtcFiles, LogLimits, Stdio},
    effect::{
        Container, Effect, EffectError, EffectId, EffectResult, Exit, Phase, PulledImage,
        TASK_LABEL,
    },
};
use crate::{
    api::{ContainerSpec, DependencyId, Endpoint, Meta, Task, TaskSpec, TaskState, TaskStatus},
    id::Id,
    time::{Now, Timestamp},
};

pub(crate) fn task(number: u128) -> Task {
    Task {
        id: Id::from_entropy(number),
        meta: Meta::default(),
        spec: TaskSpec {
            container_spec: Some(ContainerSpec {
                image: "busybox".to_owned(),
                ..ContainerSpec::default()
            }),
            ..TaskSpec::default()
        },
        spec_version: 0,
        service_id: Id::from_entropy(1),
        service_name: "web".to_owned(),
        service_labels: BTreeMap::new(),
        slot: 1,
        node_id: Some(Id::from_entropy(2)),
        status: TaskStatus {
            state: TaskState::Assigned,
            ..TaskStatus::default()
        },
        desired_state: TaskState::Running,
        networks: Vec::new(),
        endpoint: Endpoint::default(),
        not_before: None,
        predecessor: None,
        running_since: None,
        job_iteration: None,
    }
}

pub(crate) fn plan(task: &Task) -> ContainerPlan {
    ContainerPlan {
        id: super::effect::container_id(&task.id),
        name: task.name(),
        image: "busybox".to_owned(),
        image_id: "sha256:00".to_owned(),
        labels: [(TASK_LABEL.to_owned(), task.id.to_string())].into(),
        created_at: 0,
        spec: oci_spec::runtime::Spec::default(),
        user: String::new(),
        groups: Vec::new(),
        files: EtcFiles::default(),
        volumes: Vec::new(),
        provided: Vec::new(),
        stdio: Stdio::default(),
        log: LogLimits::default(),
        stop_signal: 15,
        stop_grace: 10_000_000_000,
    }
}

/// What the rest of the node says.
struct Env {
    network: NetworkFact,
    left_mesh: bool,
}

impl Default for Env {
    fn default() -> Self {
        Self {
            network: NetworkFact::Ready,
            left_mesh: true,
        }
    }
}

impl Environment for Env {
    fn facts(&self, _: &Id<Task>) -> TaskFacts {
        TaskFacts {
            network: self.network.clone(),
            left_mesh: self.left_mesh,
        }
    }

    fn plan(&self, task: &Task, _: &PulledImage, _: Timestamp) -> Result<ContainerPlan, String> {
        Ok(plan(task))
    }
}

/// The worker, its host and its manager.
struct Bench {
    worker: Worker,
    env: Env,
    now: Now,
    containers: BTreeMap<ContainerId, Container>,
    under_way: Vec<(EffectId, Effect)>,
    signals: Vec<i32>,
    reported: BTreeMap<Id<Task>, TaskStatus>,
    assigned: BTreeMap<Id<Task>, Task>,
    sequence: u64,
    reopen: bool,
    /// Ids are never used again.
    removed: BTreeSet<u128>,
}

impl Bench {
    fn new() -> Self {
        Self {
            worker: Worker::adopt(Vec::new(), Vec::new(), Now(0)),
            env: Env::default(),
            now: Now(0),
            containers: BTreeMap::new(),
            under_way: Vec::new(),
            signals: Vec::new(),
            reported: BTreeMap::new(),
            assigned: BTreeMap::new(),
            sequence: 0,
            reopen: false,
            removed: BTreeSet::new(),
        }
    }

    /// Lets the worker decide, and takes what it decided.
    fn run(&mut self) {
        self.worker
            .run(&self.env, self.now, Timestamp(i128::from(self.now.0)));
        while let Some(output) = self.worker.poll_output() {
            match output {
                WorkerOutput::Effect(id, effect) => self.under_way.push((id, effect)),
                WorkerOutput::Status(batch, statuses) => {
                    for (task, status) in statuses {
                        self.hear(task, status);
                    }
                    self.worker.status_done(batch, true, self.now);
                }
                WorkerOutput::ReopenAssignments => self.reopen = true,
            }
        }
    }

    fn hear(&mut self, task: Id<Task>, status: TaskStatus) {
        if let Some(before) = self.reported.get(&task) {
            assert!(before.state <= status.state, "{before:?} then {status:?}");
        }
        if let Some(assigned) = self.assigned.get_mut(&task) {
            assigned.status = status.clone();
        }
        self.reported.insert(task, status);
    }

    fn answer(&mut self, id: EffectId, result: EffectResult) {
        self.worker
            .effect_done(id, result, self.now, Timestamp(i128::from(self.now.0)));
    }

    /// Carries an effect out on the model; `None` while it is not at its end.
    fn carry_out(&mut self, effect: &Effect) -> Option<EffectResult> {
        Some(match effect {
            Effect::Pull(_) => EffectResult::Pulled(PulledImage {
                id: "sha256:00".to_owned(),
                config: Arc::default(),
            }),
            Effect::OpenDns(_) => EffectResult::Done,
            Effect::Create(plan, _) => {
                let container = Container {
                    plan: Arc::new((**plan).clone()),
                    phase: Phase::Created,
                    pid: 0,
                };
                let before = self.containers.insert(plan.id.clone(), container.clone());
                assert!(before.is_none(), "two containers for one task");
                EffectResult::Container(Some(container))
            }
            Effect::Start(id) => {
                if let Some(container) = self.containers.get_mut(id)
                    && container.phase == Phase::Created
                {
                    container.phase = Phase::Running;
                    container.pid = 42;
                }
                EffectResult::Container(self.containers.get(id).cloned())
            }
            Effect::Signal(id, signal) => {
                self.signals.push(*signal);
                self.end(id, 128 + signal);
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

    fn end(&mut self, id: &ContainerId, code: i32) {
        if let Some(container) = self.containers.get_mut(id)
            && container.phase == Phase::Running
        {
            container.phase = Phase::Exited(Exit {
                code,
                ..Exit::default()
            });
            container.pid = 0;
        }
    }

    /// One step forward: everything under way is carried out.
    fn settle(&mut self) {
        for _ in 0..12 {
            self.run();
            for (id, effect) in std::mem::take(&mut self.under_way) {
                match self.carry_out(&effect) {
                    Some(result) => self.answer(id, result),
                    None => self.under_way.push((id, effect)),
                }
            }
        }
        self.run();
    }

    /// Lets time pass, in steps at the worker's own deadlines.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        for _ in 0..10_000 {
            self.settle();
            match self.worker.deadline() {
                Some(at) if at <= end => self.now = at.max(self.now + Duration::from_millis(1)),
                _ => break,
            }
        }
        self.now = end;
        self.settle();
    }

    fn assign_all(&mut self) {
        self.sequence += 1;
        self.reopen = false;
        self.worker.assign(Assignments::Complete {
            results_in: self.sequence.to_string(),
            tasks: self.assigned.values().cloned().collect(),
            dependencies: Vec::new(),
        });
    }

    fn change(&mut self, change: AssignmentChange) {
        let applies_to = self.sequence.to_string();
        self.sequence += 1;
        self.worker.assign(Assignments::Incremental {
            applies_to,
            results_in: self.sequence.to_string(),
            changes: vec![change],
        });
    }

    fn want(&mut self, number: u128, desired: TaskState) {
        if self.removed.contains(&number) {
            return;
        }
        let task = self
            .assigned
            .entry(Id::from_entropy(number))
            .or_insert_with(|| task(number));
        task.desired_state = task.desired_state.max(desired);
        let task = task.clone();
        self.change(AssignmentChange::Update(Box::new(task)));
    }

    fn unassign(&mut self, number: u128) {
        let id = Id::from_entropy(number);
        self.removed.insert(number);
        self.assigned.remove(&id);
        self.reported.remove(&id);
        self.change(AssignmentChange::Remove(id));
    }

    /// skepd dies: what is under way happens as far as `happen` says, its answers are lost.
    fn crash(&mut self, happen: bool, saved: bool) {
        if happen {
            for (_, effect) in std::mem::take(&mut self.under_way) {
                self.carry_out(&effect);
            }
        }
        self.under_way.clear();
        let tasks = if saved {
            self.worker.saved().collect()
        } else {
            Vec::new()
        };
        self.worker = Worker::adopt(tasks, self.containers.values().cloned().collect(), self.now);
    }

    fn connect(&mut self) {
        self.worker.begin_session();
        self.assign_all();
    }

    fn state(&self, number: u128) -> TaskState {
        self.reported[&Id::from_entropy(number)].state
    }

    fn err(&self, number: u128) -> &str {
        &self.reported[&Id::from_entropy(number)].err
    }

    fn id_of(number: u128) -> ContainerId {
        super::effect::container_id(&Id::from_entropy(number))
    }

    fn phase(&self, number: u128) -> Option<&Phase> {
        self.containers
            .get(&Self::id_of(number))
            .map(|container| &container.phase)
    }
}

fn started(number: u128) -> Bench {
    let mut bench = Bench::new();
    bench.connect();
    bench.want(number, TaskState::Running);
    bench.settle();
    assert_eq!(bench.state(number), TaskState::Running);
    assert_eq!(bench.phase(number), Some(&Phase::Running));
    bench
}

#[test]
fn a_task_is_prepared_and_started() {
    let bench = started(10);
    let status = &bench.reported[&Id::from_entropy(10)];
    let container = status.container_status.as_ref().unwrap();
    assert_eq!(container.container_id, Bench::id_of(10).as_str());
    assert_eq!((container.pid, status.message.as_str()), (42, "started"));
}

#[test]
fn a_task_wanted_ready_waits_for_its_turn() {
    let mut bench = Bench::new();
    bench.connect();
    let mut waiting = task(10);
    waiting.desired_state = TaskState::Ready;
    bench.assigned.insert(waiting.id.clone(), waiting);
    bench.want(10, TaskState::Ready);
    bench.settle();
    assert_eq!(
        (bench.state(10), bench.phase(10)),
        (TaskState::Ready, Some(&Phase::Created))
    );
    bench.want(10, TaskState::Running);
    bench.settle();
    assert_eq!(bench.state(10), TaskState::Running);
}

#[test]
fn a_task_of_a_job_runs_to_its_end() {
    let mut bench = Bench::new();
    bench.connect();
    let mut part = task(10);
    (part.job_iteration, part.desired_state) = (Some(0), TaskState::Complete);
    bench.assigned.insert(part.id.clone(), part);
    bench.want(10, TaskState::Complete);
    bench.settle();
    assert_eq!(bench.state(10), TaskState::Running);
    assert_eq!(bench.phase(10), Some(&Phase::Running), "nobody stops it");
    bench.end(&Bench::id_of(10), 0);
    bench.settle();
    assert_eq!(bench.state(10), TaskState::Complete);
}

#[test]
fn ends_are_reported_in_dockers_words() {
    for (code, state, err) in [
        (0, TaskState::Complete, ""),
        (1, TaskState::Failed, "task: non-zero exit (1)"),
        (137, TaskState::Failed, "task: non-zero exit (137)"),
    ] {
        let mut bench = started(10);
        bench.end(&Bench::id_of(10), code);
        bench.settle();
        assert_eq!((bench.state(10), bench.err(10)), (state, err));
        let status = &bench.reported[&Id::from_entropy(10)];
        assert_eq!(status.container_status.as_ref().unwrap().exit_code, code);
        assert_eq!(
            bench.worker.living().count(),
            0,
            "its sandbox is not needed"
        );
    }
}

#[test]
fn an_unknown_image_rejects_the_task() {
    let mut bench = Bench::new();
    bench.connect();
    bench.want(10, TaskState::Running);
    bench.run();
    let (id, effect) = bench.under_way.pop().unwrap();
    assert!(matches!(effect, Effect::Pull(_)));
    let message = "No such image: busybox:latest".to_owned();
    bench.answer(
        id,
        EffectResult::Failed(EffectError {
            temporary: false,
            message,
        }),
    );
    bench.settle();
    assert_eq!(
        (bench.state(10), bench.err(10)),
        (TaskState::Rejected, "No such image: busybox:latest")
    );
    assert_eq!(bench.worker.sandboxes_to_make().count(), 0);
}

#[test]
fn a_passing_failure_is_tried_again_a_bounded_number_of_times() {
    let mut bench = Bench::new();
    bench.connect();
    bench.want(10, TaskState::Running);
    let mut tries = 0;
    while tries < 20 {
        bench.run();
        let pull = bench
            .under_way
            .iter()
            .position(|(_, effect)| matches!(effect, Effect::Pull(_)));
        if let Some((id, _)) = pull.map(|index| bench.under_way.remove(index)) {
            tries += 1;
            let message = "registry is down".to_owned();
            bench.answer(
                id,
                EffectResult::Failed(EffectError {
                    temporary: true,
                    message,
                }),
            );
        }
        if bench.state(10) == TaskState::Rejected {
            break;
        }
        bench.now = bench.worker.deadline().unwrap();
    }
    assert_eq!((tries, bench.err(10)), (6, "registry is down"));
}

#[test]
fn a_bad_reference_is_named() {
    let mut bench = Bench::new();
    bench.connect();
    let mut bad = task(10);
    bad.spec.container_spec.as_mut().unwrap().image = "UPPER".to_owned();
    bench.assigned.insert(bad.id.clone(), bad);
    bench.want(10, TaskState::Running);
    bench.settle();
    assert_eq!(bench.state(10), TaskState::Rejected);
    assert!(
        bench.err(10).starts_with("invalid reference format"),
        "{}",
        bench.err(10)
    );
}

#[test]
fn a_start_waits_for_the_network_and_not_for_ever() {
    let mut bench = Bench::new();
    bench.env.network = NetworkFact::Waiting("network my-demo is not known here".to_owned());
    bench.connect();
    bench.want(10, TaskState::Running);
    bench.settle();
    assert_eq!(
        (bench.state(10), bench.phase(10)),
        (TaskState::Preparing, None)
    );
    assert_eq!(bench.worker.sandboxes_to_make().count(), 1);
    bench.pass(Duration::from_secs(61));
    assert_eq!(bench.state(10), TaskState::Rejected);
    assert_eq!(
        bench.err(10),
        "network sandbox: network my-demo is not known here after 60 s"
    );
}

fn secret_id() -> DependencyId {
    DependencyId::Secret(Id::from_entropy(77))
}

/// A bench whose task 10 uses the secret `db`.
fn with_secret() -> Bench {
    let mut bench = Bench::new();
    let mut one = task(10);
    let container = one.spec.container_spec.as_mut().unwrap();
    container.secrets = vec![crate::api::SecretReference {
        file: Some(crate::api::FileTarget {
            name: "db".to_owned(),
            ..crate::api::FileTarget::default()
        }),
        secret_id: Id::<crate::api::Secret>::from_entropy(77).to_string(),
        secret_name: "db".to_owned(),
    }];
    bench.assigned.insert(one.id.clone(), one);
    bench
}

#[test]
fn a_task_waits_for_its_secret_and_says_so() {
    let mut bench = with_secret();
    bench.connect();
    bench.settle();
    assert_eq!(bench.state(10), TaskState::Preparing);
    let message = &bench.reported[&Id::from_entropy(10)].message;
    assert_eq!(message, "waiting for secret db");
    bench.pass(Duration::from_secs(59));
    assert_eq!(bench.state(10), TaskState::Preparing);
    bench.change(AssignmentChange::Provide(secret_id(), b"x".to_vec().into()));
    bench.settle();
    assert_eq!(bench.state(10), TaskState::Running);
    bench.change(AssignmentChange::Withdraw(secret_id()));
    bench.settle();
    assert_eq!(bench.worker.dependencies().count(), 0);
    assert_eq!(bench.state(10), TaskState::Running, "it has its file");
}

#[test]
fn a_secret_that_no_manager_has_rejects_the_task_by_name() {
    let mut bench = with_secret();
    bench.connect();
    bench.pass(Duration::from_secs(61));
    let told = (bench.state(10), bench.err(10));
    assert_eq!(told, (TaskState::Rejected, "secret db not found"));
}

#[test]
fn contents_go_to_the_host_with_the_plan_and_nowhere_else() {
    let mut bench = with_secret();
    bench.connect();
    let content: crate::api::Payload = b"canary-5e1f".to_vec().into();
    bench.change(AssignmentChange::Provide(secret_id(), content.clone()));
    bench.run();
    let mut given = None;
    for _ in 0..12 {
        for (id, effect) in std::mem::take(&mut bench.under_way) {
            let shown = format!("{effect:?}");
            assert!(
                !shown.contains("canary") && !shown.contains("99, 97"),
                "{shown}"
            );
            if let Effect::Create(plan, contents) = &effect {
                let plan = serde_json::to_string(plan).unwrap();
                assert!(!plan.contains("canary") && !plan.contains("Y2FuYXJ5"));
                given = Some(contents.clone());
            }
            let result = bench.carry_out(&effect);
            result
                .into_iter()
                .for_each(|result| bench.answer(id, result));
        }
        bench.run();
    }
    assert_eq!(given.unwrap(), [(secret_id(), content)].into());
    let saved: Vec<Task> = bench.worker.saved().collect();
    let saved = serde_json::to_string(&saved).unwrap();
    assert!(
        !saved.contains("canary") && !saved.contains("Y2FuYXJ5"),
        "{saved}"
    );
}

#[test]
fn a_rebooted_node_without_managers_waits_for_a_secret_as_long_as_it_takes() {
    let mut bench = with_secret();
    let provide = || AssignmentChange::Provide(secret_id(), b"x".to_vec().into());
    bench.connect();
    bench.change(provide());
    bench.settle();
    assert_eq!(bench.state(10), TaskState::Running);
    bench.containers.clear();
    bench.crash(false, true);
    bench.pass(Duration::from_secs(3600));
    assert_eq!(bench.phase(10), None);
    bench.connect();
    bench.change(provide());
    bench.settle();
    let there = (bench.state(10), bench.phase(10));
    assert_eq!(there, (TaskState::Running, Some(&Phase::Running)));
}

#[test]
fn a_restart_leaves_what_runs_with_a_secret_alone() {
    let mut bench = with_secret();
    bench.connect();
    bench.change(AssignmentChange::Provide(secret_id(), b"x".to_vec().into()));
    bench.settle();
    bench.crash(false, true);
    bench.pass(Duration::from_secs(100));
    bench.connect();
    bench.settle();
    assert_eq!(bench.phase(10), Some(&Phase::Running));
    assert_eq!(
        (bench.state(10), bench.signals.len()),
        (TaskState::Running, 0)
    );
    bench.worker.leave();
    assert_eq!(bench.worker.dependencies().count(), 0);
}

#[test]
fn a_stop_waits_for_the_mesh_then_asks_then_kills() {
    let mut bench = started(10);
    bench.env.left_mesh = false;
    bench.want(10, TaskState::Shutdown);
    bench.run();
    let signals = |bench: &Bench| -> Vec<Effect> {
        let is_signal = |effect: &&Effect| matches!(effect, Effect::Signal(..));
        bench
            .under_way
            .iter()
            .map(|(_, effect)| effect)
            .filter(is_signal)
            .cloned()
            .collect()
    };
    assert_eq!(signals(&bench), []);
    bench.now = bench.now + Duration::from_secs(1);
    bench.env.left_mesh = true;
    bench.run();
    assert_eq!(signals(&bench), [Effect::Signal(Bench::id_of(10), 15)]);
    // A program that ignores it.
    let position = bench
        .under_way
        .iter()
        .position(|(_, e)| matches!(e, Effect::Signal(..)))
        .unwrap();
    let (id, _) = bench.under_way.remove(position);
    bench.answer(id, EffectResult::Done);
    bench.run();
    assert_eq!(signals(&bench), []);
    bench.now = bench.now + Duration::from_secs(10);
    bench.run();
    assert_eq!(signals(&bench), [Effect::Signal(Bench::id_of(10), 9)]);
    bench.settle();
    assert_eq!(bench.state(10), TaskState::Shutdown);
    let status = &bench.reported[&Id::from_entropy(10)];
    assert_eq!(status.container_status.as_ref().unwrap().exit_code, 137);
}

#[test]
fn the_mesh_is_waited_for_three_seconds_at_most() {
    let mut bench = started(10);
    bench.env.left_mesh = false;
    bench.want(10, TaskState::Shutdown);
    bench.pass(Duration::from_millis(2_900));
    assert_eq!(bench.signals, Vec::<i32>::new());
    bench.pass(Duration::from_millis(200));
    assert_eq!(bench.signals, [15]);
    assert_eq!(bench.state(10), TaskState::Shutdown);
}

#[test]
fn what_is_no_longer_assigned_is_stopped_and_removed() {
    let mut bench = started(10);
    bench.unassign(10);
    bench.settle();
    assert_eq!(bench.signals, [15]);
    assert_eq!(bench.phase(10), None);
    assert_eq!(bench.worker.saved().count(), 0);
}

#[test]
fn a_restart_adopts_what_runs() {
    for saved in [true, false] {
        let mut bench = started(10);
        bench.crash(false, saved);
        bench.settle();
        assert_eq!(bench.worker.living().count(), 1, "its sandbox stays");
        bench.connect();
        bench.settle();
        assert_eq!(
            (bench.state(10), bench.phase(10)),
            (TaskState::Running, Some(&Phase::Running))
        );
        assert_eq!(bench.signals, Vec::<i32>::new());
    }
}

#[test]
fn an_end_while_skepd_was_dead_keeps_its_exit_code() {
    let mut bench = started(10);
    bench.crash(false, true);
    bench.end(&Bench::id_of(10), 3);
    bench.crash(false, true);
    bench.connect();
    bench.settle();
    assert_eq!(
        (bench.state(10), bench.err(10)),
        (TaskState::Failed, "task: non-zero exit (3)")
    );
}

#[test]
fn a_stranger_of_an_old_life_goes_only_on_a_managers_word() {
    let mut bench = started(10);
    bench.assigned.clear();
    bench.crash(false, false);
    bench.pass(Duration::from_secs(300));
    assert_eq!(bench.phase(10), Some(&Phase::Running));
    bench.connect();
    bench.settle();
    assert_eq!(bench.phase(10), None);
}

#[test]
fn a_rebooted_node_with_managers_reports_what_is_lost() {
    let mut bench = started(10);
    bench.containers.clear();
    bench.crash(false, true);
    bench.connect();
    bench.settle();
    assert_eq!(bench.state(10), TaskState::Failed);
    assert!(
        bench.err(10).starts_with("task: container is gone"),
        "{}",
        bench.err(10)
    );
}

#[test]
fn a_rebooted_node_without_managers_runs_what_it_ran() {
    let mut bench = started(10);
    bench.containers.clear();
    bench.crash(false, true);
    bench.pass(Duration::from_secs(19));
    assert_eq!(bench.phase(10), None);
    bench.pass(Duration::from_secs(2));
    assert_eq!(bench.phase(10), Some(&Phase::Running));
    bench.connect();
    bench.settle();
    assert_eq!(bench.state(10), TaskState::Running);
}

#[test]
fn a_gap_in_the_stream_opens_it_again() {
    let mut bench = started(10);
    bench.sequence += 1;
    bench.want(11, TaskState::Running);
    bench.settle();
    assert!(bench.reopen);
    bench.assign_all();
    bench.settle();
    assert_eq!(bench.state(11), TaskState::Running);
}

#[test]
fn statuses_are_reported_again_in_a_new_session() {
    let mut bench = started(10);
    bench.reported.clear();
    bench.settle();
    assert!(bench.reported.is_empty());
    bench.worker.end_session();
    bench.worker.begin_session();
    bench.settle();
    assert_eq!(bench.state(10), TaskState::Running);
}

#[test]
fn leaving_the_swarm_removes_everything() {
    let mut bench = started(10);
    bench.worker.leave();
    bench.settle();
    assert!(bench.containers.is_empty());
}

#[test]
fn a_list_older_than_a_new_container_is_not_believed() {
    let mut bench = Bench::new();
    bench.connect();
    bench.want(10, TaskState::Running);
    bench.pass(Duration::from_secs(59));
    bench.want(11, TaskState::Running);
    bench.now = Now(0) + Duration::from_secs(60);
    bench.run();
    let position = bench
        .under_way
        .iter()
        .position(|(_, e)| *e == Effect::List)
        .unwrap();
    let (list, effect) = bench.under_way.remove(position);
    let result = bench.carry_out(&effect).unwrap();
    bench.settle();
    assert_eq!(bench.state(11), TaskState::Running);
    bench.answer(list, result);
    bench.settle();
    assert_eq!(
        (bench.state(10), bench.state(11)),
        (TaskState::Running, TaskState::Running)
    );
}

/// What may happen to the worker.
#[derive(Debug, Clone)]
enum Event {
    Want(u8, u8),
    Unassign(u8),
    /// The answer to one effect: what it picks, and whether it succeeds, fails in passing or for good.
    Answer(u8, u8),
    End(u8, u8),
    Vanish(u8),
    Crash(bool, bool),
    Connect,
    Lose,
    Gap,
    Pass(u8),
    Network(bool),
    Mesh(bool),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0..4u8, 0..4u8).prop_map(|(task, state)| Event::Want(task, state)),
        1 => (0..4u8).prop_map(Event::Unassign),
        12 => (any::<u8>(), any::<u8>()).prop_map(|(pick, how)| Event::Answer(pick, how)),
        1 => (0..4u8, any::<u8>()).prop_map(|(task, code)| Event::End(task, code)),
        1 => (0..4u8).prop_map(Event::Vanish),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(happen, saved)| Event::Crash(happen, saved)),
        2 => Just(Event::Connect),
        1 => Just(Event::Lose),
        1 => Just(Event::Gap),
        3 => (0..40u8).prop_map(Event::Pass),
        1 => any::<bool>().prop_map(Event::Network),
        1 => any::<bool>().prop_map(Event::Mesh),
    ]
}

fn happen(bench: &mut Bench, event: &Event) {
    match event {
        Event::Want(task, state) => {
            let states = [
                TaskState::Ready,
                TaskState::Running,
                TaskState::Complete,
                TaskState::Shutdown,
            ];
            let state = states[usize::from(*state)];
            bench.want(u128::from(*task), state);
        }
        Event::Unassign(task) => bench.unassign(u128::from(*task)),
        Event::Answer(pick, how) => {
            if !bench.under_way.is_empty() {
                let index = usize::from(*pick) % bench.under_way.len();
                let (id, effect) = bench.under_way.remove(index);
                let failed = |temporary| {
                    EffectResult::Failed(EffectError {
                        temporary,
                        message: "broken".to_owned(),
                    })
                };
                let result = match how % 8 {
                    0 => Some(failed(true)),
                    1 if *how > 192 => Some(failed(false)),
                    _ => bench.carry_out(&effect),
                };
                match result {
                    Some(result) => bench.answer(id, result),
                    None => bench.under_way.push((id, effect)),
                }
            }
        }
        Event::End(task, code) => bench.end(&Bench::id_of(u128::from(*task)), i32::from(*code)),
        Event::Vanish(task) => {
            bench.containers.remove(&Bench::id_of(u128::from(*task)));
        }
        Event::Crash(happen, saved) => bench.crash(*happen, *saved),
        Event::Connect => bench.connect(),
        Event::Lose => bench.worker.end_session(),
        Event::Gap => bench.sequence += 1,
        Event::Pass(seconds) => bench.now = bench.now + Duration::from_secs(u64::from(*seconds)),
        Event::Network(true) => bench.env.network = NetworkFact::Ready,
        Event::Network(false) => bench.env.network = NetworkFact::Waiting("late".to_owned()),
        Event::Mesh(left) => bench.env.left_mesh = *left,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever happens, once the trouble is over the host is what the managers want; on the way no task
    /// ever has two containers and no state ever goes back (`Bench::carry_out` and `Bench::hear` assert that).
    #[test]
    fn the_worker_converges(events in prop::collection::vec(event(), 0..120)) {
        let mut bench = Bench::new();
        bench.connect();
        for event in &events {
            happen(&mut bench, event);
            bench.run();
            let busy: BTreeSet<_> = bench.under_way.iter().map(|(id, _)| *id).collect();
            prop_assert_eq!(busy.len(), bench.under_way.len(), "an id twice");
        }
        bench.env = Env::default();
        bench.connect();
        bench.pass(Duration::from_secs(300));
        for (id, task) in &bench.assigned {
            let phase = bench.containers.get(&super::effect::container_id(id)).map(|c| &c.phase);
            let state = bench.reported[id].state;
            let runs = phase == Some(&Phase::Running);
            match (task.desired_state, state) {
                (_, state) if state.is_terminal() => prop_assert!(!runs, "{state:?} and it runs"),
                (TaskState::Ready, TaskState::Ready) => prop_assert_eq!(phase, Some(&Phase::Created)),
                // Wanted Ready by a manager that already saw it run: it runs on.
                (TaskState::Ready | TaskState::Running | TaskState::Complete, TaskState::Running) => {
                    prop_assert!(runs);
                }
                other => prop_assert!(false, "{other:?} with {phase:?}"),
            }
        }
        let wanted: BTreeSet<_> = bench.assigned.keys().map(super::effect::container_id).collect();
        for id in bench.containers.keys() {
            prop_assert!(wanted.contains(id), "container {id} is nobody's");
        }
    }
}
