//! What users do and what breaks, drawn from the seed.

use skep_core::{
    api::{
        Availability, ClusterRequest, EndpointSpec, FileTarget, Ipam, IpamConfig, NetworkSpec,
        PortConfig, SecretReference, ServiceSpec, UpdateConfig,
    },
    testing::{bench, log::LogFaults},
};

use crate::world::World;

/// The log while things break.
const FAULTS: LogFaults = LogFaults {
    lost: 60,
    untold: 60,
    repeated: 60,
    delay_ms: 900,
};
const NETWORKS: [&str; 3] = ["red", "green", "blue"];
const SERVICES: [&str; 5] = ["a", "b", "c", "d", "e"];
/// The label that constraints are about.
const LABEL: &str = "off";

/// Maybe does something.
pub(crate) fn act(world: &mut World) {
    world.log.faults = FAULTS;
    for node in &mut world.nodes {
        node.machine.failing = 15;
    }
    match world.rng.below(40) {
        0..=5 => user(world),
        6 => power(world),
        7 => link(world),
        8 => agent(world),
        9 => leadership(world),
        _ => {}
    }
}

/// Everything works from now on.
pub(crate) fn heal(world: &mut World) {
    world.say(|| "heal".to_owned());
    world.log.faults = LogFaults::default();
    for node in &mut world.nodes {
        node.machine.failing = 0;
        node.connected = true;
        if !node.is_powered() {
            node.switch(&mut world.watchers, world.now);
        }
    }
    if world.leader.is_none() {
        world.elect();
    }
    let view = world.log.view();
    for node in view.nodes() {
        if node.spec.availability != Availability::Active {
            let mut spec = node.spec.clone();
            spec.availability = Availability::Active;
            world.ask(&ClusterRequest::NodeUpdate {
                node: node.id.to_string(),
                version: node.meta.version,
                spec,
            });
        }
    }
}

fn pick<'a, T>(world: &mut World, from: &'a [T]) -> &'a T {
    let at = world.rng.below(from.len() as u64);
    &from[usize::try_from(at).expect("a small number")]
}

fn user(world: &mut World) {
    let request = match world.rng.below(11) {
        0 | 1 => {
            let name = *pick(world, &NETWORKS);
            Some(ClusterRequest::NetworkCreate(Box::new(network(name))))
        }
        2..=4 => Some(ClusterRequest::ServiceCreate(Box::new(spec(world)))),
        5 | 6 => update(world),
        7 if world.rng.below(4) == 0 => Some(ClusterRequest::SecretRemove("db".to_owned())),
        7 => remove(world),
        8 => availability(world),
        9 => label(world),
        _ => {
            let name = *pick(world, &NETWORKS);
            Some(ClusterRequest::NetworkRemove(name.to_owned()))
        }
    };
    if let Some(request) = request {
        world.say(|| format!("ask {request:?}").chars().take(160).collect());
        world.ask(&request);
    }
}

/// Two of the networks are so small that addresses come round again.
fn network(name: &str) -> NetworkSpec {
    let subnet = match name {
        "red" => "192.168.50.0/27",
        "green" => "192.168.51.0/27",
        _ => return bench::network(name),
    };
    let config = IpamConfig {
        subnet: subnet.to_owned(),
        ..IpamConfig::default()
    };
    NetworkSpec {
        ipam: Some(Ipam {
            config: vec![config],
            ..Ipam::default()
        }),
        ..bench::network(name)
    }
}

fn spec(world: &mut World) -> ServiceSpec {
    let name = *pick(world, &SERVICES);
    let mut spec = match world.rng.below(6) {
        0 | 1 => bench::global(name),
        2 => bench::job(name, 1 + world.rng.below(3), world.rng.below(6)),
        3 => bench::global_job(name),
        _ => bench::service(name, world.rng.below(5)),
    };
    if world.rng.below(2) == 0 {
        let placement = spec.task_template.placement.get_or_insert_default();
        placement.constraints = vec![format!("node.labels.{LABEL}!=yes")];
    }
    for network in NETWORKS {
        if world.rng.below(2) == 0 && world.log.view().network_named(network).is_some() {
            spec.task_template.networks.push(bench::joins(network));
        }
    }
    if world.rng.below(2) == 0 {
        let port = PortConfig {
            target_port: 80,
            published_port: u16::try_from(world.rng.below(3) * 8000).unwrap_or(0),
            ..PortConfig::default()
        };
        spec.endpoint_spec = Some(EndpointSpec {
            ports: vec![port],
            ..EndpointSpec::default()
        });
    }
    if world.rng.below(3) == 0 {
        use_secret(world, &mut spec);
    }
    if spec.mode.kind().is_job() {
        return spec;
    }
    let order = *pick(world, &["", "start-first"]);
    spec.update_config = Some(UpdateConfig {
        parallelism: world.rng.below(3),
        failure_action: (*pick(world, &["pause", "continue", "rollback"])).to_owned(),
        order: order.to_owned(),
        ..UpdateConfig::default()
    });
    spec
}

