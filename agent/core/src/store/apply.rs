//! From one version to the next.

use std::sync::Arc;

use super::{Change, Entry, Object, ObjectId, Proposal, View, view::claimed_ports};
use crate::api::{
    DependencyId, Meta, Network, Protocol, Service, ServiceSpec, Subnet, Task, TaskState,
    TaskStatus,
};
use crate::id::Id;

/// What a proposal did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The new version of every object that it wrote.
    pub index: u64,
    /// What it changed, in order; a report that said nothing new changed nothing.
    pub touched: Vec<ObjectId>,
}

/// Why a proposal was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The entry is older than the state.
    #[error("entry {index} was applied already: the store is at {version}")]
    Stale {
        /// The entry's index.
        index: u64,
        /// The store's version.
        version: u64,
    },
    /// The object was written, removed or made since its author has read it.
    #[error("{object} is at version {found}, not {expected}: read it again")]
    OutOfSequence {
        /// The object.
        object: ObjectId,
        /// The version that the author had read; 0 means that it should not exist.
        expected: u64,
        /// The version that it has; 0 means that it does not exist.
        found: u64,
    },
    /// Names are unique among the objects of a kind.
    #[error("name conflicts with an existing object: {kind} {name} already exists")]
    NameTaken {
        /// `service`, `network`, `secret` or `config`.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// A published port belongs to another service.
    #[error("port '{port}/{}' is already in use by service '{service}'", protocol.as_str())]
    PortTaken {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// Name of the service that holds it.
        service: String,
    },
    /// Networks share no address.
    #[error("subnet {subnet} overlaps with {other} of network {network}: choose another")]
    SubnetTaken {
        /// The new subnet.
        subnet: Subnet,
        /// The one that is there.
        other: Subnet,
        /// Whose it is.
        network: String,
    },
    /// A service names a network that was removed meanwhile.
    #[error("network {0} not found")]
    NoNetwork(String),
    /// A network that services use stays.
    #[error("network {network} is in use by service {service}")]
    NetworkInUse {
        /// Name of the network.
        network: String,
        /// Name of a service that uses it.
        service: String,
    },
    /// A service names a secret or config that was removed meanwhile.
    #[error("{kind} not found: {name}")]
    NoDependency {
        /// `secret` or `config`.
        kind: &'static str,
        /// Its name, as the service has it.
        name: String,
    },
    /// A secret or config that services use stays.
    #[error("{}", in_use(kind, name, services))]
    DependencyInUse {
        /// `secret` or `config`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Names of the services that use it.
        services: Vec<String>,
    },
    /// Observed and desired state of a task only grow.
    #[error("{task} can't go back from {from:?} to {to:?}")]
    WentBack {
        /// The task.
        task: ObjectId,
        /// Where it is.
        from: TaskState,
        /// Where the change would put it.
        to: TaskState,
    },
}

/// Docker's words for a secret or config that can't be removed.
pub(crate) fn in_use(kind: &str, name: &str, services: &[String]) -> String {
    let noun = match services {
        [_] => "service",
        [..] => "services",
    };
    let services = services.join(", ");
    format!("{kind} '{name}' is in use by the following {noun}: {services}")
}

pub(super) fn entry(
    view: &mut View,
    index: u64,
    entry: &Entry,
) -> Vec<Result<Applied, ApplyError>> {
    let version = view.version;
    if index <= version {
        let stale = ApplyError::Stale { index, version };
        return entry.proposals.iter().map(|_| Err(stale.clone())).collect();
    }
    view.version = index;
    let proposals = entry.proposals.iter();
    proposals.map(|one| proposal(view, index, one)).collect()
}

fn proposal(view: &mut View, index: u64, proposal: &Proposal) -> Result<Applied, ApplyError> {
    // A change is checked before it is made, so one alone needs no way back.
    if let [change] = &proposal.changes[..] {
        let touched = apply_change(view, index, change)?.then(|| change.object());
        return Ok(Applied {
            index,
            touched: touched.into_iter().collect(),
        });
    }
    // The copy shares everything; it takes the place of the state only if every change is good.
    let mut next = view.clone();
    let mut touched = Vec::with_capacity(proposal.changes.len());
    for change in &proposal.changes {
        if apply_change(&mut next, index, change)? {
            touched.push(change.object());
        }
    }
    *view = next;
    Ok(Applied { index, touched })
}

