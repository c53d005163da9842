//! All tasks of the node.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use super::{
    assignments::{AssignmentChange, Assignments, Sequence},
    container::plan::ContainerId,
    dependencies::Dependencies,
    effect::{Container, Effect, EffectId, EffectResult, Phase},
    reporter::Reporter,
    task::{Context, Environment, Mode, Moment, Step, TaskRun, Work},
};
use crate::{
    api::{DependencyId, Task, TaskStatus},
    id::Id,
    time::{Now, Timestamp},
};

/// How long after its start a node waits for a manager before it goes on with what it knew.
const ALONE_AFTER: Duration = Duration::from_secs(20);
/// How often the host is asked what containers there are, in case an event was missed.
const LIST_EVERY: Duration = Duration::from_secs(60);

/// What the worker wants done.
#[derive(Debug, Clone, PartialEq)]
pub enum WorkerOutput {
    /// Do this and answer with its id.
    Effect(EffectId, Effect),
    /// Tell the managers; answer with the number of the message.
    Status(u64, Vec<(Id<Task>, TaskStatus)>),
    /// A message is missing: open the stream of assignments again.
    ReopenAssignments,
}

/// To whom a result belongs.
#[derive(Debug, Clone, PartialEq)]
enum Target {
    Task(Id<Task>, Work),
    Watch(Id<Task>),
    List,
}

/// The tasks of this node and what is under way for them.
#[derive(Debug)]
pub struct Worker {
    tasks: BTreeMap<Id<Task>, TaskRun>,
    dependencies: Dependencies,
    /// Containers of tasks that the disk did not know; a manager will say.
    unclaimed: BTreeMap<ContainerId, Container>,
    sequence: Sequence,
    mode: Mode,
    started: Now,
    reporter: Reporter,
    targets: BTreeMap<EffectId, Target>,
    next_effect: u64,
    next_list: Now,
    outputs: VecDeque<WorkerOutput>,
    deadline: Option<Now>,
    changed: bool,
}

impl Worker {
    /// Takes up what an earlier life left: the tasks on disk and the containers on the host.
    #[must_use]
    pub fn adopt(tasks: Vec<Task>, containers: Vec<Container>, now: Now) -> Self {
        let mut worker = Self {
            tasks: tasks
                .into_iter()
                .map(|task| (task.id.clone(), TaskRun::new(task)))
                .collect(),
            dependencies: Dependencies::default(),
            unclaimed: BTreeMap::new(),
            sequence: Sequence::default(),
            mode: Mode::Adopting,
            started: now,
            reporter: Reporter::default(),
            targets: BTreeMap::new(),
            next_effect: 1,
            next_list: now + LIST_EVERY,
            outputs: VecDeque::new(),
            deadline: None,
            changed: false,
        };
        worker.observe_all(EffectId(0), containers);
        worker
    }

    /// Takes a message of the Assignments stream.
    pub fn assign(&mut self, message: Assignments) {
        if !self.sequence.accept(&message) {
            self.outputs.push_back(WorkerOutput::ReopenAssignments);
            return;
        }
        self.changed = true;
        match message {
            Assignments::Complete {
                tasks,
                dependencies,
                ..
            } => {
                self.dependencies.replace(dependencies);
                self.assign_all(tasks);
            }
            Assignments::Incremental { changes, .. } => {
                for change in changes {
                    match change {
                        AssignmentChange::Update(task) => self.assign_one(*task),
                        AssignmentChange::Remove(id) => self.drop_task(&id),
                        AssignmentChange::Provide(id, content) => {
                            self.dependencies.provide(id, content);
                        }
                        AssignmentChange::Withdraw(id) => self.dependencies.withdraw(&id),
                    }
                }
            }
        }
    }

    fn assign_all(&mut self, tasks: Vec<Task>) {
        self.mode = Mode::Assigned;
        let assigned: BTreeMap<_, _> = tasks
            .into_iter()
            .map(|task| (task.id.clone(), task))
            .collect();
        let gone: Vec<_> = self
            .tasks
            .keys()
            .filter(|id| !assigned.contains_key(id))
            .cloned()
            .collect();
        for id in gone {
            self.drop_task(&id);
        }
        for task in assigned.into_values() {
            self.assign_one(task);
        }
        for container in std::mem::take(&mut self.unclaimed).into_values() {
            self.claim(container);
        }
        // What the disk remembers may have been corrected.
        self.report_all();
    }

    fn assign_one(&mut self, task: Task) {
        let id = task.id.clone();
        match self.tasks.get_mut(&id) {
            Some(run) => run.assign(task),
            None => {
                let mut run = TaskRun::new(task);
                if let Some(container) = self.unclaimed.remove(&run.container_id()) {
                    run.observe(Some(container));
                }
                self.tasks.insert(id, run);
            }
        }
    }

