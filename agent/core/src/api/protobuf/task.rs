//! Tasks and their status.

use super::{
    MessageError, container,
    container::{platform, read_platform},
    duration, id, meta,
    network::{self, Lookup},
    read_duration, read_meta, read_timestamp, refuse, timestamp,
};
use crate::{
    api::{
        ContainerStatus, Labels, NetworkAttachmentConfig, Placement, PlacementPreference,
        RestartPolicy, SpreadOver, Task, TaskSpec, TaskState, TaskStatus,
        task::{LogDriver, RestartCondition},
    },
    wire::swarmkit as pb,
};

/// Bytes of a status text that are kept: a node must not fill the managers' store with it.
const MAX_STATUS_TEXT: usize = 4096;

/// A task for its node. `lookup` finds the networks of the store: their definitions travel with it.
#[must_use]
pub fn task(task: &Task, lookup: Lookup<'_>) -> pb::Task {
    let annotations = |name: String, labels: &Labels| {
        Some(pb::Annotations {
            name,
            labels: labels.clone(),
            indices: Vec::new(),
        })
    };
    pb::Task {
        id: task.id.to_string(),
        meta: Some(meta(&task.meta)),
        spec: Some(spec(&task.spec)),
        service_id: task.service_id.to_string(),
        slot: task.slot,
        node_id: task
            .node_id
            .as_ref()
            .map_or_else(String::new, ToString::to_string),
        annotations: annotations(task.name(), &Labels::new()),
        service_annotations: annotations(task.service_name.clone(), &task.service_labels),
        status: Some(status(&task.status)),
        desired_state: state(task.desired_state).into(),
        networks: task
            .networks
            .iter()
            .filter_map(|attachment| network::attachment(attachment, lookup))
            .collect(),
        endpoint: Some(network::endpoint(&task.endpoint, lookup)),
        log_driver: task.spec.log_driver.as_ref().map(driver),
        spec_version: Some(pb::Version {
            index: task.spec_version,
        }),
        job_iteration: task.job_iteration.map(|index| pb::Version { index }),
        ..pb::Task::default()
    }
}

/// A task from a manager.
///
/// # Errors
/// The field that is damaged or not supported.
pub fn read_task(message: pb::Task) -> Result<Task, MessageError> {
    refuse(!message.volumes.is_empty(), "volumes")?;
    refuse(
        !message.assigned_generic_resources.is_empty(),
        "assigned_generic_resources",
    )?;
    let service = message.service_annotations.unwrap_or_default();
    let node_id = match message.node_id.as_str() {
        "" => None,
        text => Some(id(text, "node_id")?),
    };
    Ok(Task {
        id: id(&message.id, "id")?,
        meta: read_meta(message.meta.as_ref()),
        spec: read_spec(message.spec.unwrap_or_default(), message.log_driver)?,
        spec_version: message.spec_version.map_or(0, |version| version.index),
        service_id: id(&message.service_id, "service_id")?,
        service_name: service.name,
        service_labels: service.labels,
        slot: message.slot,
        node_id,
        status: read_status(message.status.unwrap_or_default())?,
        desired_state: read_state(message.desired_state, "desired_state")?,
        networks: message
            .networks
            .into_iter()
            .map(network::read_attachment)
            .collect::<Result<_, _>>()?,
        endpoint: network::read_endpoint(message.endpoint.unwrap_or_default())?,
        not_before: None,
        predecessor: None,
        running_since: None,
        job_iteration: message.job_iteration.map(|version| version.index),
    })
}

fn spec(spec: &TaskSpec) -> pb::TaskSpec {
    let limits = spec.resources.as_ref().and_then(|all| all.limits.as_ref());
    let pids = limits.map_or(0, |limits| limits.pids);
    pb::TaskSpec {
        runtime: spec
            .container_spec
            .as_ref()
            .map(|spec| pb::task_spec::Runtime::Container(container::container(spec, pids))),
        resources: spec.resources.as_ref().map(container::requirements),
        restart: spec.restart_policy.as_ref().map(restart),
        placement: spec.placement.as_ref().map(placement),
        log_driver: spec.log_driver.as_ref().map(driver),
        networks: spec.networks.iter().map(attachment_config).collect(),
        force_update: spec.force_update,
        resource_references: Vec::new(),
    }
}

