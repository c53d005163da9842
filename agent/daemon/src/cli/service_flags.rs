//! The flags of `service create` and `service update`, and how they change a spec.

use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use clap::{Args, ValueEnum};
use skep_core::api::{
    ContainerSpec, EndpointMode, EndpointSpec, Labels, Mount, MountType, Placement, PortConfig,
    ResourceRequirements, Resources, RestartPolicy, ServiceSpec, UpdateConfig,
    container::{DnsConfig, TmpfsOptions, Ulimit},
    task::{LogDriver, RestartCondition},
};

use super::{network::key_values, service_mode::Numbers, units};

/// Flags that mean the same for `create` and `update`: a value, or nothing.
#[derive(Debug, Default, Args)]
pub(super) struct Settings {
    #[command(flatten)]
    numbers: Numbers,
    /// Limit of CPUs, such as 0.5
    #[arg(long, value_parser = units::nano_cpus)]
    limit_cpu: Option<i64>,
    /// Limit of memory, such as 64M
    #[arg(long, value_parser = units::bytes)]
    limit_memory: Option<i64>,
    /// Limit of processes
    #[arg(long)]
    limit_pids: Option<i64>,
    /// CPUs that a node must have free
    #[arg(long, value_parser = units::nano_cpus)]
    reserve_cpu: Option<i64>,
    /// Memory that a node must have free
    #[arg(long, value_parser = units::bytes)]
    reserve_memory: Option<i64>,
    /// Replaces the image's entrypoint
    #[arg(long)]
    entrypoint: Option<String>,
    /// Working directory
    #[arg(short = 'w', long)]
    workdir: Option<String>,
    /// User: NAME|UID[:GROUP]
    #[arg(short, long)]
    user: Option<String>,
    /// Host name inside
    #[arg(long)]
    hostname: Option<String>,
    /// Run an init as PID 1
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    init: Option<bool>,
    /// Allocate a terminal
    #[arg(short, long, num_args = 0..=1, default_missing_value = "true")]
    tty: Option<bool>,
    /// Mount the root read-only
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    read_only: Option<bool>,
    /// Signal that asks to stop
    #[arg(long)]
    stop_signal: Option<String>,
    /// Time until SIGKILL follows
    #[arg(long, value_parser = units::duration)]
    stop_grace_period: Option<Duration>,
    /// How its name resolves
    #[arg(long)]
    endpoint_mode: Option<Endpoint>,
    /// After which ends a task is replaced
    #[arg(long)]
    restart_condition: Option<Restart>,
    /// Pause before that
    #[arg(long, value_parser = units::duration)]
    restart_delay: Option<Duration>,
    /// How often at most
    #[arg(long)]
    restart_max_attempts: Option<u64>,
    /// Time over which attempts are counted
    #[arg(long, value_parser = units::duration)]
    restart_window: Option<Duration>,
    /// Tasks updated at a time; 0 is all
    #[arg(long)]
    update_parallelism: Option<u64>,
    /// Pause between them
    #[arg(long, value_parser = units::duration)]
    update_delay: Option<Duration>,
    /// Time for which a new task is watched
    #[arg(long, value_parser = units::duration)]
    update_monitor: Option<Duration>,
    /// On failure: pause, continue or rollback
    #[arg(long)]
    update_failure_action: Option<String>,
    /// stop-first or start-first
    #[arg(long)]
    update_order: Option<String>,
    /// Share of failures that is tolerated
    #[arg(long)]
    update_max_failure_ratio: Option<f32>,
    /// Driver of the log
    #[arg(long)]
    log_driver: Option<String>,
    /// Option of the log driver, KEY=VALUE
    #[arg(long)]
    log_opt: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Endpoint {
    Vip,
    Dnsrr,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Restart {
    None,
    OnFailure,
    Any,
}

impl Settings {
    /// Puts what was given into a spec.
    pub(super) fn apply(self, spec: &mut ServiceSpec) -> Result<()> {
        self.apply_process(container(spec))?;
        self.apply_resources(spec);
        self.apply_restart(spec);
        self.apply_update(spec);
        self.numbers.apply(spec)?;
        if let Some(mode) = self.endpoint_mode {
            endpoint(spec).mode = match mode {
                Endpoint::Vip => EndpointMode::Vip,
                Endpoint::Dnsrr => EndpointMode::DnsRr,
            };
        }
        if let Some(name) = self.log_driver {
            let options = key_values(&self.log_opt);
            spec.task_template.log_driver = Some(LogDriver { name, options });
        } else if !self.log_opt.is_empty() {
            bail!("--log-opt needs --log-driver");
        }
        Ok(())
    }

    fn apply_process(&self, container: &mut ContainerSpec) -> Result<()> {
        if let Some(entrypoint) = &self.entrypoint {
            container.command = words(entrypoint)?;
        }
        let texts = [
            (&self.workdir, &mut container.dir),
            (&self.user, &mut container.user),
            (&self.hostname, &mut container.hostname),
            (&self.stop_signal, &mut container.stop_signal),
        ];
        for (given, field) in texts {
            if let Some(given) = given {
                given.clone_into(field);
            }
        }
        container.init = self.init.or(container.init);
        container.tty = self.tty.unwrap_or(container.tty);
        container.read_only = self.read_only.unwrap_or(container.read_only);
        container.stop_grace_period = self.stop_grace_period.or(container.stop_grace_period);
        Ok(())
    }

    fn apply_resources(&self, spec: &mut ServiceSpec) {
        let template = &mut spec.task_template;
        let limited = self.limit_cpu.is_some() || self.limit_memory.is_some();
        if limited || self.limit_pids.is_some() {
            let requirements = template
                .resources
                .get_or_insert_with(ResourceRequirements::default);
            let limits = requirements.limits.get_or_insert_with(Resources::default);
            limits.nano_cpus = self.limit_cpu.unwrap_or(limits.nano_cpus);
            limits.memory_bytes = self.limit_memory.unwrap_or(limits.memory_bytes);
            limits.pids = self.limit_pids.unwrap_or(limits.pids);
        }
        if self.reserve_cpu.is_some() || self.reserve_memory.is_some() {
            let requirements = template
                .resources
                .get_or_insert_with(ResourceRequirements::default);
            let reserved = requirements
                .reservations
                .get_or_insert_with(Resources::default);
            reserved.nano_cpus = self.reserve_cpu.unwrap_or(reserved.nano_cpus);
            reserved.memory_bytes = self.reserve_memory.unwrap_or(reserved.memory_bytes);
        }
    }

    fn apply_restart(&self, spec: &mut ServiceSpec) {
        let timed = self.restart_delay.is_some() || self.restart_window.is_some();
        if !timed && self.restart_condition.is_none() && self.restart_max_attempts.is_none() {
            return;
        }
        let policy = spec
            .task_template
            .restart_policy
            .get_or_insert_with(RestartPolicy::default);
        let condition = self.restart_condition.map(|given| match given {
            Restart::None => RestartCondition::None,
            Restart::OnFailure => RestartCondition::OnFailure,
            Restart::Any => RestartCondition::Any,
        });
        policy.condition = condition.or(policy.condition);
        policy.delay = self.restart_delay.or(policy.delay);
        policy.max_attempts = self.restart_max_attempts.or(policy.max_attempts);
        policy.window = self.restart_window.or(policy.window);
    }

    fn apply_update(&self, spec: &mut ServiceSpec) {
        let timed = self.update_delay.is_some() || self.update_monitor.is_some();
        let worded = self.update_failure_action.is_some() || self.update_order.is_some();
        let counted = self.update_parallelism.is_some() || self.update_max_failure_ratio.is_some();
        if !timed && !worded && !counted {
            return;
        }
        let config = spec.update_config.get_or_insert_with(|| UpdateConfig {
            parallelism: 1,
            ..UpdateConfig::default()
        });
        config.parallelism = self.update_parallelism.unwrap_or(config.parallelism);
        config.delay = self.update_delay.unwrap_or(config.delay);
        config.monitor = self.update_monitor.unwrap_or(config.monitor);
        config.max_failure_ratio = self
            .update_max_failure_ratio
            .unwrap_or(config.max_failure_ratio);
        if let Some(action) = &self.update_failure_action {
            action.clone_into(&mut config.failure_action);
        }
        if let Some(order) = &self.update_order {
            order.clone_into(&mut config.order);
        }
    }
}

/// Lists that `create` fills and `update` replaces as a whole.
#[derive(Debug, Default, Args)]
pub(super) struct Lists {
    /// Additional group of the user
    #[arg(long)]
    group: Vec<String>,
    /// Give a capability
    #[arg(long)]
    cap_add: Vec<String>,
    /// Take a capability away
    #[arg(long)]
    cap_drop: Vec<String>,
    /// Kernel parameter of the container, KEY=VALUE
    #[arg(long)]
    sysctl: Vec<String>,
    /// Limit of the process, NAME=SOFT[:HARD]
    #[arg(long)]
    ulimit: Vec<String>,
    /// Name server
    #[arg(long)]
    dns: Vec<String>,
    /// Resolver option
    #[arg(long)]
    dns_option: Vec<String>,
    /// Search domain
    #[arg(long)]
    dns_search: Vec<String>,
    /// Line of /etc/hosts, NAME:ADDRESS
    #[arg(long, value_name = "NAME:ADDRESS")]
    add_host: Vec<String>,
    /// Mount, type=bind|volume|tmpfs,source=…,target=…[,readonly]
    #[arg(long)]
    mount: Vec<String>,
}

impl Lists {
    /// Puts what was given into a spec.
    pub(super) fn apply(self, spec: &mut ServiceSpec) -> Result<()> {
        let container = container(spec);
        container.groups.extend(self.group);
        container.capability_add.extend(self.cap_add);
        container.capability_drop.extend(self.cap_drop);
        container.sysctls.extend(key_values(&self.sysctl));
        for text in &self.ulimit {
            container.ulimits.push(ulimit(text)?);
        }
        for text in &self.mount {
            container.mounts.push(mount(text)?);
        }
        for text in &self.add_host {
            let (name, address) = text
                .split_once(':')
                .ok_or_else(|| anyhow!("--add-host {text:?}: use NAME:ADDRESS"))?;
            container.hosts.push(format!("{address} {name}"));
        }
        let resolver = [&self.dns, &self.dns_option, &self.dns_search];
        if resolver.into_iter().any(|list| !list.is_empty()) {
            let config = container.dns_config.get_or_insert_with(DnsConfig::default);
            config.nameservers.extend(self.dns);
            config.options.extend(self.dns_option);
            config.search.extend(self.dns_search);
        }
        Ok(())
    }
}

/// The container part of a spec.
pub(super) fn container(spec: &mut ServiceSpec) -> &mut ContainerSpec {
    let template = &mut spec.task_template;
    template
        .container_spec
        .get_or_insert_with(ContainerSpec::default)
}

/// The placement part of a spec.
pub(super) fn placement(spec: &mut ServiceSpec) -> &mut Placement {
    let template = &mut spec.task_template;
    template.placement.get_or_insert_with(Placement::default)
}

fn endpoint(spec: &mut ServiceSpec) -> &mut EndpointSpec {
    spec.endpoint_spec.get_or_insert_with(EndpointSpec::default)
}

/// Publishes further ports; one that has the same target, protocol and mode is replaced if it was
/// published by number or by chance.
pub(super) fn publish(spec: &mut ServiceSpec, ports: &[String]) -> Result<()> {
    for text in ports {
        let port = units::port(text)?;
        let list = &mut endpoint(spec).ports;
        if !list.contains(&port) {
            list.push(port);
        }
    }
    Ok(())
}

/// Takes published ports away, by target port: `80` or `80/udp`.
pub(super) fn unpublish(spec: &mut ServiceSpec, targets: &[String]) -> Result<()> {
    for text in targets {
        let wanted = units::port(text)?;
        let gone = |port: &PortConfig| {
            port.target_port == wanted.target_port && port.protocol == wanted.protocol
        };
        endpoint(spec).ports.retain(|port| !gone(port));
    }
    Ok(())
}

/// Puts `KEY[=VALUE]` texts into an environment; a key alone takes the value of this process.
pub(super) fn set_env(env: &mut Vec<String>, given: Vec<String>) {
    for text in given {
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key.to_owned(), value.to_owned()),
            None => (text.clone(), std::env::var(&text).unwrap_or_default()),
        };
        remove_env(env, std::slice::from_ref(&key));
        env.push(format!("{key}={value}"));
    }
}

