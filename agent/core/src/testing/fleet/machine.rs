//! The machine under a simulated node.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use crate::{
    api::Task,
    id::Id,
    network::{NetState, Ns},
    node::{Input, Output, Saved},
    rng::Rng,
    time::Now,
    worker::{
        container::plan::ContainerId,
        effect::{Container, Effect, EffectError, EffectResult, Exit, Phase, PulledImage},
    },
};

/// Kernel, containers and disk.
#[derive(Debug)]
pub struct Machine {
    /// Thousandths of steps that go wrong.
    pub failing: u64,
    /// The network as the kernel has it.
    pub kernel: NetState,
    /// What outlives everything.
    pub disk: Option<Saved>,
    programs: BTreeMap<ContainerId, Program>,
    tasks: BTreeMap<Id<Task>, Arc<Task>>,
    rng: Rng,
}

/// A container and its end.
#[derive(Debug, Clone)]
pub struct Program {
    /// As the worker sees it.
    pub container: Container,
    /// Whether its node was cut off from the managers at some time of its life.
    pub was_cut: bool,
    ends_at: Option<(Now, i32)>,
}

/// The longest run of a job's program, in milliseconds.
const JOB_MS: u64 = 8000;

/// How long a step takes at most, in milliseconds.
pub(super) fn slowness(output: &Output) -> u64 {
    match output {
        Output::Effect(_, Effect::Pull(_)) => 2000,
        Output::Effect(..) => 300,
        Output::Observe(_)
        | Output::Apply(_)
        | Output::Save(_)
        | Output::Status { .. }
        | Output::ReopenAssignments
        | Output::MeshApplied(_)
        | Output::Names(_) => 1,
    }
}

impl Machine {
    pub(super) fn new(rng: Rng) -> Self {
        Self {
            failing: 0,
            kernel: NetState::booted(),
            disk: None,
            programs: BTreeMap::new(),
            tasks: BTreeMap::new(),
            rng,
        }
    }

    pub(super) fn lose_power(&mut self) {
        self.programs.clear();
        self.kernel = NetState::booted();
    }

    /// Remembers a task, to know later whose container runs.
    pub(super) fn know(&mut self, task: &Arc<Task>) {
        self.tasks.insert(task.id.clone(), Arc::clone(task));
    }

    pub(super) fn containers(&self) -> Vec<Container> {
        let programs = self.programs.values();
        programs.map(|program| program.container.clone()).collect()
    }

    pub(super) fn running(&self) -> impl Iterator<Item = (&Arc<Task>, &Program)> {
        let running = self.programs.values();
        let running = running.filter(|program| program.container.phase == Phase::Running);
        running.filter_map(|program| {
            let task = self.tasks.get(&program.container.task_id()?)?;
            Some((task, program))
        })
    }

    pub(super) fn mark_cut(&mut self) {
        for program in self.programs.values_mut() {
            program.was_cut = true;
        }
    }

    /// Some programs end by themselves, others have been told to.
    pub(super) fn fail_some(&mut self, now: Now) {
        for program in self.programs.values_mut() {
            if program.container.phase != Phase::Running {
                continue;
            }
            let crashes = self.rng.below(1000) < self.failing;
            let ended = program.ends_at.filter(|(at, _)| *at <= now);
            let code = ended.map(|(_, code)| code).or(crashes.then_some(1));
            if let Some(code) = code {
                program.container.pid = 0;
                program.container.phase = Phase::Exited(Exit {
                    code,
                    ..Exit::default()
                });
            }
        }
    }

    /// Carries out what is due; what is not stays.
    pub(super) fn carry_out(&mut self, under_way: &mut Vec<(Now, Output)>, now: Now) -> Vec<Input> {
        let mut inputs = Vec::new();
        for (due, output) in std::mem::take(under_way) {
            let done = (due <= now).then(|| self.one(&output, now)).flatten();
            match done {
                Some(input) => inputs.push(input),
                None => under_way.push((due, output)),
            }
        }
        inputs
    }