fn use_secret(world: &World, spec: &mut ServiceSpec) {
    let view = world.log.view();
    let container = spec.task_template.container_spec.as_mut();
    if let (Some(secret), Some(container)) = (view.secret_named("db"), container) {
        container.secrets.push(SecretReference {
            file: Some(FileTarget {
                name: "db".to_owned(),
                ..FileTarget::default()
            }),
            secret_id: secret.id.to_string(),
            secret_name: "db".to_owned(),
        });
    }
}

fn update(world: &mut World) -> Option<ClusterRequest> {
    let view = world.log.view();
    let name = *pick(world, &SERVICES);
    let service = view.service_named(name)?;
    let mut spec = service.spec.clone();
    let number = world.rng.below(5);
    match (&mut spec.mode.replicated, &mut spec.mode.replicated_job) {
        (Some(mode), _) if world.rng.below(2) == 0 => mode.replicas = Some(number),
        (_, Some(mode)) if world.rng.below(2) == 0 => mode.total_completions = Some(number),
        (_, _) => spec.task_template.force_update += 1,
    }
    Some(ClusterRequest::ServiceUpdate {
        service: service.id.to_string(),
        version: service.meta.version,
        spec: Box::new(spec),
        rollback: world.rng.below(8) == 0,
    })
}

fn remove(world: &mut World) -> Option<ClusterRequest> {
    let view = world.log.view();
    let name = *pick(world, &SERVICES);
    let service = view.service_named(name)?;
    Some(ClusterRequest::ServiceRemove(service.id.to_string()))
}

fn availability(world: &mut World) -> Option<ClusterRequest> {
    let view = world.log.view();
    let at = usize::try_from(world.rng.below(5)).ok()?;
    let node = view.node(&world.nodes[at].id)?;
    let mut spec = node.spec.clone();
    let all = [
        Availability::Active,
        Availability::Pause,
        Availability::Drain,
    ];
    spec.availability = *pick(world, &all);
    Some(ClusterRequest::NodeUpdate {
        node: node.id.to_string(),
        version: node.meta.version,
        spec,
    })
}

/// Nodes that have the label are not for services with the constraint; the first never has it, so that there is
/// always one that is.
fn label(world: &mut World) -> Option<ClusterRequest> {
    let view = world.log.view();
    let at = any_node(world).max(1);
    let node = view.node(&world.nodes[at].id)?;
    let mut spec = node.spec.clone();
    if spec.labels.remove(LABEL).is_none() {
        spec.labels.insert(LABEL.to_owned(), "yes".to_owned());
    }
    Some(ClusterRequest::NodeUpdate {
        node: node.id.to_string(),
        version: node.meta.version,
        spec,
    })
}

fn any_node(world: &mut World) -> usize {
    let count = world.nodes.len() as u64;
    usize::try_from(world.rng.below(count)).unwrap_or(0)
}

fn power(world: &mut World) {
    let at = any_node(world);
    let node = &mut world.nodes[at];
    node.switch(&mut world.watchers, world.now);
    let (name, powered) = (node.hostname.clone(), node.is_powered());
    world.say(|| format!("power of {name}: {powered}"));
}

fn link(world: &mut World) {
    let at = any_node(world);
    let node = &mut world.nodes[at];
    node.connected = !node.connected;
    let (name, connected) = (node.hostname.clone(), node.connected);
    world.say(|| format!("link of {name}: {connected}"));
}

fn agent(world: &mut World) {
    let at = any_node(world);
    world.nodes[at].restart_agent(&mut world.watchers, world.now);
    world.say(|| format!("agent of node {at} restarts"));
}

fn leadership(world: &mut World) {
    if world.leader.is_some() {
        world.leader = None;
        world.say(|| "the leader is lost".to_owned());
    } else {
        world.elect();
        world.say(|| "a new leader".to_owned());
    }
}
