//! What a node shall run, and what it needs for that.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    api::{Config, DependencyId, Node, Secret, Task, TaskState, TaskStatus},
    id::Id,
    store::View,
};

/// Bytes of secrets and configs in one message; what is more follows in further ones.
const MESSAGE_CONTENT: usize = 2 * 1024 * 1024;

/// The tasks of one node at one version, with the secrets and configs that they need there.
#[derive(Debug, Clone, Default)]
pub struct AssignmentSet {
    /// By id; tasks that have ended stay until they are forgotten, so that their logs do.
    pub tasks: BTreeMap<Id<Task>, Arc<Task>>,
    /// The secrets of those that run or shall run.
    pub secrets: BTreeMap<Id<Secret>, Arc<Secret>>,
    /// The configs of the same.
    pub configs: BTreeMap<Id<Config>, Arc<Config>>,
}

/// One difference between two sets.
#[derive(Debug, Clone, PartialEq)]
pub enum AssignmentChange {
    /// A task is new, or something of it other than what its node reports has changed.
    Update(Arc<Task>),
    /// A task is not assigned any more.
    Remove(Id<Task>),
    /// A secret is needed.
    UpdateSecret(Arc<Secret>),
    /// A secret is not needed any more.
    RemoveSecret(Id<Secret>),
    /// A config is needed.
    UpdateConfig(Arc<Config>),
    /// A config is not needed any more.
    RemoveConfig(Id<Config>),
}

impl AssignmentChange {
    /// Bytes of content that it carries.
    fn content(&self) -> usize {
        match self {
            AssignmentChange::UpdateSecret(secret) => secret.spec.data.len(),
            AssignmentChange::UpdateConfig(config) => config.spec.data.len(),
            AssignmentChange::Update(_)
            | AssignmentChange::Remove(_)
            | AssignmentChange::RemoveSecret(_)
            | AssignmentChange::RemoveConfig(_) => 0,
        }
    }
}

/// The set of a node. Its tasks are those that have got this node.
#[must_use]
pub fn assignments(view: &View, node: &Id<Node>) -> AssignmentSet {
    let mut set = AssignmentSet::default();
    for task in view.tasks_on_node(node) {
        if task.status.state < TaskState::Assigned {
            continue;
        }
        set.tasks.insert(task.id.clone(), Arc::clone(task));
        for dependency in needed(task) {
            match dependency {
                DependencyId::Secret(id) => {
                    if let Some(secret) = view.secret(&id) {
                        set.secrets.insert(id, Arc::clone(secret));
                    }
                }
                DependencyId::Config(id) => {
                    if let Some(config) = view.config(&id) {
                        set.configs.insert(id, Arc::clone(config));
                    }
                }
            }
        }
    }
    set
}

/// What a task needs on its node: nothing once it has ended or must end.
pub fn needed(task: &Task) -> impl Iterator<Item = DependencyId> {
    let alive =
        task.status.state <= TaskState::Running && task.desired_state <= TaskState::Complete;
    let container = task.spec.container_spec.iter().filter(move |_| alive);
    let references = container.flat_map(|container| container.references());
    references.filter_map(|one| one.dependency())
}

impl AssignmentSet {
    /// What a node that has this set must be told to have `newer`: removals first, tasks after what they need.
    /// The content of a secret or config never changes, and its labels are no matter of the node.
    #[must_use]
    pub fn diff(&self, newer: &AssignmentSet) -> Vec<AssignmentChange> {
        let news = newer.tasks.iter().filter(|(id, task)| {
            let before = self.tasks.get(id);
            before.is_none_or(|before| !Arc::ptr_eq(before, task) && differs(before, task))
        });
        let tasks = absent(&self.tasks, &newer.tasks).map(|(id, _)| id.clone());
        let secrets = absent(&self.secrets, &newer.secrets).map(|(id, _)| id.clone());
        let configs = absent(&self.configs, &newer.configs).map(|(id, _)| id.clone());
        let new_secrets = absent(&newer.secrets, &self.secrets).map(|(_, it)| Arc::clone(it));
        let new_configs = absent(&newer.configs, &self.configs).map(|(_, it)| Arc::clone(it));
        tasks
            .map(AssignmentChange::Remove)
            .chain(secrets.map(AssignmentChange::RemoveSecret))
            .chain(configs.map(AssignmentChange::RemoveConfig))
            .chain(new_secrets.map(AssignmentChange::UpdateSecret))
            .chain(new_configs.map(AssignmentChange::UpdateConfig))
            .chain(news.map(|(_, task)| AssignmentChange::Update(Arc::clone(task))))
            .collect()
    }
}

/// The entries of `one` whose keys are not in `other`.
fn absent<'a, K: Ord, V>(
    one: &'a BTreeMap<K, V>,
    other: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    one.iter().filter(|(key, _)| !other.contains_key(*key))
}

/// The changes as messages of a bounded size. A complete set begins with all tasks, since what it leaves out is
/// not assigned, and what does not fit follows; otherwise what tasks need goes before them. Never empty.
#[must_use]
pub fn messages(changes: Vec<AssignmentChange>, complete: bool) -> Vec<Vec<AssignmentChange>> {
    let (content, rest): (Vec<_>, Vec<_>) =
        changes.into_iter().partition(|change| change.content() > 0);
    let mut messages = vec![Vec::new()];
    let mut bytes = 0;
    for change in content {
        bytes += change.content();
        if bytes > MESSAGE_CONTENT {
            bytes = change.content();
            messages.push(Vec::new());
        }
        if let Some(last) = messages.last_mut() {
            last.push(change);
        }
    }
    let with_tasks = match complete {
        true => messages.first_mut(),
        false => messages.last_mut(),
    };
    if let Some(message) = with_tasks {
        message.extend(rest);
    }
    messages
}

/// Whether something that the node does not know by itself differs.
fn differs(a: &Task, b: &Task) -> bool {
    let told = |task: &Task| Task {
        status: TaskStatus::default(),
        running_since: None,
        meta: crate::api::Meta::default(),
        ..task.clone()
    };
    told(a) != told(b)
}