    fn one(&mut self, output: &Output, now: Now) -> Option<Input> {
        Some(match output {
            Output::Observe(scope) => Input::NetworkSeen(Ok(self.kernel.restricted(scope))),
            Output::Apply(ops) => {
                let apply = |op| self.kernel.apply(op).err().map(|error| error.to_string());
                Input::NetworkApplied(ops.iter().filter_map(apply).collect())
            }
            Output::Save(saved) => {
                self.disk = Some(Saved::clone(saved));
                Input::SavedDone(Ok(()))
            }
            Output::Effect(id, effect) => Input::EffectDone(*id, self.effect(effect, now)?),
            Output::Status { .. }
            | Output::ReopenAssignments
            | Output::MeshApplied(_)
            | Output::Names(_) => return None,
        })
    }

    fn effect(&mut self, effect: &Effect, now: Now) -> Option<EffectResult> {
        let fails = self.rng.below(1000) < self.failing;
        Some(match effect {
            Effect::Pull(_) | Effect::Create(..) | Effect::Start(_) if fails => {
                failed("simulated failure", false)
            }
            Effect::Pull(_) => EffectResult::Pulled(PulledImage {
                id: format!("sha256:{}", "00".repeat(32)),
                config: Arc::new(image()),
            }),
            Effect::OpenDns(id) => match self.has_namespace(id) {
                true => EffectResult::Done,
                false => failed("no such namespace", true),
            },
            Effect::Create(plan, _) => {
                assert!(
                    self.has_namespace(&plan.id),
                    "a container before its namespace"
                );
                let program = Program {
                    container: Container {
                        plan: Arc::new((**plan).clone()),
                        phase: Phase::Created,
                        pid: 0,
                    },
                    was_cut: false,
                    ends_at: None,
                };
                // Making one that is there already harms nothing.
                let program = self.programs.entry(plan.id.clone()).or_insert(program);
                EffectResult::Container(Some(program.container.clone()))
            }
            Effect::Start(id) => {
                if let Some(program) = self.programs.get_mut(id)
                    && program.container.phase == Phase::Created
                {
                    program.container.phase = Phase::Running;
                    program.container.pid = 42;
                    let task = program.container.task_id();
                    let task = task.and_then(|id| self.tasks.get(&id));
                    // A job's program comes to an end by itself.
                    if task.is_some_and(|task| task.job_iteration.is_some()) {
                        let takes = Duration::from_millis(self.rng.below(JOB_MS));
                        program.ends_at = Some((now + takes, 0));
                    }
                }
                self.container(id)
            }
            Effect::Signal(id, number) => {
                let takes = Duration::from_millis(self.rng.below(3000));
                if let Some(program) = self.programs.get_mut(id) {
                    let end = (now + takes, 128 + number);
                    let by_itself = program.ends_at;
                    program.ends_at = Some(by_itself.map_or(end, |own| own.min(end)));
                }
                EffectResult::Done
            }
            Effect::Delete(id) => {
                self.programs.remove(id);
                EffectResult::Container(None)
            }
            Effect::Watch(id) => match self.programs.get(id) {
                Some(program) if program.container.phase == Phase::Running => return None,
                Some(_) | None => self.container(id),
            },
            Effect::List => EffectResult::Containers(self.containers()),
        })
    }

    fn container(&self, id: &ContainerId) -> EffectResult {
        let program = self.programs.get(id);
        EffectResult::Container(program.map(|program| program.container.clone()))
    }

    fn has_namespace(&self, id: &ContainerId) -> bool {
        let name = Ns::Named(id.short().to_owned());
        self.kernel.namespaces.contains_key(&name)
    }

    /// The addresses that the kernel has in the namespaces of running programs.
    #[must_use]
    pub fn namespaces_of_running(&self) -> BTreeSet<String> {
        let running = self.programs.values();
        let running = running.filter(|program| program.container.phase == Phase::Running);
        running
            .map(|program| program.container.plan.id.short().to_owned())
            .collect()
    }
}

fn image() -> crate::worker::container::image::ImageConfig {
    crate::worker::container::image::ImageConfig {
        cmd: vec!["/program".to_owned()],
        ..Default::default()
    }
}

fn failed(message: &str, temporary: bool) -> EffectResult {
    EffectResult::Failed(EffectError {
        temporary,
        message: message.to_owned(),
    })
}
