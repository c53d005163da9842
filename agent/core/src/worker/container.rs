//! From a task and its image to the plan of a container, as Docker would do it. Pure: what is looked up, such as the
//! image's configuration, the node's name or the task's addresses, comes in.

mod defaults;
mod etc;
pub mod exec;
pub mod image;
mod limits;
mod mounts;
pub mod plan;
mod seccomp;
pub mod user;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Capabilities, Linux, LinuxBuilder, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType,
    Process, RootBuilder, Spec,
};

use self::exec::merge_env;
use self::image::ImageConfig;
use self::mounts::Mounts;
use self::plan::{ContainerId, ContainerPlan, EtcFiles, LogLimits, Stdio};
use crate::api::task::LogDriver;
use crate::api::{ApiError, ContainerSpec, Labels, Resources, Task};
use crate::time::Timestamp;

/// The default of `StopGracePeriod`.
const STOP_GRACE_NANOS: u64 = 10_000_000_000;
/// As the runtime specification has them; nothing iterates over it here.
#[expect(clippy::disallowed_types, reason = "the type is oci-spec's")]
type Sysctls = std::collections::HashMap<String, String>;

/// Where containers are on a node, as far as a specification names paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// What is there as long as a container is: `<id>/provided` with its secrets is below it.
    pub run: PathBuf,
    /// `<id>/hosts` and so on are below it.
    pub state: PathBuf,
    /// `<name>/_data` of local volumes.
    pub volumes: PathBuf,
    /// The delegated cgroup, below the cgroup root.
    pub cgroup: PathBuf,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            run: "/run/skep/containers".into(),
            state: "/var/lib/skep/containers".into(),
            volumes: "/var/lib/skep/volumes".into(),
            cgroup: "/skep.slice/skep-containers.service".into(),
        }
    }
}

/// What a container needs to know besides its specification.
#[derive(Clone, Debug)]
pub struct Surroundings<'a> {
    /// The container's id, drawn by the caller.
    pub id: ContainerId,
    /// The moment of the decision.
    pub now: Timestamp,
    /// Where things are.
    pub layout: &'a Layout,
    /// `sha256:…` of the image's configuration.
    pub image_id: &'a str,
    /// The image's configuration.
    pub image: &'a ImageConfig,
    /// The network namespace to enter; `None` for the node's own.
    pub network: Option<&'a Path>,
    /// The container's own addresses, for `/etc/hosts`.
    pub addresses: &'a [IpAddr],
}

/// The plan of a task's container.
///
/// # Errors
/// A field that cannot be honoured, by name.
pub fn from_task(task: &Task, around: &Surroundings<'_>) -> Result<ContainerPlan, ApiError> {
    let none = ContainerSpec::default();
    let spec = task.spec.container_spec.as_ref().unwrap_or(&none);
    let limits = task
        .spec
        .resources
        .as_ref()
        .and_then(|resources| resources.limits.as_ref());
    let mut plan = plan(spec, limits, task.spec.log_driver.as_ref(), around)?;
    plan.name = task.name();
    plan.labels.extend(swarm_labels(task));
    Ok(plan)
}

/// What an operator's throw-away container runs (`skep debug`).
#[derive(Clone, Debug, Default)]
pub struct DebugRequest {
    /// The image as the operator wrote it.
    pub image: String,
    /// The command; the image's own if empty.
    pub command: Vec<String>,
    /// A terminal.
    pub tty: bool,
    /// Standard input is wanted.
    pub stdin: bool,
    /// The node's own `/etc/resolv.conf`, if it has one.
    pub resolv_conf: Option<String>,
}

/// The plan of an operator's container: the image's own root, and otherwise as much of the node as there is. It shares
/// the node's process, network, IPC, UTS and cgroup namespaces, has every capability and every device and no filter.
///
/// # Errors
/// An image without a command when none was given.
pub fn debug(request: &DebugRequest, around: &Surroundings<'_>) -> Result<ContainerPlan, ApiError> {
    let spec = ContainerSpec {
        image: request.image.clone(),
        args: request.command.clone(),
        tty: request.tty,
        open_stdin: request.stdin,
        user: "0:0".to_owned(),
        ..ContainerSpec::default()
    };
    // The command is the operator's, whatever the image would make of it.
    let spec = if request.command.is_empty() {
        spec
    } else {
        ContainerSpec {
            command: request.command.clone(),
            args: Vec::new(),
            ..spec
        }
    };
    let mut plan = plan(&spec, None, None, around)?;
    plan.name = format!("skep-debug-{}", around.id.short());
    plan.labels
        .insert("skep.debug".to_owned(), "true".to_owned());
    plan.files = EtcFiles {
        hosts: None,
        hostname: None,
        resolv_conf: request.resolv_conf.clone(),
    };
    // Its output is streamed; nothing of it stays on the node.
    plan.log.max_files = 0;
    plan.spec.set_hostname(None);
    let mut linux = plan.spec.linux().clone().unwrap_or_default();
    linux.set_namespaces(Some(vec![namespace(LinuxNamespaceType::Mount, None)]));
    linux.set_seccomp(None);
    linux.set_masked_paths(None);
    linux.set_readonly_paths(None);
    linux.set_sysctl(None);
    let mut resources = linux.resources().clone().unwrap_or_default();
    resources.set_devices(Some(defaults::all_devices()));
    linux.set_resources(Some(resources));
    plan.spec.set_linux(Some(linux));
    let mut process = plan.spec.process().clone().unwrap_or_default();
    process.set_capabilities(Some(defaults::all_capabilities()));
    plan.spec.set_process(Some(process));
    plan.spec.set_mounts(Some(mounts::debug(request, around)));
    plan.volumes.clear();
    Ok(plan)
}

