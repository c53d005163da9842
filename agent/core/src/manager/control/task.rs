//! `TaskTemplate`: what each task is, apart from its container.

use std::collections::BTreeSet;

use super::{container, invalid, names, process, reference, service::refuse, unsupported};
use crate::{
    api::{
        ApiError, NetworkAttachmentConfig, Placement, PlacementPreference, ResourceRequirements,
        Resources, TaskSpec,
    },
    manager::{constraint::Constraint, query, scheduler::Label},
    store::View,
};

/// Docker's least CPU share: a thousandth of a core.
const MIN_NANO_CPUS: i64 = 1_000_000;
/// Docker's least memory: 4 MiB.
const MIN_MEMORY: i64 = 4 << 20;
/// Networks that a node has for itself: services can't join them here.
const LOCAL_NETWORKS: [&str; 4] = ["bridge", "host", "none", "docker_gwbridge"];

/// Checks a template and resolves the networks that it names to their ids.
pub(super) fn check(view: &View, spec: &mut TaskSpec) -> Result<(), ApiError> {
    refuse("TaskTemplate.PluginSpec", spec.plugin_spec.as_ref())?;
    refuse(
        "TaskTemplate.NetworkAttachmentSpec",
        spec.network_attachment_spec.as_ref(),
    )?;
    if !["", "container"].contains(&spec.runtime.as_str()) {
        return Err(unsupported(format!(
            "TaskTemplate.Runtime {:?}",
            spec.runtime
        )));
    }
    // One way to say it, so that the same service is not taken for another one.
    spec.runtime.clear();
    let Some(container) = &mut spec.container_spec else {
        return Err(invalid(
            "TaskTemplate.ContainerSpec",
            "it is missing: give at least an image",
        ));
    };
    container::check(container)?;
    reference::check(view, container)?;
    if let Some(resources) = &spec.resources {
        check_resources(resources)?;
    }
    if let Some(placement) = &spec.placement {
        check_placement(placement)?;
    }
    if let Some(driver) = &spec.log_driver {
        process::check_log(driver)?;
    }
    resolve_networks(view, &mut spec.networks)?;
    names::check_size("TaskTemplate", spec)
}

fn check_resources(resources: &ResourceRequirements) -> Result<(), ApiError> {
    let field = "TaskTemplate.Resources";
    if resources.swap_bytes.is_some() {
        return Err(unsupported(format!("{field}.SwapBytes (--memory-swap)")));
    }
    if resources.memory_swappiness.is_some_and(|it| it >= 0) {
        return Err(unsupported(format!(
            "{field}.MemorySwappiness (--memory-swappiness)"
        )));
    }
    if let Some(limits) = &resources.limits {
        check_amounts(&format!("{field}.Limits"), limits)?;
        if limits.pids < 0 {
            return Err(invalid(
                format!("{field}.Limits.Pids"),
                format!("{} is negative: give 0 for no limit", limits.pids),
            ));
        }
    }
    if let Some(reservations) = &resources.reservations {
        check_amounts(&format!("{field}.Reservations"), reservations)?;
        if reservations.pids != 0 {
            return Err(invalid(
                format!("{field}.Reservations.Pids"),
                "processes can't be reserved: set a limit instead",
            ));
        }
    }
    Ok(())
}

fn check_amounts(field: &str, amounts: &Resources) -> Result<(), ApiError> {
    if amounts.nano_cpus != 0 && amounts.nano_cpus < MIN_NANO_CPUS {
        return Err(invalid(
            format!("{field}.NanoCPUs"),
            format!(
                "invalid cpu value {}: must be at least 0.001 of a core ({MIN_NANO_CPUS})",
                amounts.nano_cpus
            ),
        ));
    }
    if amounts.memory_bytes != 0 && amounts.memory_bytes < MIN_MEMORY {
        return Err(invalid(
            format!("{field}.MemoryBytes"),
            format!(
                "invalid memory value {}: must be at least 4MiB ({MIN_MEMORY})",
                amounts.memory_bytes
            ),
        ));
    }
    if !amounts.generic_resources.is_empty() {
        return Err(unsupported(format!(
            "{field}.GenericResources (--generic-resource)"
        )));
    }
    Ok(())
}

fn check_placement(placement: &Placement) -> Result<(), ApiError> {
    let field = "TaskTemplate.Placement";
    names::check_count(&format!("{field}.Preferences"), placement.preferences.len())?;
    for (position, preference) in placement.preferences.iter().enumerate() {
        check_preference(&format!("{field}.Preferences[{position}]"), preference)?;
    }
    names::check_count(&format!("{field}.Constraints"), placement.constraints.len())?;
    for (position, text) in placement.constraints.iter().enumerate() {
        let parsed = text.parse::<Constraint>();
        parsed.map_err(|error| {
            invalid(
                format!("{field}.Constraints[{position}]"),
                error.to_string(),
            )
        })?;
    }
    names::check_count(&format!("{field}.Platforms"), placement.platforms.len())
}

fn check_preference(field: &str, preference: &PlacementPreference) -> Result<(), ApiError> {
    let Some(spread) = &preference.spread else {
        return Err(invalid(
            format!("{field}.Spread"),
            "it is missing: only spread is supported",
        ));
    };
    let descriptor = &spread.spread_descriptor;
    if descriptor.len() > 256 || Label::parse(descriptor).is_none() {
        let shown: String = descriptor.chars().take(128).collect();
        return Err(invalid(
            format!("{field}.Spread.SpreadDescriptor"),
            format!("{shown:?} is no label: use node.labels.<key> or engine.labels.<key>"),
        ));
    }
    Ok(())
}

fn resolve_networks(view: &View, networks: &mut [NetworkAttachmentConfig]) -> Result<(), ApiError> {
    names::check_count("TaskTemplate.Networks", networks.len())?;
    let mut seen = BTreeSet::new();
    for (position, wanted) in networks.iter_mut().enumerate() {
        let field = format!("TaskTemplate.Networks[{position}]");
        if let Some(option) = wanted.driver_opts.keys().next() {
            return Err(unsupported(format!("{field}.DriverOpts {option:?}")));
        }
        for alias in &wanted.aliases {
            names::check_name(&format!("{field}.Aliases"), alias)?;
        }
        if LOCAL_NETWORKS.contains(&wanted.target.as_str()) {
            return Err(unsupported(format!(
                "{field}.Target {:?}: joining a node's own network",
                wanted.target
            )));
        }
        let network = query::find_network(view, &wanted.target)?;
        if network.spec.ingress {
            return Err(invalid(
                format!("{field}.Target"),
                format!(
                    "service cannot be explicitly attached to the ingress network {:?}: publish a port instead",
                    network.spec.name
                ),
            ));
        }
        if !seen.insert(network.id.clone()) {
            return Err(invalid(
                format!("{field}.Target"),
                format!("network {:?} is given twice: remove one", network.spec.name),
            ));
        }
        network.id.as_str().clone_into(&mut wanted.target);
    }
    Ok(())
}
