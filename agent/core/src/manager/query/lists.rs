//! Lists with Docker's filters.

use std::{collections::BTreeSet, sync::Arc};

use super::{filters::Checked, find_node, find_service};
use crate::{
    api::{
        ApiError, Config, Filters, Labels, Membership, ModeKind, Network, Node, Role, Secret,
        Service, Task, TaskState,
    },
    manager::orchestrator::update::is_outdated,
    store::View,
};

/// The nodes that match; keys `id`, `label`, `node.label`, `membership`, `name`, `role`.
///
/// # Errors
/// `Invalid` for an unknown key or value.
pub fn list_nodes(view: &View, filters: &Filters) -> Result<Vec<Arc<Node>>, ApiError> {
    let known = ["id", "label", "node.label", "membership", "name", "role"];
    let filters = Checked::new(filters, &known)?;
    filters.words("role", &["manager", "worker"])?;
    filters.words("membership", &["accepted", "pending"])?;
    let matches = |node: &&Arc<Node>| {
        let hostname = node.description.as_ref().map_or("", |it| &it.hostname);
        let engine = node.description.as_ref().map(|it| it.engine.labels.clone());
        filters.any("id", |id| node.id.as_str().starts_with(id))
            && filters.any("name", |name| {
                hostname.starts_with(name) || node.spec.name.starts_with(name)
            })
            && filters.any("role", |role| {
                (role == "manager") == (node.spec.role == Role::Manager)
            })
            && filters.any("membership", |word| {
                (word == "accepted") == (node.spec.membership == Membership::Accepted)
            })
            && filters.labels("node.label", &node.spec.labels)
            && filters.labels("label", &engine.unwrap_or_default())
    };
    Ok(view.nodes().filter(matches).cloned().collect())
}

/// The services that match; keys `id`, `label`, `mode`, `name`, `runtime`.
///
/// # Errors
/// `Invalid` for an unknown key or value.
pub fn list_services(view: &View, filters: &Filters) -> Result<Vec<Arc<Service>>, ApiError> {
    let filters = Checked::new(filters, &["id", "label", "mode", "name", "runtime"])?;
    let modes = [
        ModeKind::Replicated,
        ModeKind::Global,
        ModeKind::ReplicatedJob,
        ModeKind::GlobalJob,
    ];
    filters.words("mode", &modes.map(ModeKind::as_str))?;
    let matches = |service: &&Arc<Service>| {
        !service.pending_delete
            && filters.any("id", |id| service.id.as_str().starts_with(id))
            && filters.any("name", |name| service.spec.name.starts_with(name))
            && filters.any("mode", |mode| mode == service.spec.mode.kind().as_str())
            && filters.any("runtime", |runtime| runtime == "container")
            && filters.labels("label", &service.spec.labels)
    };
    Ok(view.services().filter(matches).cloned().collect())
}

/// The tasks that match; keys `id`, `label`, `name`, `service`, `node`, `desired-state`,
/// `_up-to-date`, `runtime`. History is listed as well.
///
/// # Errors
/// `Invalid` for an unknown key or value; `NotFound` or `Ambiguous` for a node or service that can't
/// be resolved.
pub fn list_tasks(view: &View, filters: &Filters) -> Result<Vec<Arc<Task>>, ApiError> {
    let known = [
        "id",
        "label",
        "name",
        "service",
        "node",
        "desired-state",
        "_up-to-date",
        "runtime",
    ];
    let checked = Checked::new(filters, &known)?;
    let states = [
        "running", "shutdown", "accepted", "ready", "complete", "remove",
    ];
    checked.words("desired-state", &states)?;
    let services = resolved(filters.get("service"), |it| {
        Ok(find_service(view, it)?.id.clone())
    })?;
    let nodes = resolved(filters.get("node"), |it| {
        Ok(find_node(view, it)?.id.clone())
    })?;
    // Clients ask for the tasks of one service several times a second: look at no others.
    let candidates: Vec<&Arc<Task>> = match &services {
        Some(ids) => ids
            .iter()
            .flat_map(|id| view.tasks_of_service(id))
            .collect(),
        None => view.tasks().collect(),
    };
    let on_nodes = |task: &Task| {
        let on = task.node_id.as_ref();
        nodes
            .as_ref()
            .is_none_or(|ids| on.is_some_and(|on| ids.contains(on)))
    };
    let matches = |task: &&Arc<Task>| {
        on_nodes(task)
            && checked.any("id", |id| task.id.as_str().starts_with(id))
            && checked.any("name", |name| {
                task.service_name.starts_with(name) || task.name().starts_with(name)
            })
            && checked.any("desired-state", |word| desires(task, word))
            && checked.any("_up-to-date", |word| {
                is_up_to_date(view, task) == is_true(word)
            })
            && checked.any("runtime", |runtime| runtime == "container")
            && checked.labels("label", &task.service_labels)
    };
    Ok(candidates.into_iter().filter(matches).cloned().collect())
}

