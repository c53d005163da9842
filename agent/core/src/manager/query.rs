//! Lookups and lists for every front door, read from a [`View`].
//!
//! A reference is what the user typed: a whole id, a name, or an unambiguous prefix of an id, in this
//! order, as Docker resolves them. Services that are being removed are not found and not listed.

mod filters;
mod lists;

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    api::{ApiError, Config, ModeKind, Network, Node, Secret, Service, Task, TaskState},
    id::Id,
    store::View,
};
pub use lists::{
    is_true, list_configs, list_networks, list_nodes, list_secrets, list_services, list_tasks,
};

/// The node with this id, host name, name or unambiguous prefix of an id. Two nodes with one host name
/// are both there, and naming either by it is ambiguous.
///
/// # Errors
/// `NotFound` or `Ambiguous`.
pub fn find_node(view: &View, reference: &str) -> Result<Arc<Node>, ApiError> {
    let hostname = |node: &Node| node.description.as_ref().map(|it| it.hostname.clone());
    let named = |node: &Node| {
        let by_host = hostname(node).is_some_and(|name| name == reference);
        by_host || (!node.spec.name.is_empty() && node.spec.name == reference)
    };
    resolve(
        "node",
        reference,
        view.nodes(),
        |node| node.id.as_str(),
        named,
    )
}

/// The service with this id, name or unambiguous prefix of an id.
///
/// # Errors
/// `NotFound` or `Ambiguous`.
pub fn find_service(view: &View, reference: &str) -> Result<Arc<Service>, ApiError> {
    let services = view.services().filter(|service| !service.pending_delete);
    let named = |service: &Service| service.spec.name.eq_ignore_ascii_case(reference);
    resolve("service", reference, services, |it| it.id.as_str(), named)
}

/// The network with this id, name or unambiguous prefix of an id.
///
/// # Errors
/// `NotFound` or `Ambiguous`.
pub fn find_network(view: &View, reference: &str) -> Result<Arc<Network>, ApiError> {
    let named = |network: &Network| network.spec.name.eq_ignore_ascii_case(reference);
    resolve(
        "network",
        reference,
        view.networks(),
        |it| it.id.as_str(),
        named,
    )
}

/// The secret with this id, name or unambiguous prefix of an id.
///
/// # Errors
/// `NotFound` or `Ambiguous`.
pub fn find_secret(view: &View, reference: &str) -> Result<Arc<Secret>, ApiError> {
    let named = |secret: &Secret| secret.spec.name.eq_ignore_ascii_case(reference);
    resolve(
        "secret",
        reference,
        view.secrets(),
        |it| it.id.as_str(),
        named,
    )
}

/// The config with this id, name or unambiguous prefix of an id.
///
/// # Errors
/// `NotFound` or `Ambiguous`.
pub fn find_config(view: &View, reference: &str) -> Result<Arc<Config>, ApiError> {
    let named = |config: &Config| config.spec.name.eq_ignore_ascii_case(reference);
    resolve(
        "config",
        reference,
        view.configs(),
        |it| it.id.as_str(),
        named,
    )
}

/// The task with this id, name (`service.slot.id`, or `service.slot` while one task of the slot lives; the
/// node's id is the slot of a global service) or unambiguous prefix of an id.
///
/// # Errors
/// `NotFound` or `Ambiguous`.
pub fn find_task(view: &View, reference: &str) -> Result<Arc<Task>, ApiError> {
    let named =
        |task: &Task| task.name() == reference || (task.is_live() && task.slot_name() == reference);
    resolve("task", reference, view.tasks(), |it| it.id.as_str(), named)
}

fn resolve<'a, T: 'a>(
    kind: &'static str,
    reference: &str,
    objects: impl Iterator<Item = &'a Arc<T>>,
    id: impl Fn(&T) -> &str,
    named: impl Fn(&T) -> bool,
) -> Result<Arc<T>, ApiError> {
    let not_found = || ApiError::NotFound {
        kind,
        reference: reference.chars().take(128).collect(),
    };
    if reference.is_empty() {
        return Err(not_found());
    }
    let (mut by_name, mut by_prefix) = (Vec::new(), Vec::new());
    for object in objects {
        if id(object) == reference {
            return Ok(Arc::clone(object));
        }
        if named(object) {
            by_name.push(object);
        } else if id(object).starts_with(reference) {
            by_prefix.push(object);
        }
    }
    let matches = if by_name.is_empty() {
        by_prefix
    } else {
        by_name
    };
    match matches[..] {
        [] => Err(not_found()),
        [one] => Ok(Arc::clone(one)),
        _ => Err(ApiError::Ambiguous {
            kind,
            reference: reference.to_owned(),
            matches: matches.len(),
        }),
    }
}

/// `ServiceStatus` of the Engine API: how far a service has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ServiceStatus {
    /// Tasks that run.
    pub running_tasks: u64,
    /// Tasks that shall run.
    pub desired_tasks: u64,
    /// Tasks of jobs that have ended well.
    pub completed_tasks: u64,
}

/// How many tasks of a service run, and how many shall; of a job, those of its present run.
#[must_use]
pub fn service_status(view: &View, service: &Service) -> ServiceStatus {
    let (mut running, mut wanted, mut done) = (0, BTreeSet::new(), BTreeSet::new());
    let tasks = view.tasks_of_service(&service.id);
    for task in tasks.filter(|task| service.is_current(task)) {
        if task.is_wanted() && task.status.state == TaskState::Running {
            running += 1;
        }
        if service.counts(task) {
            done.insert(service.slot_of(task));
        } else if task.is_wanted() {
            wanted.insert(service.slot_of(task));
        }
    }
    let mode = &service.spec.mode;
    let desired = match mode.kind() {
        ModeKind::Replicated => service.replicas(),
        ModeKind::ReplicatedJob => mode
            .replicated_job
            .as_ref()
            .map_or(1, |job| job.concurrent()),
        // As many as there are eligible nodes; of a job, those that have not done their part.
        ModeKind::Global | ModeKind::GlobalJob => wanted.difference(&done).count() as u64,
    };
    ServiceStatus {
        running_tasks: running,
        desired_tasks: desired,
        completed_tasks: done.len() as u64,
    }
}

/// The services that use a network: their tasks join it or shall join it.
#[must_use]
pub fn services_on<'a>(view: &'a View, network: &'a Id<Network>) -> Vec<&'a Arc<Service>> {
    let uses = |service: &&Arc<Service>| {
        let wanted = service.spec.task_template.networks.iter();
        wanted.into_iter().any(|it| it.target == network.as_str())
    };
    let services = view.services().filter(|service| !service.pending_delete);
    services.filter(uses).collect()
}