/// Takes keys out of an environment.
pub(super) fn remove_env(env: &mut Vec<String>, keys: &[String]) {
    env.retain(|entry| {
        let key = entry.split('=').next().unwrap_or_default();
        keys.iter().all(|gone| gone != key)
    });
}

/// Sets and takes away labels.
pub(super) fn edit_labels(labels: &mut Labels, add: &[String], remove: &[String]) {
    labels.retain(|key, _| !remove.contains(key));
    labels.extend(key_values(add));
}

/// Splits a command line at blanks, with '…' and "…" around words that have some.
pub(super) fn words(text: &str) -> Result<Vec<String>> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for letter in text.chars() {
        match (quote, letter) {
            (Some(open), letter) if letter == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None, ' ' | '\t') => words.extend(word.take()),
            (_, letter) => word.get_or_insert_default().push(letter),
        }
    }
    if quote.is_some() {
        bail!("{text:?} has a quote that does not end");
    }
    words.extend(word);
    Ok(words)
}

fn ulimit(text: &str) -> Result<Ulimit> {
    let wrong = || anyhow!("--ulimit {text:?}: use NAME=SOFT[:HARD]");
    let (name, limits) = text.split_once('=').ok_or_else(wrong)?;
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    Ok(Ulimit {
        name: name.to_owned(),
        hard: hard.parse().map_err(|_| wrong())?,
        soft: soft.parse().map_err(|_| wrong())?,
    })
}