/// `log_driver` is the driver that the manager has resolved for the task; it goes before the spec's.
fn read_spec(
    message: pb::TaskSpec,
    log_driver: Option<pb::Driver>,
) -> Result<TaskSpec, MessageError> {
    let (container_spec, pids) = match message.runtime {
        Some(pb::task_spec::Runtime::Container(message)) => container::read_container(message)?,
        Some(pb::task_spec::Runtime::Attachment(_)) => {
            return Err(MessageError::unsupported("spec.attachment"));
        }
        Some(pb::task_spec::Runtime::Generic(_)) => {
            return Err(MessageError::unsupported("spec.generic"));
        }
        None => return Err(MessageError::new("spec.container", "is missing")),
    };
    refuse(
        !message.resource_references.is_empty(),
        "spec.resource_references",
    )?;
    Ok(TaskSpec {
        container_spec: Some(container_spec),
        resources: container::read_requirements(message.resources, pids)?,
        restart_policy: message.restart.map(read_restart).transpose()?,
        placement: message.placement.map(|placement| Placement {
            constraints: placement.constraints,
            max_replicas: placement.max_replicas,
            platforms: placement.platforms.into_iter().map(read_platform).collect(),
            preferences: placement
                .preferences
                .into_iter()
                .map(read_preference)
                .collect(),
        }),
        networks: message
            .networks
            .into_iter()
            .map(|config| NetworkAttachmentConfig {
                target: config.target,
                aliases: config.aliases,
                driver_opts: config.driver_attachment_opts,
            })
            .collect(),
        log_driver: log_driver.or(message.log_driver).map(|driver| LogDriver {
            name: driver.name,
            options: driver.options,
        }),
        force_update: message.force_update,
        ..TaskSpec::default()
    })
}

fn attachment_config(config: &NetworkAttachmentConfig) -> pb::NetworkAttachmentConfig {
    pb::NetworkAttachmentConfig {
        target: config.target.clone(),
        aliases: config.aliases.clone(),
        addresses: Vec::new(),
        driver_attachment_opts: config.driver_opts.clone(),
    }
}

fn driver(driver: &LogDriver) -> pb::Driver {
    pb::Driver {
        name: driver.name.clone(),
        options: driver.options.clone(),
    }
}

fn placement(placement: &Placement) -> pb::Placement {
    pb::Placement {
        constraints: placement.constraints.clone(),
        preferences: placement.preferences.iter().map(preference).collect(),
        platforms: placement.platforms.iter().map(platform).collect(),
        max_replicas: placement.max_replicas,
    }
}

fn preference(preference: &PlacementPreference) -> pb::PlacementPreference {
    let spread = preference.spread.as_ref().map(|spread| pb::SpreadOver {
        spread_descriptor: spread.spread_descriptor.clone(),
    });
    pb::PlacementPreference {
        preference: spread.map(pb::placement_preference::Preference::Spread),
    }
}

fn read_preference(message: pb::PlacementPreference) -> PlacementPreference {
    let spread = message.preference.map(|preference| match preference {
        pb::placement_preference::Preference::Spread(spread) => SpreadOver {
            spread_descriptor: spread.spread_descriptor,
        },
    });
    PlacementPreference { spread }
}

/// An absent condition is `any` in both worlds' APIs; swarmkit's zero value would be `none`.
fn restart(policy: &RestartPolicy) -> pb::RestartPolicy {
    let condition = match policy.condition.unwrap_or_default() {
        RestartCondition::None => pb::restart_policy::RestartCondition::None,
        RestartCondition::OnFailure => pb::restart_policy::RestartCondition::OnFailure,
        RestartCondition::Any => pb::restart_policy::RestartCondition::Any,
    };
    pb::RestartPolicy {
        condition: condition.into(),
        delay: policy.delay.map(duration),
        max_attempts: policy.max_attempts.unwrap_or(0),
        window: policy.window.map(duration),
    }
}