/// The plan without what is particular to a task.
fn plan(
    spec: &ContainerSpec,
    limits: Option<&Resources>,
    log: Option<&LogDriver>,
    around: &Surroundings<'_>,
) -> Result<ContainerPlan, ApiError> {
    refuse_unsupported(spec)?;
    let hostname = match spec.hostname.as_str() {
        "" => around.id.short(),
        name => name,
    };
    let mounts = mounts::of(spec, around)?;
    Ok(ContainerPlan {
        id: around.id.clone(),
        name: around.id.short().to_owned(),
        image: spec.image.clone(),
        image_id: around.image_id.to_owned(),
        labels: labels(spec, around.image),
        created_at: u64::try_from(around.now.0).unwrap_or(0),
        spec: runtime_spec(spec, limits, hostname, &mounts, around)?,
        user: or(&spec.user, &around.image.user).to_owned(),
        groups: spec.groups.clone(),
        files: EtcFiles {
            hosts: Some(etc::hosts(hostname, around.addresses, &spec.hosts)?),
            hostname: Some(format!("{hostname}\n")),
            resolv_conf: Some(etc::resolv_conf(spec.dns_config.as_ref())),
        },
        volumes: mounts.volumes,
        provided: mounts.provided,
        stdio: Stdio {
            tty: spec.tty,
            open_stdin: spec.open_stdin,
        },
        log: log_limits(log)?,
        stop_signal: stop_signal(or(&spec.stop_signal, &around.image.stop_signal))?,
        stop_grace: spec.stop_grace_period.map_or(STOP_GRACE_NANOS, |grace| {
            u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX)
        }),
    })
}

/// What Docker knows and this node does not do yet. Validation has refused it before; a task that comes from elsewhere is
/// refused here.
fn refuse_unsupported(spec: &ContainerSpec) -> Result<(), ApiError> {
    let present = |value: &serde_json::Value| match value {
        serde_json::Value::Null => false,
        serde_json::Value::Object(fields) => fields.values().any(|field| !field.is_null()),
        serde_json::Value::Bool(_)
        | serde_json::Value::Number(_)
        | serde_json::Value::String(_)
        | serde_json::Value::Array(_) => true,
    };
    let refused = [
        ("Privileges", spec.privileges.as_ref().is_some_and(present)),
        (
            "Healthcheck",
            spec.healthcheck.as_ref().is_some_and(present),
        ),
        (
            "Configs (Runtime)",
            spec.configs.iter().any(|one| one.runtime.is_some()),
        ),
        ("Init", spec.init == Some(true)),
        ("Hostname (template)", is_template(&spec.hostname)),
        (
            "Env (template)",
            spec.env.iter().any(|entry| is_template(entry)),
        ),
    ];
    match refused.iter().find(|(_, asked)| *asked) {
        Some((field, _)) => Err(ApiError::Unsupported(format!("ContainerSpec.{field}"))),
        None => Ok(()),
    }
}

/// swarmkit expands Go templates here; what is none fails to parse there, so no text with braces is meant literally.
fn is_template(text: &str) -> bool {
    text.contains("{{")
}

fn invalid(field: &str, why: impl Into<String>) -> ApiError {
    ApiError::Invalid {
        field: format!("ContainerSpec.{field}"),
        why: why.into(),
    }
}

fn or<'a>(first: &'a str, second: &'a str) -> &'a str {
    if first.is_empty() { second } else { first }
}

fn labels(spec: &ContainerSpec, image: &ImageConfig) -> Labels {
    let mut labels: BTreeMap<_, _> = image.labels.clone();
    labels.extend(spec.labels.clone());
    labels
}

fn swarm_labels(task: &Task) -> Labels {
    let mut labels = Labels::new();
    let mut add =
        |key: &str, value: String| labels.insert(format!("com.docker.swarm.{key}"), value);
    add("task", String::new());
    add("task.id", task.id.to_string());
    add("task.name", task.name());
    add("service.id", task.service_id.to_string());
    add("service.name", task.service_name.clone());
    if let Some(node) = &task.node_id {
        add("node.id", node.to_string());
    }
    labels
}