fn mount(text: &str) -> Result<Mount> {
    let wrong = |part: &str| anyhow!("--mount {text:?}: {part:?} is not known to skep");
    let mut mount = Mount {
        kind: MountType::Volume,
        ..Mount::default()
    };
    let mut tmpfs = TmpfsOptions::default();
    for part in text.split(',') {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        match (key, value) {
            ("type", "bind") => mount.kind = MountType::Bind,
            ("type", "volume") => mount.kind = MountType::Volume,
            ("type", "tmpfs") => mount.kind = MountType::Tmpfs,
            ("source" | "src", value) => value.clone_into(&mut mount.source),
            ("target" | "dst" | "destination", value) => value.clone_into(&mut mount.target),
            ("readonly" | "ro", "" | "true" | "1") => mount.read_only = true,
            ("readonly" | "ro", "false" | "0") => mount.read_only = false,
            ("tmpfs-size", size) => tmpfs.size_bytes = units::bytes(size)?,
            ("tmpfs-mode", mode) => {
                tmpfs.mode = u32::from_str_radix(mode, 8).map_err(|_| wrong(part))?;
            }
            _ => return Err(wrong(part)),
        }
    }
    if mount.target.is_empty() {
        bail!("--mount {text:?} names no target=");
    }
    mount.tmpfs_options = (tmpfs != TmpfsOptions::default()).then_some(tmpfs);
    Ok(mount)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_a_shell_does() {
        assert_eq!(words("sh -c 'a b'").unwrap(), ["sh", "-c", "a b"]);
        assert_eq!(words(r#"x"y z"  """#).unwrap(), ["xy z", ""]);
        assert!(words("'open").is_err());
    }

    #[test]
    fn environments_keep_one_value_per_key() {
        let mut env = vec!["A=1".to_owned(), "B=2".to_owned()];
        set_env(&mut env, vec!["A=3".to_owned(), "C=".to_owned()]);
        assert_eq!(env, ["B=2", "A=3", "C="]);
        remove_env(&mut env, &["B".to_owned(), "X".to_owned()]);
        assert_eq!(env, ["A=3", "C="]);
    }

    #[test]
    fn mounts_and_ulimits_are_read() {
        let bind = mount("type=bind,src=/a,dst=/b,ro").unwrap();
        assert_eq!((bind.kind, bind.read_only), (MountType::Bind, true));
        let tmpfs = mount("type=tmpfs,target=/t,tmpfs-size=1M,tmpfs-mode=1777").unwrap();
        assert_eq!(tmpfs.tmpfs_options.unwrap().mode, 0o1777);
        assert_eq!(ulimit("nofile=10:20").unwrap().hard, 20);
        for wrong in [
            "type=nfs,target=/x",
            "type=bind,src=/a",
            "target=/x,colour=red",
        ] {
            assert!(mount(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ports_are_added_and_taken_by_target() {
        let mut spec = ServiceSpec::default();
        let ports = [
            "8000:80".to_owned(),
            "8000:80".to_owned(),
            "53:53/udp".to_owned(),
        ];
        publish(&mut spec, &ports).unwrap();
        assert_eq!(endpoint(&mut spec).ports.len(), 2);
        unpublish(&mut spec, &["53".to_owned()]).unwrap();
        assert_eq!(endpoint(&mut spec).ports.len(), 2);
        unpublish(&mut spec, &["53/udp".to_owned(), "80".to_owned()]).unwrap();
        assert_eq!(endpoint(&mut spec).ports.len(), 0);
    }
}
