//! The machine of one task: from what is wanted and what is on the host to the next effect and the status to report.

use std::time::Duration;

use super::{
    container::image::Reference,
    container::plan::{ContainerId, ContainerPlan},
    dependencies::Dependencies,
    effect::{
        Container, Effect, EffectError, EffectId, EffectResult, Exit, Phase, PulledImage,
        container_id,
    },
    retry::Retry,
    stop::{StopStep, Stopping},
};
use crate::{
    api::{ContainerStatus, Endpoint, Labels, Meta, Task, TaskSpec, TaskState, TaskStatus},
    id::Id,
    time::{Now, Timestamp},
};

/// How often a step towards the start may fail for passing reasons before the task is given up, so that the
/// managers can try another node.
const TRIES: u32 = 6;
/// How long a task waits for its networks to reach this node.
const NETWORK_WAIT: Duration = Duration::from_secs(60);

/// How long a task waits for a secret or config that no manager has sent.
const DEPENDENCY_WAIT: Duration = Duration::from_secs(60);

/// What the rest of the node knows that matters to one task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskFacts {
    /// Its sandbox.
    pub network: NetworkFact,
    /// Every node has taken it out of its mesh, or it was never in it.
    pub left_mesh: bool,
}

/// Whether the sandbox of a task is as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkFact {
    /// The kernel has all of it.
    Ready,
    /// Not yet, and this is what is missing, in words for the user.
    Waiting(String),
}

/// When, and on whose word, something happens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) now: Now,
    pub(crate) wall: Timestamp,
    pub(crate) mode: Mode,
}

/// What a step may look at.
pub(crate) struct Context<'a> {
    pub(crate) at: Moment,
    pub(crate) facts: &'a TaskFacts,
    pub(crate) dependencies: &'a Dependencies,
    pub(crate) env: &'a dyn Environment,
}

/// What the rest of the node decides for the worker.
pub trait Environment {
    /// What matters to a task.
    fn facts(&self, task: &Id<Task>) -> TaskFacts;

    /// The plan of a task's container.
    ///
    /// # Errors
    /// Why no container can be made for it, in one line for the user.
    fn plan(
        &self,
        task: &Task,
        image: &PulledImage,
        wall: Timestamp,
    ) -> Result<ContainerPlan, String>;
}

/// Whose word the set of tasks is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The disk's: a manager may correct it any moment. Nothing is begun.
    Adopting,
    /// The disk's, and no manager can be reached: what ran before shall run again.
    Alone,
    /// A manager's.
    Assigned,
}

/// What to do next for a task.
#[derive(Debug, PartialEq)]
pub(crate) enum Step {
    /// Nothing until something changes.
    Wait,
    /// Nothing until something changes or this moment comes.
    Until(Now),
    /// One effect.
    Do(Effect),
    /// Nothing is left of it on the host and nobody wants it.
    Forget,
}

/// The kinds of effects that can be under way for a task; of each task one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    Pull,
    OpenDns,
    Create,
    Start,
    Signal(i32),
    Delete,
}

/// One task on this node.
#[derive(Debug)]
pub(crate) struct TaskRun {
    /// As assigned; `task.status` is not used.
    pub(crate) task: Task,
    /// What this node has observed. Its state only grows.
    pub(crate) status: TaskStatus,
    /// The status has changed since this was last cleared.
    pub(crate) report: bool,
    /// No longer assigned.
    pub(crate) dropped: bool,
    /// What is on the host.
    pub(crate) container: Option<Container>,
    /// The effect under way.
    pub(crate) work: Option<(EffectId, Work)>,
    /// The wait for the end of the program.
    pub(crate) watch: Option<EffectId>,
    /// Results of effects before this one are older than what is known.
    pub(crate) known_since: EffectId,
    image: Option<PulledImage>,
    dns_open: bool,
    /// It ran before, its container is gone, and it is made again without a manager.
    again: bool,
    network_since: Option<Now>,
    dependency_since: Option<Now>,
    /// The secret or config that it waits for, as it was told last.
    missing: Option<String>,
    retry: Retry,
    watch_retry: Retry,
    stopping: Stopping,
}

impl TaskRun {
    pub(crate) fn new(task: Task) -> Self {
        let mut status = task.status.clone();
        status.state = status.state.max(TaskState::Assigned);
        Self {
            task,
            status,
            report: false,
            dropped: false,
            container: None,
            work: None,
            watch: None,
            known_since: EffectId::default(),
            image: None,
            dns_open: false,
            again: false,
            network_since: None,
            dependency_since: None,
            missing: None,
            retry: Retry::default(),
            watch_retry: Retry::default(),
            stopping: Stopping::default(),
        }
    }