    fn drop_task(&mut self, id: &Id<Task>) {
        if let Some(run) = self.tasks.get_mut(id) {
            run.dropped = true;
            self.reporter.forget(id);
        }
    }

    /// The node has left the swarm: nothing is assigned to it any more.
    pub fn leave(&mut self) {
        self.sequence.reset();
        self.dependencies.replace(Vec::new());
        self.assign_all(Vec::new());
        self.reporter.end_session();
        self.changed = true;
    }

    /// A session with a manager stands: every status is reported again, and a new stream begins.
    pub fn begin_session(&mut self) {
        self.sequence.reset();
        self.reporter.begin_session();
        self.report_all();
    }

    fn report_all(&mut self) {
        for (id, run) in self.tasks.iter().filter(|(_, run)| !run.dropped) {
            self.reporter.report(id, &run.status);
        }
    }

    /// The session is lost.
    pub fn end_session(&mut self) {
        self.reporter.end_session();
    }

    /// A manager has taken a message of statuses, or none has.
    pub fn status_done(&mut self, batch: u64, accepted: bool, now: Now) {
        self.reporter.done(batch, accepted, now);
    }

    /// Takes what came of an effect.
    pub fn effect_done(&mut self, id: EffectId, result: EffectResult, now: Now, wall: Timestamp) {
        let at = Moment {
            now,
            wall,
            mode: self.mode,
        };
        let known_since = EffectId(self.next_effect);
        match self.targets.remove(&id) {
            None => {}
            Some(Target::List) => {
                if let EffectResult::Containers(containers) = result {
                    self.observe_all(id, containers);
                }
            }
            Some(Target::Watch(task)) => {
                if let Some(run) = self
                    .tasks
                    .get_mut(&task)
                    .filter(|run| run.watch == Some(id))
                {
                    run.watched(result, at);
                    run.known_since = known_since;
                }
            }
            Some(Target::Task(task, work)) => {
                let mine = |run: &&mut TaskRun| run.work.is_some_and(|(of, _)| of == id);
                if let Some(run) = self.tasks.get_mut(&task).filter(mine) {
                    run.done(work, result, at);
                    run.known_since = known_since;
                }
            }
        }
    }

    /// Takes the list of all containers, asked for by effect `asked`.
    fn observe_all(&mut self, asked: EffectId, containers: Vec<Container>) {
        let mut seen: BTreeMap<Id<Task>, Container> = BTreeMap::new();
        for container in containers {
            if let Some(task) = container.task_id() {
                seen.insert(task, container);
            }
        }
        for (id, run) in &mut self.tasks {
            let listed = seen.remove(id);
            // What was learned after the list was asked for is newer than the list.
            if run.work.is_none() && run.known_since <= asked {
                run.observe(listed);
            }
        }
        self.unclaimed.clear();
        for container in seen.into_values() {
            self.claim(container);
        }
    }

    /// A container of a task that is not assigned.
    fn claim(&mut self, container: Container) {
        let Some(task) = container.task_id() else {
            return;
        };
        if self.mode == Mode::Assigned {
            self.tasks
                .entry(task.clone())
                .or_insert_with(|| TaskRun::stray(&task, container));
        } else {
            self.unclaimed.insert(container.plan.id.clone(), container);
        }
    }

    /// Decides the next step of every task.
    pub fn run(&mut self, env: &dyn Environment, now: Now, wall: Timestamp) {
        self.deadline = None;
        self.consider_alone(now);
        let ids: Vec<_> = self.tasks.keys().cloned().collect();
        for id in ids {
            self.run_task(&id, env, now, wall);
        }
        self.run_list(now);
        self.run_reporter(now);
    }

    /// Until a manager has said what this node has told before, what the disk remembers may be a step behind.
    fn run_reporter(&mut self, now: Now) {
        if self.mode != Mode::Assigned {
            return;
        }
        while let Some((batch, statuses)) = self.reporter.next(now) {
            self.outputs
                .push_back(WorkerOutput::Status(batch, statuses));
        }
        if let Some(at) = self.reporter.deadline() {
            self.wake(at);
        }
    }

    fn consider_alone(&mut self, now: Now) {
        if self.mode != Mode::Adopting || self.reporter.in_session() {
            return;
        }
        let at = self.started + ALONE_AFTER;
        if now >= at {
            self.mode = Mode::Alone;
            if !self.tasks.is_empty() {
                let tasks = self.tasks.len();
                tracing::warn!(
                    tasks,
                    "no manager answers: going on with the tasks known from disk"
                );
            }
        } else {
            self.wake(at);
        }
    }

