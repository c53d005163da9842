//! What every container gets and may do unless it is told otherwise: Docker's defaults, as data.

use oci_spec::runtime::{
    Capabilities, Capability, LinuxCapabilities, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder,
    LinuxDeviceType, Mount, MountBuilder,
};

/// The search path of an image that sets none.
pub(super) const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Open files, soft and hard: what Docker's packages gave containers for years and images have come to expect.
pub(super) const MAX_FILES: u64 = 1_048_576;
/// Locked memory in bytes, systemd's default. Without it the limit would be the one that libcgroups raises for itself.
pub(super) const MAX_LOCKED: u64 = 8 * 1024 * 1024;

/// Capabilities of a container's root.
const CAPABILITIES: [Capability; 14] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fsetid,
    Capability::Fowner,
    Capability::Mknod,
    Capability::NetRaw,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setfcap,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::SysChroot,
    Capability::Kill,
    Capability::AuditWrite,
];

/// Every capability there is, each at its number (`linux/capability.h` of Linux 6.12).
const ALL_CAPABILITIES: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// The default set.
pub(super) fn default_capabilities() -> Capabilities {
    CAPABILITIES.into_iter().collect()
}

/// All, for a privileged process.
pub(super) fn all_capabilities() -> LinuxCapabilities {
    capabilities(&ALL_CAPABILITIES.into_iter().collect())
}

/// `set` as a container gets it: nothing is inheritable or ambient, so a program that is not root has none of them.
pub(super) fn capabilities(set: &Capabilities) -> LinuxCapabilities {
    let mut capabilities = LinuxCapabilities::default();
    capabilities.set_bounding(Some(set.clone()));
    capabilities.set_effective(Some(set.clone()));
    capabilities.set_permitted(Some(set.clone()));
    capabilities.set_inheritable(None);
    capabilities.set_ambient(None);
    capabilities
}

/// Reads a capability's name, with or without `CAP_`, in any case.
pub(super) fn capability(name: &str) -> Option<Capability> {
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("CAP_") {
        upper
    } else {
        format!("CAP_{upper}")
    };
    serde_json::from_value(serde_json::Value::String(full)).ok()
}

/// `capabilities` without those that the node itself does not have (`bounding`, a bit for each number): asking for more
/// would be an error, and `all` means all that there are.
pub(super) fn within(capabilities: &LinuxCapabilities, bounding: u64) -> LinuxCapabilities {
    let numbered = ALL_CAPABILITIES.iter().enumerate();
    let there: Capabilities = numbered
        .filter(|(number, _)| bounding >> number & 1 == 1)
        .map(|(_, capability)| *capability)
        .collect();
    let keep = |set: &Option<Capabilities>| set.as_ref().map(|set| &there & set);
    let mut kept = capabilities.clone();
    kept.set_bounding(keep(capabilities.bounding()));
    kept.set_effective(keep(capabilities.effective()));
    kept.set_permitted(keep(capabilities.permitted()));
    kept
}

/// All of them, for `ALL` in a list of capabilities.
pub(super) fn every_capability() -> Capabilities {
    ALL_CAPABILITIES.into_iter().collect()
}

/// Paths that a container sees empty. Docker's, and the kernel command line, which may hold a join token here.
pub(super) const MASKED_PATHS: [&str; 13] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/cmdline",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Paths that a container can only read.
pub(super) const READONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Device rules: nothing may be opened but the harmless ones, though any node may be made.
pub(super) fn device_rules() -> Vec<LinuxDeviceCgroup> {
    let character = [
        (1, 3),
        (1, 5),
        (1, 7),
        (1, 8),
        (1, 9),
        (5, 0),
        (5, 1),
        (5, 2),
    ];
    let mut rules = vec![
        rule(None, (None, None), "rwm", false),
        rule(Some(LinuxDeviceType::C), (None, None), "m", true),
        rule(Some(LinuxDeviceType::B), (None, None), "m", true),
        // Terminals of the container's own devpts.
        rule(Some(LinuxDeviceType::C), (Some(136), None), "rwm", true),
    ];
    rules.extend(character.map(|(major, minor)| {
        let numbers = (Some(major), Some(minor));
        rule(Some(LinuxDeviceType::C), numbers, "rwm", true)
    }));
    rules
}

/// The device rules of a privileged container: everything.
pub(super) fn all_devices() -> Vec<LinuxDeviceCgroup> {
    vec![rule(None, (None, None), "rwm", true)]
}

fn rule(
    kind: Option<LinuxDeviceType>,
    (major, minor): (Option<i64>, Option<i64>),
    access: &str,
    allow: bool,
) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroupBuilder::default()
        .allow(allow)
        .typ(kind.unwrap_or(LinuxDeviceType::A))
        .access(access)
        .build()
        .unwrap_or_default();
    rule.set_major(major);
    rule.set_minor(minor);
    rule
}

/// The file systems of every container.
pub(super) fn mounts() -> Vec<Mount> {
    let quiet = ["nosuid", "noexec", "nodev"];
    vec![
        mount("/proc", "proc", "proc", &quiet),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &quiet),
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", "ro"],
        ),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", "ro"],
        ),
    ]
}

/// One mount.
pub(super) fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
    MountBuilder::default()
        .destination(destination)
        .typ(kind)
        .source(source)
        .options(options)
        .build()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_named_as_docker_names_them() {
        assert_eq!(capability("NET_ADMIN"), Some(Capability::NetAdmin));
        assert_eq!(capability("cap_sys_time"), Some(Capability::SysTime));
        assert_eq!(capability("NET_ADMIN "), None);
        assert_eq!(capability("ROOT"), None);
        assert_eq!(every_capability().len(), 41);
        // NET_RAW is number 13, SYS_RESOURCE 24.
        let kept = within(&all_capabilities(), (1 << 13) | (1 << 24));
        let expected = [Capability::NetRaw, Capability::SysResource].into();
        assert_eq!(kept.effective(), &Some(expected));
        assert_eq!(kept.inheritable(), &None);
    }

    #[test]
    fn no_disk_is_among_the_devices() {
        for rule in device_rules() {
            let opens = rule
                .access()
                .as_deref()
                .is_some_and(|access| access.contains(['r', 'w']));
            assert!(
                !rule.allow() || !opens || rule.typ() == Some(LinuxDeviceType::C),
                "{rule:?}"
            );
        }
    }
}