    /// What stands for a container of a task that is not assigned: it is stopped and removed.
    pub(crate) fn stray(id: &Id<Task>, container: Container) -> Self {
        let mut run = Self::new(stray_task(id));
        run.dropped = true;
        run.observe(Some(container));
        run
    }

    /// The id of its container, made or not.
    pub(crate) fn container_id(&self) -> ContainerId {
        container_id(&self.task.id)
    }

    /// Takes a new version of the assignment. What was observed here stays, unless this node had told the managers
    /// more than its disk remembers.
    pub(crate) fn assign(&mut self, task: Task) {
        self.dropped = false;
        if task.status.state > self.status.state {
            self.status.clone_from(&task.status);
        }
        self.task = task;
    }

    /// Whether its network namespace is needed.
    pub(crate) fn needs_sandbox(&self) -> bool {
        match self.container.as_ref().map(|container| &container.phase) {
            Some(Phase::Created | Phase::Running) => true,
            Some(Phase::Exited(_)) => false,
            None => {
                let making = matches!(self.work, Some((_, Work::Create)));
                let under_way = self.status.state >= TaskState::Preparing || self.again;
                making
                    || (under_way
                        && !self.must_stop()
                        && (self.again || self.status.state < TaskState::Running))
            }
        }
    }

    /// Whether nothing of it may run any more.
    pub(crate) fn must_stop(&self) -> bool {
        self.dropped
            || self.status.state.is_terminal()
            || self.task.desired_state > TaskState::Complete
    }

    /// Decides the next step.
    pub(crate) fn step(&mut self, cx: &Context<'_>) -> Step {
        if self.must_stop() {
            return self.stop(cx);
        }
        if self.work.is_some() {
            return Step::Wait;
        }
        if let Some(at) = self.retry.wait(cx.at.now) {
            return Step::Until(at);
        }
        match self
            .container
            .as_ref()
            .map(|container| container.phase.clone())
        {
            None => self.prepare(cx),
            Some(Phase::Created) => self.begin(cx),
            Some(Phase::Running) => self.running(cx),
            Some(Phase::Exited(exit)) => self.ended(&exit, cx),
        }
    }

    fn prepare(&mut self, cx: &Context<'_>) -> Step {
        if cx.at.mode == Mode::Adopting {
            return Step::Wait;
        }
        if self.status.state >= TaskState::Starting && !self.again {
            if cx.at.mode == Mode::Assigned {
                return self.give_up(
                    "task: container is gone: the node or its runtime was restarted".to_owned(),
                    cx,
                );
            }
            self.again = true;
            self.dns_open = false;
        }
        self.advance(TaskState::Accepted, "accepted", cx.at);
        let reference = match self.reference() {
            Ok(reference) => reference,
            Err(why) => return self.give_up(why, cx),
        };
        self.advance(TaskState::Preparing, "preparing", cx.at);
        let Some(image) = self.image.clone() else {
            return Step::Do(Effect::Pull(reference));
        };
        let contents = match cx.dependencies.of(&self.task) {
            Ok(contents) => contents,
            Err(missing) => return self.dependency_wait(missing, cx),
        };
        (self.dependency_since, self.missing) = (None, None);
        if let Some(step) = self.network_wait(cx) {
            return step;
        }
        if !self.dns_open {
            return Step::Do(Effect::OpenDns(self.container_id()));
        }
        match cx.env.plan(&self.task, &image, cx.at.wall) {
            Ok(plan) => Step::Do(Effect::Create(Box::new(plan), contents)),
            Err(why) => self.give_up(why, cx),
        }
    }

    fn reference(&self) -> Result<Reference, String> {
        let Some(spec) = &self.task.spec.container_spec else {
            return Err(
                "task: its spec has no ContainerSpec: only container tasks run here".to_owned(),
            );
        };
        spec.image
            .parse::<Reference>()
            .map_err(|error| error.to_string())
    }

    /// Waits for a secret or config. Without a manager there is nobody to send it, so that the time does not count.
    fn dependency_wait(&mut self, missing: String, cx: &Context<'_>) -> Step {
        self.tell_missing(missing, cx.at);
        if cx.at.mode != Mode::Assigned {
            self.dependency_since = None;
            return Step::Wait;
        }
        let deadline = *self.dependency_since.get_or_insert(cx.at.now) + DEPENDENCY_WAIT;
        if cx.at.now < deadline {
            return Step::Until(deadline);
        }
        let missing = self.missing.take().unwrap_or_default();
        self.give_up(format!("{missing} not found"), cx)
    }