fn runtime_spec(
    spec: &ContainerSpec,
    limits: Option<&Resources>,
    hostname: &str,
    mounts: &Mounts,
    around: &Surroundings<'_>,
) -> Result<Spec, ApiError> {
    let capabilities = limits::capabilities(spec)?;
    let root = RootBuilder::default()
        .path("rootfs")
        .readonly(spec.read_only)
        .build();
    let mut runtime = Spec::default();
    runtime.set_root(root.ok());
    runtime.set_hostname(Some(hostname.to_owned()));
    runtime.set_process(Some(process(spec, hostname, &capabilities, around.image)?));
    runtime.set_mounts(Some(mounts.all.clone()));
    runtime.set_linux(Some(linux(spec, limits, &capabilities, around)?));
    Ok(runtime)
}

fn process(
    spec: &ContainerSpec,
    hostname: &str,
    capabilities: &Capabilities,
    image: &ImageConfig,
) -> Result<Process, ApiError> {
    let mut process = Process::default();
    process.set_terminal(Some(spec.tty));
    process.set_args(Some(command_line(spec, image)?));
    process.set_env(Some(environment(spec, hostname, image)));
    let dir = mounts::clean(or(or(&spec.dir, &image.working_dir), "/"));
    process.set_cwd(dir.ok_or_else(|| invalid("Dir", "must be an absolute path"))?);
    // Present and false would install the filter after the capability to do so is gone.
    process.set_no_new_privileges(None);
    process.set_apparmor_profile(None);
    process.set_capabilities(Some(defaults::capabilities(capabilities)));
    process.set_rlimits(Some(limits::rlimits(&spec.ulimits)?));
    let score = i32::try_from(spec.oom_score_adj)
        .ok()
        .filter(|score| (-1000..=1000).contains(score));
    let score = score.ok_or_else(|| invalid("OomScoreAdj", "must be between -1000 and 1000"))?;
    process.set_oom_score_adj(Some(score));
    Ok(process)
}

/// Entrypoint and command as Docker merges them: an entrypoint of the service's own makes the image's command void.
fn command_line(spec: &ContainerSpec, image: &ImageConfig) -> Result<Vec<String>, ApiError> {
    let (entrypoint, arguments) = if spec.command.is_empty() {
        let arguments = if spec.args.is_empty() {
            &image.cmd
        } else {
            &spec.args
        };
        (&image.entrypoint, arguments)
    } else {
        (&spec.command, &spec.args)
    };
    let line: Vec<String> = entrypoint.iter().chain(arguments).cloned().collect();
    match line.first() {
        Some(program) if !program.is_empty() => Ok(line),
        Some(_) | None => Err(invalid(
            "Command",
            format!("no command specified, and image {} has none", spec.image),
        )),
    }
}

fn environment(spec: &ContainerSpec, hostname: &str, image: &ImageConfig) -> Vec<String> {
    let mut base = vec![defaults::PATH.to_owned(), format!("HOSTNAME={hostname}")];
    if spec.tty {
        base.push("TERM=xterm".to_owned());
    }
    let with_image = merge_env(base, image.env.iter().cloned());
    // `NAME` without `=` takes a variable away.
    let (set, unset): (Vec<_>, Vec<_>) = spec
        .env
        .iter()
        .cloned()
        .partition(|entry| entry.contains('='));
    let mut env = merge_env(with_image, set);
    env.retain(|entry| {
        let name = entry.split('=').next().unwrap_or_default();
        !unset.iter().any(|gone| gone == name)
    });
    env
}

fn linux(
    spec: &ContainerSpec,
    limits: Option<&Resources>,
    capabilities: &Capabilities,
    around: &Surroundings<'_>,
) -> Result<Linux, ApiError> {
    let owned =
        |paths: &[&str]| -> Vec<String> { paths.iter().map(|path| (*path).to_owned()).collect() };
    let mut namespaces = vec![
        namespace(LinuxNamespaceType::Mount, None),
        namespace(LinuxNamespaceType::Uts, None),
        namespace(LinuxNamespaceType::Ipc, None),
        namespace(LinuxNamespaceType::Pid, None),
        namespace(LinuxNamespaceType::Cgroup, None),
    ];
    if let Some(path) = around.network {
        namespaces.push(namespace(LinuxNamespaceType::Network, Some(path)));
    }
    LinuxBuilder::default()
        .cgroups_path(around.layout.cgroup.join(format!("ctr-{}", around.id)))
        .namespaces(namespaces)
        .resources(limits::resources(limits)?)
        .masked_paths(owned(&defaults::MASKED_PATHS))
        .readonly_paths(owned(&defaults::READONLY_PATHS))
        .seccomp(seccomp::profile(capabilities))
        .sysctl(
            sysctls(spec, around.network.is_some())?
                .into_iter()
                .collect::<Sysctls>(),
        )
        .build()
        .map_err(|error| invalid("Linux", error.to_string()))
}

