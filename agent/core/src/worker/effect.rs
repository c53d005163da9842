//! What the worker asks of the host, and what it hears back.

use std::{fmt, sync::Arc};

use super::{
    container::image::{ImageConfig, Reference},
    container::plan::{ContainerId, ContainerPlan},
    dependencies::Contents,
};
use crate::{api::Task, id::Id};

/// Label of a container that names its task, as Docker sets it.
pub const TASK_LABEL: &str = "com.docker.swarm.task.id";

/// Names one effect, so that its result finds its way. Grows over the life of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct EffectId(pub u64);

/// One thing to do on the host. Each may be done again after a crash: none harms what is done already.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Bring an image here. Answer: [`EffectResult::Pulled`].
    Pull(Reference),
    /// Answer questions about names inside the container's network namespace, which is there.
    /// Answer: [`EffectResult::Done`], also when it does so already.
    OpenDns(ContainerId),
    /// Make a container, its program not started, with the contents of the files that its plan only names.
    /// Answer: [`EffectResult::Container`].
    Create(Box<ContainerPlan>, Contents),
    /// Start the program. Answer: [`EffectResult::Container`].
    Start(ContainerId),
    /// Send a signal to the main process; nothing if it has ended. Answer: [`EffectResult::Done`].
    Signal(ContainerId, i32),
    /// Kill it if it runs and remove all of it; nothing if there is none. Answer: [`EffectResult::Container`] with `None`.
    Delete(ContainerId),
    /// Wait until the program has ended. Answer: [`EffectResult::Container`].
    Watch(ContainerId),
    /// Say what containers there are. Answer: [`EffectResult::Containers`].
    List,
}

/// What came of an effect.
#[derive(Debug, Clone, PartialEq)]
pub enum EffectResult {
    /// It is done and there is nothing to say.
    Done,
    /// The image is here.
    Pulled(PulledImage),
    /// The container as it now is; `None` if there is none.
    Container(Option<Container>),
    /// Every container of the node.
    Containers(Vec<Container>),
    /// It could not be done.
    Failed(EffectError),
}

/// Why an effect could not be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectError {
    /// Whether trying again with nothing changed may succeed.
    pub temporary: bool,
    /// One line for the user, in Docker's words where Docker has some.
    pub message: String,
}

impl fmt::Display for EffectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// An image that is on this node.
#[derive(Debug, Clone, PartialEq)]
pub struct PulledImage {
    /// `sha256:…` of its configuration.
    pub id: String,
    /// What a container takes from it when its specification says nothing.
    pub config: Arc<ImageConfig>,
}

/// A container as the host sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Container {
    /// What it was made from.
    pub plan: Arc<ContainerPlan>,
    /// What it is doing.
    pub phase: Phase,
    /// Its main process; 0 when none runs.
    pub pid: i32,
}

impl Container {
    /// The task that it was made for; none for a container of an operator.
    #[must_use]
    pub fn task_id(&self) -> Option<Id<Task>> {
        self.plan.labels.get(TASK_LABEL)?.parse().ok()
    }
}

/// What a container is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Made, its program not started.
    Created,
    /// Its program runs.
    Running,
    /// Its program has ended.
    Exited(Exit),
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Exit {
    /// The exit code; 128 plus the signal's number when a signal ended it.
    pub code: i32,
    /// Whether the kernel killed a process of it for want of memory.
    pub oom_killed: bool,
    /// Why the code may not be the program's own.
    pub error: Option<String>,
}

impl Exit {
    /// The error of a task whose program ended so; none for exit code 0. Docker's words.
    #[must_use]
    pub fn task_error(&self) -> Option<String> {
        if self.code == 0 && self.error.is_none() {
            return None;
        }
        let mut text = format!("task: non-zero exit ({})", self.code);
        if self.oom_killed {
            text.push_str(": out of memory");
        }
        if let Some(error) = &self.error {
            text.push_str(": ");
            text.push_str(error);
        }
        Some(text)
    }
}

/// The id of the one container that a task may have on this node. It follows from the task, so that no
/// crash, however timed, can leave two containers for one task.
#[must_use]
pub fn container_id(task: &Id<Task>) -> ContainerId {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(format!("skep container of task {task}"));
    ContainerId::from_entropy(digest.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_worded_as_docker_words_them() {
        let exit = |code, oom_killed, error: Option<&str>| Exit {
            code,
            oom_killed,
            error: error.map(str::to_owned),
        };
        assert_eq!(exit(0, false, None).task_error(), None);
        assert_eq!(
            exit(137, false, None).task_error().unwrap(),
            "task: non-zero exit (137)"
        );
        assert_eq!(
            exit(137, true, None).task_error().unwrap(),
            "task: non-zero exit (137): out of memory"
        );
        assert_eq!(
            exit(255, false, Some("the shim died"))
                .task_error()
                .unwrap(),
            "task: non-zero exit (255): the shim died"
        );
    }

    #[test]
    fn a_task_has_one_container_id() {
        let task = Id::<Task>::from_entropy(7);
        assert_eq!(container_id(&task), container_id(&task));
        assert_ne!(container_id(&task), container_id(&Id::from_entropy(8)));
    }
}