    fn tell_missing(&mut self, missing: String, at: Moment) {
        if self.missing.as_ref() == Some(&missing) {
            return;
        }
        tracing::warn!(task.id = %self.task.id, "a task waits for {missing}, which no manager has sent");
        if self.status.state == TaskState::Preparing {
            self.status.message = format!("waiting for {missing}");
            self.status.timestamp = at.wall;
            self.report = true;
        }
        self.missing = Some(missing);
    }

    /// What to do while the sandbox is not ready; none when it is.
    fn network_wait(&mut self, cx: &Context<'_>) -> Option<Step> {
        let NetworkFact::Waiting(what) = &cx.facts.network else {
            self.network_since = None;
            return None;
        };
        let deadline = *self.network_since.get_or_insert(cx.at.now) + NETWORK_WAIT;
        if cx.at.now >= deadline && cx.at.mode == Mode::Assigned {
            let seconds = NETWORK_WAIT.as_secs();
            return Some(self.give_up(format!("network sandbox: {what} after {seconds} s"), cx));
        }
        Some(match cx.at.now >= deadline {
            true => Step::Wait,
            false => Step::Until(deadline),
        })
    }

    fn begin(&mut self, cx: &Context<'_>) -> Step {
        self.advance(TaskState::Ready, "prepared", cx.at);
        if self.task.desired_state < TaskState::Running {
            return Step::Wait;
        }
        if let Some(step) = self.network_wait(cx) {
            return step;
        }
        if !self.dns_open {
            return Step::Do(Effect::OpenDns(self.container_id()));
        }
        self.advance(TaskState::Starting, "starting", cx.at);
        Step::Do(Effect::Start(self.container_id()))
    }

    fn running(&mut self, cx: &Context<'_>) -> Step {
        self.again = false;
        if cx.facts.network != NetworkFact::Ready {
            // It was ready before the start; the network is being put right, which will be heard of.
            return Step::Wait;
        }
        self.advance(TaskState::Running, "started", cx.at);
        match self.dns_open {
            true => Step::Wait,
            false => Step::Do(Effect::OpenDns(self.container_id())),
        }
    }

    fn ended(&mut self, exit: &Exit, cx: &Context<'_>) -> Step {
        match exit.task_error() {
            None => self.advance(TaskState::Complete, "finished", cx.at),
            Some(error) => self.fail(TaskState::Failed, error, cx.at),
        }
        Step::Wait
    }

    fn stop(&mut self, cx: &Context<'_>) -> Step {
        if matches!(self.work, Some((_, Work::Pull | Work::OpenDns))) && self.container.is_none() {
            // Neither leaves a container behind: no need to wait for the end.
            self.work = None;
        }
        if self.work.is_some() {
            return Step::Wait;
        }
        if let Some(at) = self.retry.wait(cx.at.now) {
            return Step::Until(at);
        }
        let Some(container) = &self.container else {
            self.advance(TaskState::Shutdown, "shutdown", cx.at);
            return if self.dropped {
                Step::Forget
            } else {
                Step::Wait
            };
        };
        match &container.phase {
            Phase::Created => Step::Do(Effect::Delete(self.container_id())),
            Phase::Running => match self.stopping.step(container, cx.facts.left_mesh, cx.at.now) {
                StopStep::Signal(signal) => Step::Do(Effect::Signal(self.container_id(), signal)),
                StopStep::Until(at) => Step::Until(at),
            },
            Phase::Exited(_) => {
                self.advance(TaskState::Shutdown, "shutdown", cx.at);
                match self.dropped {
                    true => Step::Do(Effect::Delete(self.container_id())),
                    false => Step::Wait,
                }
            }
        }
    }

    /// Takes the result of the effect under way.
    pub(crate) fn done(&mut self, work: Work, result: EffectResult, at: Moment) {
        self.work = None;
        match result {
            EffectResult::Failed(error) => return self.failed(work, error, at),
            EffectResult::Pulled(image) => self.image = Some(image),
            EffectResult::Container(container) => self.container = container,
            EffectResult::Done => match work {
                Work::OpenDns => self.dns_open = true,
                Work::Signal(signal) => self.stopping.sent(signal, at.now),
                Work::Pull | Work::Create | Work::Start | Work::Delete => {}
            },
            EffectResult::Containers(_) => {}
        }
        self.retry.succeeded();
        self.note_container();
    }