fn namespace(kind: LinuxNamespaceType, path: Option<&Path>) -> LinuxNamespace {
    let mut namespace = LinuxNamespaceBuilder::default()
        .typ(kind)
        .build()
        .unwrap_or_default();
    namespace.set_path(path.map(Path::to_owned));
    namespace
}

/// Docker's two for a network namespace of one's own, and the user's, if they are of a namespace of the container.
fn sysctls(spec: &ContainerSpec, own_network: bool) -> Result<BTreeMap<String, String>, ApiError> {
    let mut sysctls = BTreeMap::new();
    if own_network {
        sysctls.insert(
            "net.ipv4.ip_unprivileged_port_start".to_owned(),
            "0".to_owned(),
        );
        sysctls.insert(
            "net.ipv4.ping_group_range".to_owned(),
            "0 2147483647".to_owned(),
        );
    }
    let ipc: BTreeSet<&str> = BTreeSet::from([
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ]);
    for (name, value) in &spec.sysctls {
        let of_network = own_network && name.starts_with("net.");
        let plain = name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if !plain || !(of_network || name.starts_with("fs.mqueue.") || ipc.contains(name.as_str()))
        {
            let why = format!("{name:?} is not of the container's own namespaces");
            return Err(invalid("Sysctls", why));
        }
        sysctls.insert(name.clone(), value.clone());
    }
    Ok(sysctls)
}

/// Name (with or without `SIG`) or number; SIGTERM when empty.
///
/// # Errors
/// A signal that Linux does not have.
pub fn stop_signal(text: &str) -> Result<i32, ApiError> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    let unknown = || invalid("StopSignal", format!("{text:?} is not a signal"));
    if text.is_empty() {
        return Ok(15);
    }
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64)
            .contains(&number)
            .then_some(number)
            .ok_or_else(unknown);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    // glibc's real-time signals: the first two belong to it.
    let offset = |base: i32, text: &str| -> Option<i32> {
        let offset = if text.is_empty() {
            0
        } else {
            text.parse().ok()?
        };
        Some(base + offset).filter(|number| (34..=64).contains(number))
    };
    let position = NAMES.iter().position(|known| *known == name);
    let plain = position.and_then(|at| i32::try_from(at + 1).ok());
    plain
        .or_else(|| {
            name.strip_prefix("RTMIN")
                .and_then(|rest| offset(34, rest.trim_start_matches('+')))
        })
        .or_else(|| name.strip_prefix("RTMAX").and_then(|rest| offset(64, rest)))
        .ok_or_else(unknown)
}

/// Drivers `json-file` (with `max-size` and `max-file`) and `none`.
fn log_limits(driver: Option<&LogDriver>) -> Result<LogLimits, ApiError> {
    let mut limits = LogLimits::default();
    let Some(driver) = driver else {
        return Ok(limits);
    };
    let refuse = |field: String, why: String| ApiError::Invalid { field, why };
    match driver.name.as_str() {
        "" | "json-file" => {}
        "none" => {
            limits.max_files = 0;
            return Ok(limits);
        }
        other => return Err(ApiError::Unsupported(format!("log driver {other:?}"))),
    }
    for (option, value) in &driver.options {
        let field = format!("LogDriver.Options[{option}]");
        match option.as_str() {
            "max-size" => {
                let why = || refuse(field.clone(), format!("{value:?}: want a size such as 10m"));
                limits.max_size = size(value).filter(|size| *size >= 4096).ok_or_else(why)?;
            }
            "max-file" => {
                let why = || refuse(field.clone(), format!("{value:?}: want 1 to 1000"));
                let files = value
                    .parse()
                    .ok()
                    .filter(|files| (1..=1000).contains(files));
                limits.max_files = files.ok_or_else(why)?;
            }
            _ => return Err(ApiError::Unsupported(field)),
        }
    }
    Ok(limits)
}

/// `10m`, `1g`, `500k`, `4096`, with or without a final `b`.
fn size(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let text = lower.strip_suffix('b').unwrap_or(&lower);
    let (digits, factor) = match text.as_bytes().last()? {
        b'k' => (&text[..text.len() - 1], 1 << 10),
        b'm' => (&text[..text.len() - 1], 1 << 20),
        b'g' => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

/// The mounts of the runtime specification, for other modules' tests.
#[cfg(test)]
fn destinations(mounts: &[oci_spec::runtime::Mount]) -> Vec<String> {
    mounts
        .iter()
        .map(|mount| mount.destination().display().to_string())
        .collect()
}

#[cfg(test)]
mod tests;