fn read_restart(message: pb::RestartPolicy) -> Result<RestartPolicy, MessageError> {
    let condition = match pb::restart_policy::RestartCondition::try_from(message.condition) {
        Ok(pb::restart_policy::RestartCondition::None) => RestartCondition::None,
        Ok(pb::restart_policy::RestartCondition::OnFailure) => RestartCondition::OnFailure,
        Ok(pb::restart_policy::RestartCondition::Any) => RestartCondition::Any,
        Err(_) => return Err(MessageError::unsupported("spec.restart.condition")),
    };
    let read = |message: Option<prost_types::Duration>, field| {
        message
            .map(|message| read_duration(&message, field))
            .transpose()
    };
    Ok(RestartPolicy {
        condition: Some(condition),
        delay: read(message.delay, "spec.restart.delay")?,
        max_attempts: Some(message.max_attempts).filter(|count| *count != 0),
        window: read(message.window, "spec.restart.window")?,
    })
}

/// A status report.
#[must_use]
pub fn status(status: &TaskStatus) -> pb::TaskStatus {
    let container = status.container_status.as_ref();
    pb::TaskStatus {
        timestamp: Some(timestamp(status.timestamp)),
        state: state(status.state).into(),
        message: status.message.clone(),
        err: status.err.clone(),
        runtime_status: container.map(|container| {
            pb::task_status::RuntimeStatus::Container(pb::ContainerStatus {
                container_id: container.container_id.clone(),
                pid: container.pid,
                exit_code: container.exit_code,
            })
        }),
        port_status: (!status.port_status.is_empty()).then(|| pb::PortStatus {
            ports: status.port_status.iter().map(network::port).collect(),
        }),
        ..pb::TaskStatus::default()
    }
}

/// A status report from a node; long texts are cut.
///
/// # Errors
/// The field that is damaged.
pub fn read_status(message: pb::TaskStatus) -> Result<TaskStatus, MessageError> {
    let container_status = match message.runtime_status {
        Some(pb::task_status::RuntimeStatus::Container(container)) => {
            if container.container_id.len() > 64 {
                let why = "is longer than 64 characters";
                return Err(MessageError::new("status.container.container_id", why));
            }
            Some(ContainerStatus {
                container_id: container.container_id,
                pid: container.pid,
                exit_code: container.exit_code,
            })
        }
        None => None,
    };
    Ok(TaskStatus {
        timestamp: read_timestamp(message.timestamp.as_ref()),
        state: read_state(message.state, "status.state")?,
        message: cut(message.message),
        err: cut(message.err),
        container_status,
        port_status: network::read_ports(message.port_status.unwrap_or_default().ports)?,
    })
}

fn cut(mut text: String) -> String {
    let mut places = (0..=MAX_STATUS_TEXT.min(text.len())).rev();
    let end = places.find(|&at| text.is_char_boundary(at));
    text.truncate(end.unwrap_or(0));
    text
}

fn state(state: TaskState) -> pb::TaskState {
    match state {
        TaskState::New => pb::TaskState::New,
        TaskState::Pending => pb::TaskState::Pending,
        TaskState::Assigned => pb::TaskState::Assigned,
        TaskState::Accepted => pb::TaskState::Accepted,
        TaskState::Preparing => pb::TaskState::Preparing,
        TaskState::Ready => pb::TaskState::Ready,
        TaskState::Starting => pb::TaskState::Starting,
        TaskState::Running => pb::TaskState::Running,
        TaskState::Complete => pb::TaskState::Complete,
        TaskState::Shutdown => pb::TaskState::Shutdown,
        TaskState::Failed => pb::TaskState::Failed,
        TaskState::Rejected => pb::TaskState::Rejected,
        TaskState::Remove => pb::TaskState::Remove,
        TaskState::Orphaned => pb::TaskState::Orphaned,
    }
}

fn read_state(number: i32, field: &'static str) -> Result<TaskState, MessageError> {
    TaskState::ALL
        .into_iter()
        .find(|state| i32::from(*state as u16) == number)
        .ok_or_else(|| MessageError::new(field, format!("{number} is no task state")))
}