    fn failed(&mut self, work: Work, error: EffectError, at: Moment) {
        self.retry.failed(at.now);
        let towards_start = match work {
            Work::Pull | Work::Create | Work::Start => true,
            Work::OpenDns => self.status.state < TaskState::Running,
            Work::Signal(_) | Work::Delete => false,
        };
        let again = error.temporary && (self.retry.failures() < TRIES || at.mode != Mode::Assigned);
        if towards_start && !again && !self.must_stop() {
            self.reject(error.message, at);
            self.retry.succeeded();
        } else {
            tracing::warn!(task.id = %self.task.id, ?work, error = %error.message, "an effect failed and is tried again");
        }
    }

    /// Takes the result of the wait for the end of the program.
    pub(crate) fn watched(&mut self, result: EffectResult, at: Moment) {
        self.watch = None;
        match result {
            EffectResult::Container(container) => {
                self.watch_retry.succeeded();
                if container
                    .as_ref()
                    .is_some_and(|c| c.phase == Phase::Running)
                {
                    self.watch_retry.failed(at.now);
                }
                // A running effect knows more: its result comes later.
                if self.work.is_none() {
                    self.observe(container);
                }
            }
            EffectResult::Done
            | EffectResult::Pulled(_)
            | EffectResult::Containers(_)
            | EffectResult::Failed(_) => {
                self.watch_retry.failed(at.now);
            }
        }
    }

    /// When to watch its program: now (`None`), or not before a moment. `Err` when there is nothing to watch.
    pub(crate) fn wants_watch(&self, now: Now) -> Result<Option<Now>, ()> {
        let running = self
            .container
            .as_ref()
            .is_some_and(|c| c.phase == Phase::Running);
        match running && self.watch.is_none() {
            true => Ok(self.watch_retry.wait(now)),
            false => Err(()),
        }
    }

    /// Takes what is on the host.
    pub(crate) fn observe(&mut self, container: Option<Container>) {
        self.container = container;
        self.note_container();
    }

    fn note_container(&mut self) {
        let Some(container) = &self.container else {
            return;
        };
        if matches!(container.phase, Phase::Exited(_)) {
            self.dns_open = false;
        }
        let exit_code = match &container.phase {
            Phase::Exited(exit) => exit.code,
            Phase::Created | Phase::Running => 0,
        };
        self.status.container_status = Some(ContainerStatus {
            container_id: container.plan.id.as_str().to_owned(),
            pid: container.pid,
            exit_code,
        });
    }

    /// Ends the task with an error and takes away what there is of it.
    fn give_up(&mut self, why: String, cx: &Context<'_>) -> Step {
        self.reject(why, cx.at);
        self.stop(cx)
    }

    /// Ends the task with an error: REJECTED before the start, FAILED after.
    fn reject(&mut self, why: String, at: Moment) {
        let state = match self.status.state < TaskState::Starting {
            true => TaskState::Rejected,
            false => TaskState::Failed,
        };
        self.fail(state, why, at);
    }

    fn fail(&mut self, state: TaskState, why: String, at: Moment) {
        self.set(state, at);
        self.status.err = why;
        self.again = false;
    }

    /// Moves forward; a state that is not further does nothing.
    fn advance(&mut self, state: TaskState, message: &str, at: Moment) {
        if self.status.state < state && !self.status.state.is_terminal() {
            self.set(state, at);
            message.clone_into(&mut self.status.message);
        }
    }

    fn set(&mut self, state: TaskState, at: Moment) {
        tracing::info!(
            task.id = %self.task.id,
            task.name = %self.task.name(),
            from = ?self.status.state,
            to = ?state,
            "task state"
        );
        self.status.state = state;
        self.status.timestamp = at.wall;
        self.report = true;
    }
}

/// The little that is known of a task by its container alone.
fn stray_task(id: &Id<Task>) -> Task {
    Task {
        id: id.clone(),
        meta: Meta::default(),
        spec: TaskSpec::default(),
        spec_version: 0,
        service_id: Id::from_entropy(0),
        service_name: String::new(),
        service_labels: Labels::default(),
        slot: 0,
        node_id: None,
        status: TaskStatus {
            state: TaskState::Running,
            ..TaskStatus::default()
        },
        desired_state: TaskState::Remove,
        networks: Vec::new(),
        endpoint: Endpoint::default(),
        not_before: None,
        predecessor: None,
        running_since: None,
        job_iteration: None,
    }
}