/// The cluster networks that match; keys `id`, `name`, `label`, `driver`, `scope`, `type`, `dangling`.
///
/// # Errors
/// `Invalid` for an unknown key or value.
pub fn list_networks(view: &View, filters: &Filters) -> Result<Vec<Arc<Network>>, ApiError> {
    let known = ["id", "name", "label", "driver", "scope", "type", "dangling"];
    let filters = Checked::new(filters, &known)?;
    filters.words("scope", &["swarm", "local", "global"])?;
    filters.words("type", &["custom", "builtin"])?;
    let matches = |network: &&Arc<Network>| {
        let used = || !super::services_on(view, &network.id).is_empty() || network.spec.ingress;
        filters.any("id", |id| network.id.as_str().starts_with(id))
            && filters.any("name", |name| network.spec.name.contains(name))
            && filters.any("driver", |driver| driver == "overlay")
            && filters.any("scope", |scope| scope == "swarm")
            && filters.any("type", |kind| kind == "custom")
            && filters.any("dangling", |word| used() != is_true(word))
            && filters.labels("label", &network.spec.labels)
    };
    Ok(view.networks().filter(matches).cloned().collect())
}

/// The secrets that match; keys `id`, `label`, `name` (a prefix) and `names` (all of it).
///
/// # Errors
/// `Invalid` for an unknown key.
pub fn list_secrets(view: &View, filters: &Filters) -> Result<Vec<Arc<Secret>>, ApiError> {
    let filters = Checked::new(filters, &DEPENDENCY_FILTERS)?;
    let matches = |secret: &&Arc<Secret>| {
        let spec = &secret.spec;
        is_asked_for(&filters, secret.id.as_str(), &spec.name, &spec.labels)
    };
    Ok(view.secrets().filter(matches).cloned().collect())
}

/// The configs that match; keys as for secrets.
///
/// # Errors
/// `Invalid` for an unknown key.
pub fn list_configs(view: &View, filters: &Filters) -> Result<Vec<Arc<Config>>, ApiError> {
    let filters = Checked::new(filters, &DEPENDENCY_FILTERS)?;
    let matches = |config: &&Arc<Config>| {
        let spec = &config.spec;
        is_asked_for(&filters, config.id.as_str(), &spec.name, &spec.labels)
    };
    Ok(view.configs().filter(matches).cloned().collect())
}

const DEPENDENCY_FILTERS: [&str; 4] = ["id", "label", "name", "names"];

fn is_asked_for(filters: &Checked<'_>, id: &str, name: &str, labels: &Labels) -> bool {
    filters.any("id", |prefix| id.starts_with(prefix))
        && filters.any("name", |prefix| name.starts_with(prefix))
        && filters.any("names", |wanted| name == wanted)
        && filters.labels("label", labels)
}

fn resolved<T>(
    values: Option<&Vec<String>>,
    resolve: impl Fn(&str) -> Result<T, ApiError>,
) -> Result<Option<BTreeSet<T>>, ApiError>
where
    T: Ord,
{
    let values = values.filter(|values| !values.is_empty());
    values
        .map(|values| values.iter().map(|value| resolve(value)).collect())
        .transpose()
}

fn desires(task: &Task, word: &str) -> bool {
    match word {
        // Docker's clients mean "wanted" by running, and prepared ones are wanted.
        "running" => task.desired_state == TaskState::Running,
        "ready" => task.desired_state == TaskState::Ready,
        "accepted" => task.desired_state == TaskState::Accepted,
        "complete" => task.desired_state == TaskState::Complete,
        "shutdown" => task.desired_state == TaskState::Shutdown,
        "remove" => task.desired_state == TaskState::Remove,
        _ => false,
    }
}

fn is_up_to_date(view: &View, task: &Task) -> bool {
    let service = view.service(&task.service_id);
    service.is_some_and(|service| service.is_current(task) && !is_outdated(view, service, task))
}

/// Whether the value of a filter means yes, as Go's `ParseBool` reads it.
#[must_use]
pub fn is_true(word: &str) -> bool {
    ["true", "1", "t", "T", "True", "TRUE"].contains(&word)
}
