//! What a node must satisfy to run a task. One struct each; `pipeline` holds them in their order.

use super::pipeline::Candidate;
use crate::{
    api::{Availability, NodeState, Placement, Resources, Task},
    manager::constraint::{self, Constraint},
};

/// One condition on nodes, made for one task.
pub(super) trait Filter {
    /// Whether the node may run the task.
    fn admits(&self, node: &Candidate<'_>) -> bool;
    /// What to say of `nodes` nodes that may not.
    fn explain(&self, nodes: usize) -> String;
}

fn plural(nodes: usize) -> &'static str {
    if nodes == 1 { "node" } else { "nodes" }
}

/// The node is there and takes tasks.
pub(super) struct Ready;

impl Filter for Ready {
    fn admits(&self, node: &Candidate<'_>) -> bool {
        let node = node.node;
        node.status.state == NodeState::Ready && node.spec.availability == Availability::Active
    }

    fn explain(&self, nodes: usize) -> String {
        format!("{nodes} {} not available for new tasks", plural(nodes))
    }
}

/// The node has what the task reserves.
pub(super) struct Enough(pub(super) Resources);

impl Enough {
    pub(super) fn of(task: &Task) -> Option<Self> {
        reservations(task).cloned().map(Self)
    }
}

/// What a task reserves on its node.
pub(super) fn reservations(task: &Task) -> Option<&Resources> {
    task.spec.resources.as_ref()?.reservations.as_ref()
}

impl Filter for Enough {
    fn admits(&self, node: &Candidate<'_>) -> bool {
        let free = &node.free;
        self.0.nano_cpus <= free.nano_cpus && self.0.memory_bytes <= free.memory_bytes
    }

    fn explain(&self, nodes: usize) -> String {
        format!("insufficient resources on {nodes} {}", plural(nodes))
    }
}

/// The placement constraints hold.
pub(super) struct Constraints(Option<Vec<Constraint>>);

impl Constraints {
    pub(super) fn of(task: &Task) -> Option<Self> {
        let placement = task.spec.placement.as_ref()?;
        let some = !placement.constraints.is_empty();
        some.then(|| Self(constraint::parse_all(&placement.constraints)))
    }
}

impl Filter for Constraints {
    fn admits(&self, node: &Candidate<'_>) -> bool {
        let all = self.0.as_ref();
        all.is_some_and(|all| all.iter().all(|one| one.matches(node.node)))
    }

    fn explain(&self, nodes: usize) -> String {
        format!(
            "scheduling constraints not satisfied on {nodes} {}",
            plural(nodes)
        )
    }
}

/// The image is made for the node's machine kind.
pub(super) struct Platforms(Placement);

impl Platforms {
    pub(super) fn of(task: &Task) -> Option<Self> {
        let placement = task.spec.placement.clone()?;
        (!placement.platforms.is_empty()).then_some(Self(placement))
    }
}

impl Filter for Platforms {
    fn admits(&self, node: &Candidate<'_>) -> bool {
        let Some(has) = node.node.description.as_ref().map(|it| &it.platform) else {
            return false;
        };
        let same = |wanted: &str, has: &str| {
            wanted.is_empty() || constraint::architecture(wanted) == constraint::architecture(has)
        };
        let mut platforms = self.0.platforms.iter();
        platforms.any(|it| same(&it.architecture, &has.architecture) && same(&it.os, &has.os))
    }

    fn explain(&self, nodes: usize) -> String {
        format!("unsupported platform on {nodes} {}", plural(nodes))
    }
}

/// No more than so many tasks of the service run on the node.
pub(super) struct MaxReplicas(u64);

impl MaxReplicas {
    pub(super) fn of(task: &Task) -> Option<Self> {
        let max = task.spec.placement.as_ref()?.max_replicas;
        (max > 0).then_some(Self(max))
    }
}

impl Filter for MaxReplicas {
    fn admits(&self, node: &Candidate<'_>) -> bool {
        node.of_service < self.0
    }

    fn explain(&self, _: usize) -> String {
        "max replicas per node limit exceed".to_owned()
    }
}
