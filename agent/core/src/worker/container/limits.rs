//! What a container may do and use: capabilities, limits of its processes, shares of the machine.

use std::collections::BTreeMap;

use oci_spec::runtime::{
    Capabilities, LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources,
    LinuxResourcesBuilder, PosixRlimit, PosixRlimitBuilder, PosixRlimitType,
};

use super::{defaults, invalid};
use crate::api::container::Ulimit;
use crate::api::{ApiError, ContainerSpec, Resources};

/// Length of the period in which a processor limit counts, in microseconds.
const CPU_PERIOD: u64 = 100_000;

/// Docker's order: `ALL` added, then what is dropped, then what is added by name.
pub(super) fn capabilities(spec: &ContainerSpec) -> Result<Capabilities, ApiError> {
    let parse = |field: &str, names: &[String]| -> Result<(bool, Capabilities), ApiError> {
        let mut all = false;
        let mut set = Capabilities::new();
        for name in names {
            if name.eq_ignore_ascii_case("all") {
                all = true;
            } else {
                let why = || invalid(field, format!("unknown capability {name:?}"));
                set.insert(defaults::capability(name).ok_or_else(why)?);
            }
        }
        Ok((all, set))
    };
    let (add_all, add) = parse("CapabilityAdd", &spec.capability_add)?;
    let (drop_all, drop) = parse("CapabilityDrop", &spec.capability_drop)?;
    let base = match (add_all, drop_all) {
        (true, _) => defaults::every_capability(),
        (false, true) => Capabilities::new(),
        (false, false) => defaults::default_capabilities(),
    };
    let kept = base.difference(&drop).copied();
    Ok(kept.chain(add).collect())
}

/// Docker's defaults for open files and locked memory, and the user's limits over them.
pub(super) fn rlimits(ulimits: &[Ulimit]) -> Result<Vec<PosixRlimit>, ApiError> {
    let mut limits: BTreeMap<&str, (u64, u64)> = BTreeMap::from([
        ("nofile", (defaults::MAX_FILES, defaults::MAX_FILES)),
        ("memlock", (defaults::MAX_LOCKED, defaults::MAX_LOCKED)),
    ]);
    for ulimit in ulimits {
        let value = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
        let (soft, hard) = (value(ulimit.soft), value(ulimit.hard));
        if soft > hard {
            let why = format!(
                "{}: soft limit {soft} is above hard limit {hard}",
                ulimit.name
            );
            return Err(invalid("Ulimits", why));
        }
        limits.insert(&ulimit.name, (soft, hard));
    }
    let built = limits.into_iter().map(|(name, (soft, hard))| {
        let kind = rlimit_kind(name)
            .ok_or_else(|| invalid("Ulimits", format!("unknown limit {name:?}")))?;
        let limit = PosixRlimitBuilder::default()
            .typ(kind)
            .soft(soft)
            .hard(hard);
        limit
            .build()
            .map_err(|error| invalid("Ulimits", error.to_string()))
    });
    built.collect()
}

fn rlimit_kind(name: &str) -> Option<PosixRlimitType> {
    let name = format!("RLIMIT_{}", name.to_ascii_uppercase());
    serde_json::from_value(serde_json::Value::String(name)).ok()
}

/// The device allow-list, and processor time, memory and processes as far as they are limited.
pub(super) fn resources(limits: Option<&Resources>) -> Result<LinuxResources, ApiError> {
    let none = Resources::default();
    let limits = limits.unwrap_or(&none);
    let number = |field: &str, value: i64| {
        u64::try_from(value).map_err(|_| ApiError::Invalid {
            field: format!("Resources.Limits.{field}"),
            why: format!("{value} is negative"),
        })
    };
    let nano_cpus = number("NanoCPUs", limits.nano_cpus)?;
    let memory = number("MemoryBytes", limits.memory_bytes)?;
    let pids = number("Pids", limits.pids)?;
    let mut resources = LinuxResourcesBuilder::default()
        .devices(defaults::device_rules())
        .build()
        .unwrap_or_default();
    if nano_cpus > 0 {
        // Below a millisecond per period the kernel refuses.
        let quota = (nano_cpus / (1_000_000_000 / CPU_PERIOD)).max(1000);
        let quota = i64::try_from(quota).unwrap_or(i64::MAX);
        resources.set_cpu(
            LinuxCpuBuilder::default()
                .quota(quota)
                .period(CPU_PERIOD)
                .build()
                .ok(),
        );
    }
    if memory > 0 {
        let limit = LinuxMemoryBuilder::default().limit(limits.memory_bytes);
        resources.set_memory(limit.build().ok());
    }
    if pids > 0 {
        resources.set_pids(LinuxPidsBuilder::default().limit(limits.pids).build().ok());
    }
    Ok(resources)
}
