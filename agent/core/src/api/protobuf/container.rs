//! The container part of a task's spec, and its resources.

use super::{MessageError, dependency, duration, mount, read_duration, refuse};
use crate::{
    api::{
        ContainerSpec, Platform, ResourceRequirements, Resources,
        container::{DnsConfig, Ulimit},
    },
    wire::swarmkit as pb,
};

/// `pids` is the limit of processes, which swarmkit keeps here and the Engine API with the resources.
pub(super) fn container(spec: &ContainerSpec, pids: i64) -> pb::ContainerSpec {
    pb::ContainerSpec {
        image: spec.image.clone(),
        labels: spec.labels.clone(),
        command: spec.command.clone(),
        args: spec.args.clone(),
        env: spec.env.clone(),
        dir: spec.dir.clone(),
        user: spec.user.clone(),
        mounts: spec.mounts.iter().map(mount::mount).collect(),
        stop_grace_period: spec.stop_grace_period.map(duration),
        groups: spec.groups.clone(),
        secrets: spec
            .secrets
            .iter()
            .map(dependency::secret_reference)
            .collect(),
        configs: spec
            .configs
            .iter()
            .map(dependency::config_reference)
            .collect(),
        tty: spec.tty,
        hostname: spec.hostname.clone(),
        dns_config: spec.dns_config.as_ref().map(dns),
        hosts: spec.hosts.clone(),
        open_stdin: spec.open_stdin,
        read_only: spec.read_only,
        stop_signal: spec.stop_signal.clone(),
        init: spec.init,
        pids_limit: pids,
        sysctls: spec.sysctls.clone(),
        capability_add: spec.capability_add.clone(),
        capability_drop: spec.capability_drop.clone(),
        ulimits: spec.ulimits.iter().map(ulimit).collect(),
        oom_score_adj: spec.oom_score_adj,
        ..pb::ContainerSpec::default()
    }
}

/// The spec and the limit of processes.
pub(super) fn read_container(
    message: pb::ContainerSpec,
) -> Result<(ContainerSpec, i64), MessageError> {
    let isolation = pb::container_spec::Isolation::Default;
    refuse(message.privileges.is_some(), "spec.container.privileges")?;
    refuse(message.healthcheck.is_some(), "spec.container.healthcheck")?;
    refuse(
        message.isolation != i32::from(isolation),
        "spec.container.isolation",
    )?;
    let grace = message.stop_grace_period.as_ref();
    let spec = ContainerSpec {
        image: message.image,
        labels: message.labels,
        command: message.command,
        args: message.args,
        hostname: message.hostname,
        env: message.env,
        dir: message.dir,
        user: message.user,
        groups: message.groups,
        secrets: message
            .secrets
            .into_iter()
            .map(dependency::read_secret_reference)
            .collect::<Result<_, _>>()?,
        configs: message
            .configs
            .into_iter()
            .map(dependency::read_config_reference)
            .collect::<Result<_, _>>()?,
        tty: message.tty,
        open_stdin: message.open_stdin,
        read_only: message.read_only,
        mounts: message
            .mounts
            .into_iter()
            .map(mount::read_mount)
            .collect::<Result<_, _>>()?,
        stop_signal: message.stop_signal,
        stop_grace_period: grace
            .map(|grace| read_duration(grace, "spec.container.stop_grace_period"))
            .transpose()?,
        hosts: message.hosts,
        dns_config: message.dns_config.map(|dns| DnsConfig {
            nameservers: dns.nameservers,
            search: dns.search,
            options: dns.options,
        }),
        init: message.init,
        sysctls: message.sysctls,
        capability_add: message.capability_add,
        capability_drop: message.capability_drop,
        ulimits: message.ulimits.into_iter().map(read_ulimit).collect(),
        oom_score_adj: message.oom_score_adj,
        ..ContainerSpec::default()
    };
    Ok((spec, message.pids_limit))
}

fn dns(config: &DnsConfig) -> pb::container_spec::DnsConfig {
    pb::container_spec::DnsConfig {
        nameservers: config.nameservers.clone(),
        search: config.search.clone(),
        options: config.options.clone(),
    }
}

fn ulimit(limit: &Ulimit) -> pb::container_spec::Ulimit {
    pb::container_spec::Ulimit {
        name: limit.name.clone(),
        soft: limit.soft,
        hard: limit.hard,
    }
}

fn read_ulimit(message: pb::container_spec::Ulimit) -> Ulimit {
    Ulimit {
        name: message.name,
        hard: message.hard,
        soft: message.soft,
    }
}

pub(super) fn resources(resources: &Resources) -> pb::Resources {
    pb::Resources {
        nano_cpus: resources.nano_cpus,
        memory_bytes: resources.memory_bytes,
        generic: Vec::new(),
    }
}

pub(super) fn read_resources(message: pb::Resources) -> Result<Resources, MessageError> {
    refuse(!message.generic.is_empty(), "resources.generic")?;
    Ok(Resources {
        nano_cpus: message.nano_cpus,
        memory_bytes: message.memory_bytes,
        ..Resources::default()
    })
}

pub(super) fn requirements(requirements: &ResourceRequirements) -> pb::ResourceRequirements {
    pb::ResourceRequirements {
        limits: requirements.limits.as_ref().map(resources),
        reservations: requirements.reservations.as_ref().map(resources),
        swap_bytes: requirements.swap_bytes,
        memory_swappiness: requirements.memory_swappiness,
    }
}

pub(super) fn read_requirements(
    message: Option<pb::ResourceRequirements>,
    pids: i64,
) -> Result<Option<ResourceRequirements>, MessageError> {
    let mut requirements = match message {
        Some(message) => Some(ResourceRequirements {
            limits: message.limits.map(read_resources).transpose()?,
            reservations: message.reservations.map(read_resources).transpose()?,
            swap_bytes: message.swap_bytes,
            memory_swappiness: message.memory_swappiness,
        }),
        None => None,
    };
    if pids != 0 {
        requirements
            .get_or_insert_default()
            .limits
            .get_or_insert_default()
            .pids = pids;
    }
    Ok(requirements)
}

pub(super) fn platform(platform: &Platform) -> pb::Platform {
    pb::Platform {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
    }
}

pub(super) fn read_platform(message: pb::Platform) -> Platform {
    Platform {
        architecture: message.architecture,
        os: message.os,
    }
}
