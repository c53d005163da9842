//! Logs of services: whose lines a subscription wants, which nodes have them, and what a node may publish.

use std::collections::{BTreeMap, BTreeSet};

use super::query;
use crate::{
    api::{ApiError, Node, NodeState, Service, Task},
    id::Id,
    store::View,
};

/// The tasks whose lines are wanted: those of these services, and these.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selection {
    /// Services, their history included.
    pub services: BTreeSet<Id<Service>>,
    /// Single tasks.
    pub tasks: BTreeSet<Id<Task>>,
}

impl Selection {
    /// The tasks of the service that a user names.
    ///
    /// # Errors
    /// `NotFound` or `Ambiguous`.
    pub fn of_service(view: &View, reference: &str) -> Result<Self, ApiError> {
        let service = query::find_service(view, reference)?;
        Ok(Self {
            services: BTreeSet::from([service.id.clone()]),
            ..Self::default()
        })
    }

    /// The task that a user names.
    ///
    /// # Errors
    /// `NotFound` or `Ambiguous`.
    pub fn of_task(view: &View, reference: &str) -> Result<Self, ApiError> {
        let task = query::find_task(view, reference)?;
        Ok(Self {
            tasks: BTreeSet::from([task.id.clone()]),
            ..Self::default()
        })
    }

    /// Whether a task's lines are wanted.
    #[must_use]
    pub fn has(&self, task: &Task) -> bool {
        self.services.contains(&task.service_id) || self.tasks.contains(&task.id)
    }

    /// The nodes that have had such tasks, each with one of them.
    #[must_use]
    pub fn sources(&self, view: &View) -> BTreeMap<Id<Node>, Id<Task>> {
        let of_services = self
            .services
            .iter()
            .flat_map(|id| view.tasks_of_service(id));
        let single = self.tasks.iter().filter_map(|id| view.task(id));
        let placed = of_services.chain(single).filter_map(|task| {
            let node = task.node_id.as_ref().filter(|_| task.is_assigned())?;
            Some((node.clone(), task.id.clone()))
        });
        placed.collect()
    }

    /// The task whose line a node publishes. `None` if it is not wanted or was never given to this node: workers are
    /// not trusted to speak for others.
    #[must_use]
    pub fn publishable<'a>(&self, view: &'a View, node: &Id<Node>, task: &str) -> Option<&'a Task> {
        let task = view.task(&task.parse().ok()?)?;
        let given = task.is_assigned() && task.node_id.as_ref() == Some(node);
        let may = given && self.has(task);
        may.then_some(&**task)
    }
}

/// Whether lines of a node can be expected.
#[must_use]
pub fn is_there(view: &View, node: &Id<Node>) -> bool {
    view.node(node)
        .is_some_and(|node| node.status.state == NodeState::Ready)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::bench::{Bench, service};

    #[test]
    fn a_node_speaks_for_its_own_tasks_of_the_selection_only() {
        let mut bench = Bench::new(2);
        let web = bench.create(&service("web", 2));
        let other = bench.create(&service("other", 2));
        bench.obey();
        let view = bench.view();
        let of_web = Selection::of_service(&view, "web").unwrap();
        assert_eq!(of_web.sources(&view).len(), 2);
        let tasks = bench.live(&web);
        let (first, second) = (&tasks[0], &tasks[1]);
        let node = first.node_id.as_ref().unwrap();
        let may = |task: &Task| of_web.publishable(&view, node, task.id.as_str()).is_some();
        assert!(may(first));
        assert!(!may(second), "it is on the other node");
        let foreign = bench.live(&other);
        let foreign = foreign.iter().find(|it| it.node_id.as_ref() == Some(node));
        assert!(!may(foreign.unwrap()), "it is of another service");
        assert!(of_web.publishable(&view, node, "no id").is_none());
        let one = Selection::of_task(&view, &first.name()).unwrap();
        assert!(one.has(first) && !one.has(second));
        assert!(one.sources(&view).keys().eq([node]));
        assert!(Selection::of_service(&view, "nothing").is_err());
    }
}