    fn run_task(&mut self, id: &Id<Task>, env: &dyn Environment, now: Now, wall: Timestamp) {
        let Some(run) = self.tasks.get_mut(id) else {
            return;
        };
        let at = Moment {
            now,
            wall,
            mode: self.mode,
        };
        let facts = env.facts(id);
        let step = run.step(&Context {
            at,
            facts: &facts,
            dependencies: &self.dependencies,
            env,
        });
        if std::mem::take(&mut run.report) {
            self.changed = true;
            if !run.dropped {
                self.reporter.report(id, &run.status);
            }
        }
        match step {
            Step::Wait => {}
            Step::Until(at) => self.wake(at),
            Step::Do(effect) => {
                let work = work_of(&effect);
                let effect_id = self.start(Target::Task(id.clone(), work), effect);
                if let Some(run) = self.tasks.get_mut(id) {
                    run.work = Some((effect_id, work));
                }
            }
            Step::Forget => {
                self.tasks.remove(id);
                self.reporter.forget(id);
                self.changed = true;
            }
        }
        self.watch(id, now);
    }

    fn watch(&mut self, id: &Id<Task>, now: Now) {
        let Some((container, wish)) = self
            .tasks
            .get(id)
            .map(|run| (run.container_id(), run.wants_watch(now)))
        else {
            return;
        };
        match wish {
            Err(()) => {}
            Ok(Some(at)) => self.wake(at),
            Ok(None) => {
                let effect_id = self.start(Target::Watch(id.clone()), Effect::Watch(container));
                if let Some(run) = self.tasks.get_mut(id) {
                    run.watch = Some(effect_id);
                }
            }
        }
    }

    fn run_list(&mut self, now: Now) {
        let under_way = self.targets.values().any(|target| *target == Target::List);
        if !under_way && now >= self.next_list {
            self.next_list = now + LIST_EVERY;
            self.start(Target::List, Effect::List);
        }
        self.wake(self.next_list.max(now + Duration::from_secs(1)));
    }

    fn start(&mut self, target: Target, effect: Effect) -> EffectId {
        let id = EffectId(self.next_effect);
        self.next_effect += 1;
        self.targets.insert(id, target);
        self.outputs.push_back(WorkerOutput::Effect(id, effect));
        id
    }

    fn wake(&mut self, at: Now) {
        self.deadline = Some(self.deadline.map_or(at, |other| other.min(at)));
    }

    /// What to do next, in order.
    pub fn poll_output(&mut self) -> Option<WorkerOutput> {
        self.outputs.pop_front()
    }

    /// When to run again, at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Now> {
        self.deadline
    }

    /// Whether what [`Self::saved`] gives has changed since this was asked last.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// The assigned tasks, each with the status that this node has observed.
    pub fn saved(&self) -> impl Iterator<Item = Task> + '_ {
        self.tasks
            .values()
            .filter(|run| !run.dropped)
            .map(|run| Task {
                status: run.status.clone(),
                ..run.task.clone()
            })
    }

    /// The secrets and configs that are in this node's memory.
    pub fn dependencies(&self) -> impl Iterator<Item = &DependencyId> {
        self.dependencies.ids()
    }

    /// The ids of all tasks that have something on this node.
    pub fn task_ids(&self) -> impl Iterator<Item = &Id<Task>> {
        self.tasks.keys()
    }

    /// The tasks that need a network namespace whose container is not made yet.
    pub fn sandboxes_to_make(&self) -> impl Iterator<Item = &Task> {
        let wanted = |run: &&TaskRun| run.container.is_none() && run.needs_sandbox();
        self.tasks.values().filter(wanted).map(|run| &run.task)
    }

    /// The containers that live: their network namespaces must stay.
    pub fn living(&self) -> impl Iterator<Item = &Container> {
        let of_tasks = self.tasks.values().filter_map(|run| run.container.as_ref());
        of_tasks
            .chain(self.unclaimed.values())
            .filter(|container| match container.phase {
                Phase::Created | Phase::Running => true,
                Phase::Exited(_) => false,
            })
    }
}

fn work_of(effect: &Effect) -> Work {
    match effect {
        Effect::Pull(_) => Work::Pull,
        Effect::OpenDns(_) => Work::OpenDns,
        Effect::Create(..) => Work::Create,
        Effect::Start(_) => Work::Start,
        Effect::Signal(_, signal) => Work::Signal(*signal),
        // No task machine asks for the last two.
        Effect::Delete(_) | Effect::Watch(_) | Effect::List => Work::Delete,
    }
}