/// Whether it changed anything.
fn apply_change(view: &mut View, index: u64, change: &Change) -> Result<bool, ApplyError> {
    match change {
        Change::Put(object) => {
            expect_version(view, &object.id(), object.version())?;
            check(view, object)?;
            view.insert(stamped(object, index));
            Ok(true)
        }
        Change::Delete { object, version } => {
            expect_version(view, object, *version)?;
            check_unused(view, object)?;
            view.remove(object);
            Ok(*version != 0)
        }
        Change::TaskStatus { task, node, status } => {
            let Some(known) = view.tasks.get(task) else {
                return Ok(false);
            };
            if known.node_id.as_ref() != Some(node) || !says_more(&known.status, status) {
                return Ok(false);
            }
            let mut task = Task::clone(known);
            take_status(&mut task, status);
            view.insert(stamped(&Object::Task(Arc::new(task)), index));
            Ok(true)
        }
    }
}

fn expect_version(view: &View, object: &ObjectId, expected: u64) -> Result<(), ApplyError> {
    let found = view.version_of(object);
    if found == expected {
        return Ok(());
    }
    Err(ApplyError::OutOfSequence {
        object: object.clone(),
        expected,
        found,
    })
}

fn check(view: &View, object: &Object) -> Result<(), ApplyError> {
    match object {
        Object::Cluster(_) | Object::Node(_) => Ok(()),
        Object::Network(network) => check_network(view, network),
        Object::Service(service) => check_service(view, service),
        Object::Task(task) => check_task(view, task),
        Object::Secret(secret) => {
            let named = view.secret_named(&secret.spec.name);
            let other = named.is_some_and(|other| other.id != secret.id);
            check_name("secret", &secret.spec.name, other)
        }
        Object::Config(config) => {
            let named = view.config_named(&config.spec.name);
            let other = named.is_some_and(|other| other.id != config.id);
            check_name("config", &config.spec.name, other)
        }
    }
}

fn check_name(kind: &'static str, name: &str, taken: bool) -> Result<(), ApplyError> {
    match taken {
        false => Ok(()),
        true => Err(ApplyError::NameTaken {
            kind,
            name: name.to_owned(),
        }),
    }
}

fn check_network(view: &View, network: &Network) -> Result<(), ApplyError> {
    let named = view.network_named(&network.spec.name);
    let other = named.is_some_and(|other| other.id != network.id);
    check_name("network", &network.spec.name, other)?;
    let Some(subnet) = network.subnet() else {
        return Ok(());
    };
    let others = view.networks().filter(|other| other.id != network.id);
    for other in others {
        let taken = other.subnet().filter(|taken| taken.overlaps(&subnet));
        if let Some(taken) = taken {
            return Err(ApplyError::SubnetTaken {
                subnet,
                other: taken,
                network: other.spec.name.clone(),
            });
        }
    }
    Ok(())
}

fn check_service(view: &View, service: &Service) -> Result<(), ApplyError> {
    if service.pending_delete {
        return Ok(());
    }
    let named = view.service_named(&service.spec.name);
    let other = named.is_some_and(|other| other.id != service.id);
    check_name("service", &service.spec.name, other)?;
    let wanted = service.spec.task_template.networks.iter();
    for target in wanted.map(|wanted| &wanted.target) {
        let known = target.parse().ok().and_then(|id| view.network(&id));
        if known.is_none() {
            return Err(ApplyError::NoNetwork(target.clone()));
        }
    }
    check_dependencies(view, service)?;
    for (protocol, port) in claimed_ports(service) {
        let holder = view.port_holder(protocol, port);
        if let Some(holder) = holder.filter(|holder| holder.id != service.id) {
            return Err(ApplyError::PortTaken {
                port,
                protocol,
                service: holder.spec.name.clone(),
            });
        }
    }
    Ok(())
}

/// What a service newly refers to must be there. What it has now or had before may be gone: a rollback that
/// the manager decides must not fail for it; the tasks that miss it say so.
fn check_dependencies(view: &View, service: &Service) -> Result<(), ApplyError> {
    let known = view.service(&service.id);
    let previous = known.and_then(|known| known.previous_spec.as_ref());
    let before: Vec<DependencyId> = known
        .map(|known| &known.spec)
        .into_iter()
        .chain(previous)
        .flat_map(dependencies)
        .map(|(id, _)| id)
        .collect();
    for (id, name) in dependencies(&service.spec) {
        let (kind, there) = match &id {
            DependencyId::Secret(id) => ("secret", view.secret(id).is_some()),
            DependencyId::Config(id) => ("config", view.config(id).is_some()),
        };
        if !there && !before.contains(&id) {
            return Err(ApplyError::NoDependency {
                kind,
                name: name.to_owned(),
            });
        }
    }
    Ok(())
}

/// The secrets and configs that a service refers to, with their names.
fn dependencies(spec: &ServiceSpec) -> impl Iterator<Item = (DependencyId, &str)> {
    let container = spec.task_template.container_spec.iter();
    let references = container.flat_map(|container| container.references());
    references.filter_map(|one| Some((one.dependency()?, one.name)))
}

fn check_unused(view: &View, object: &ObjectId) -> Result<(), ApplyError> {
    match object {
        ObjectId::Network(id) => check_network_unused(view, id),
        ObjectId::Secret(id) => {
            let name = view.secret(id).map(|it| it.spec.name.as_str());
            let dependency = DependencyId::Secret(id.clone());
            check_dependency_unused(view, "secret", &dependency, name)
        }
        ObjectId::Config(id) => {
            let name = view.config(id).map(|it| it.spec.name.as_str());
            let dependency = DependencyId::Config(id.clone());
            check_dependency_unused(view, "config", &dependency, name)
        }
        ObjectId::Cluster | ObjectId::Node(_) | ObjectId::Service(_) | ObjectId::Task(_) => Ok(()),
    }
}

fn check_dependency_unused(
    view: &View,
    kind: &'static str,
    dependency: &DependencyId,
    name: Option<&str>,
) -> Result<(), ApplyError> {
    let services = view.users_of(dependency);
    match services.is_empty() {
        true => Ok(()),
        false => Err(ApplyError::DependencyInUse {
            kind,
            name: name.unwrap_or_default().to_owned(),
            services,
        }),
    }
}

fn check_network_unused(view: &View, id: &Id<Network>) -> Result<(), ApplyError> {
    let uses = |service: &&Arc<Service>| {
        let mut wanted = service.spec.task_template.networks.iter();
        !service.pending_delete && wanted.any(|wanted| wanted.target == id.as_str())
    };
    match view.services().find(uses) {
        Some(service) => Err(ApplyError::NetworkInUse {
            network: view
                .network(id)
                .map_or_else(String::new, |it| it.spec.name.clone()),
            service: service.spec.name.clone(),
        }),
        None => Ok(()),
    }
}

fn check_task(view: &View, task: &Task) -> Result<(), ApplyError> {
    let Some(known) = view.task(&task.id) else {
        return Ok(());
    };
    let steps = [
        (known.status.state, task.status.state),
        (known.desired_state, task.desired_state),
    ];
    for (from, to) in steps {
        if to < from {
            return Err(ApplyError::WentBack {
                task: ObjectId::Task(task.id.clone()),
                from,
                to,
            });
        }
    }
    Ok(())
}

/// Whether a report adds to what is known: a later state, or more about the same one. What a task has
/// ended with is final.
fn says_more(known: &TaskStatus, report: &TaskStatus) -> bool {
    let same_but_more = report.state == known.state
        && !known.state.is_terminal()
        && (
            &report.message,
            &report.err,
            &report.container_status,
            &report.port_status,
        ) != (
            &known.message,
            &known.err,
            &known.container_status,
            &known.port_status,
        );
    report.state > known.state || same_but_more
}

fn take_status(task: &mut Task, report: &TaskStatus) {
    let reaches_running = report.state >= TaskState::Running;
    if reaches_running && task.status.state < TaskState::Running {
        let ran = report.state == TaskState::Running || report.container_status.is_some();
        task.running_since = ran.then_some(report.timestamp);
    }
    let container = task.status.container_status.take();
    task.status = report.clone();
    // A container that is gone is still the one that this task had.
    task.status.container_status = report.container_status.clone().or(container);
    task.meta.updated_at = report.timestamp;
}

fn stamped(object: &Object, index: u64) -> Object {
    fn at<T: Clone>(object: &Arc<T>, index: u64, meta: impl FnOnce(&mut T) -> &mut Meta) -> Arc<T> {
        let mut object = T::clone(object);
        meta(&mut object).version = index;
        Arc::new(object)
    }
    match object {
        Object::Cluster(cluster) => Object::Cluster(at(cluster, index, |it| &mut it.meta)),
        Object::Node(node) => Object::Node(at(node, index, |it| &mut it.meta)),
        Object::Service(service) => Object::Service(at(service, index, |it| &mut it.meta)),
        Object::Network(network) => Object::Network(at(network, index, |it| &mut it.meta)),
        Object::Task(task) => Object::Task(at(task, index, |it| &mut it.meta)),
        Object::Secret(secret) => Object::Secret(at(secret, index, |it| &mut it.meta)),
        Object::Config(config) => Object::Config(at(config, index, |it| &mut it.meta)),
    }
}
