//! Networks: create and remove.

use std::net::Ipv4Addr;

use super::{done, invalid, names, service::refuse, unsupported};
use crate::{
    api::{ApiError, ClusterResponse, IpamConfig, Meta, Network, NetworkSpec, Subnet},
    id::Id,
    manager::{Ctx, allocator, query},
    store::{Change, ObjectId, Proposal, View},
};

type Answer = Result<(Proposal, ClusterResponse), ApiError>;

/// Names that every node has for networks of its own.
const RESERVED: [&str; 4] = ["bridge", "host", "none", "docker_gwbridge"];
/// The smallest range that holds a gateway, a virtual address and tasks.
const LONGEST_PREFIX: u8 = 29;
/// The largest range of one network.
const SHORTEST_PREFIX: u8 = 8;

pub(super) fn create(view: &View, spec: &NetworkSpec, ctx: &mut Ctx) -> Answer {
    let mut spec = spec.clone();
    names::check_name("Name", &spec.name)?;
    names::check_labels("Labels", &spec.labels)?;
    check_kind(&spec)?;
    check_options(&spec)?;
    let taken = RESERVED.contains(&spec.name.as_str()) || view.network_named(&spec.name).is_some();
    if taken {
        return Err(ApiError::Conflict(format!(
            "network with name {} already exists",
            spec.name
        )));
    }
    if let Some(subnet) = check_ipam(&spec)? {
        check_subnet_free(view, subnet)?;
    }
    "overlay".clone_into(&mut spec.driver);
    "swarm".clone_into(&mut spec.scope);
    spec.check_duplicate = false;
    let id = Id::draw(&mut ctx.rng);
    let network = Network {
        id: id.clone(),
        meta: Meta {
            version: 0,
            created_at: ctx.now,
            updated_at: ctx.now,
        },
        spec,
        state: None,
    };
    let proposal = Proposal::of([Change::put_network(network)]);
    Ok((proposal, ClusterResponse::NetworkCreated(id)))
}

fn check_kind(spec: &NetworkSpec) -> Result<(), ApiError> {
    if spec.driver != "overlay" {
        return Err(unsupported(format!(
            "Driver {:?} (cluster networks have driver overlay)",
            spec.driver
        )));
    }
    if !["", "swarm"].contains(&spec.scope.as_str()) {
        return Err(invalid(
            "Scope",
            format!("{:?} is not the scope of an overlay: use swarm", spec.scope),
        ));
    }
    let flags = [
        ("EnableIPv6 (--ipv6)", spec.enable_ipv6 == Some(true)),
        (
            "EnableIPv4 false (--ipv4=false)",
            spec.enable_ipv4 == Some(false),
        ),
        ("Ingress (--ingress)", spec.ingress),
        ("ConfigOnly (--config-only)", spec.config_only),
    ];
    if let Some((field, _)) = flags.into_iter().find(|(_, set)| *set) {
        return Err(unsupported(field));
    }
    refuse("ConfigFrom (--config-from)", spec.config_from.as_ref())
}

fn check_options(spec: &NetworkSpec) -> Result<(), ApiError> {
    match spec.options.keys().next() {
        Some(option) => Err(unsupported(format!("Options {option:?} (--opt {option})"))),
        None => Ok(()),
    }
}

/// The subnet that the user chose, if any.
fn check_ipam(spec: &NetworkSpec) -> Result<Option<Subnet>, ApiError> {
    let Some(ipam) = &spec.ipam else {
        return Ok(None);
    };
    if !["", "default"].contains(&ipam.driver.as_str()) {
        return Err(unsupported(format!("IPAM.Driver {:?}", ipam.driver)));
    }
    if let Some(option) = ipam.options.keys().next() {
        return Err(unsupported(format!("IPAM.Options {option:?} (--ipam-opt)")));
    }
    match &ipam.config[..] {
        [] => Ok(None),
        [config] => check_config(config),
        [..] => Err(unsupported("IPAM.Config with more than one subnet")),
    }
}

fn check_config(config: &IpamConfig) -> Result<Option<Subnet>, ApiError> {
    let field = |name: &str| format!("IPAM.Config[0].{name}");
    if config.subnet.is_empty() {
        let rest = [
            ("IPRange", !config.ip_range.is_empty()),
            ("Gateway", !config.gateway.is_empty()),
            ("AuxiliaryAddresses", !config.auxiliary_addresses.is_empty()),
        ];
        return match rest.into_iter().find(|(_, given)| *given) {
            Some((name, _)) => Err(invalid(field(name), "it needs a subnet: give one")),
            None => Ok(None),
        };
    }
    let parsed = config.subnet.parse::<Subnet>();
    let subnet = parsed.map_err(|error| invalid(field("Subnet"), error.to_string()))?;
    if !(SHORTEST_PREFIX..=LONGEST_PREFIX).contains(&subnet.prefix()) {
        return Err(invalid(
            field("Subnet"),
            format!(
                "{subnet} is too small or too large: use /{SHORTEST_PREFIX} to /{LONGEST_PREFIX}"
            ),
        ));
    }
    if !is_usable(subnet) {
        return Err(invalid(
            field("Subnet"),
            format!("{subnet} is not a range for hosts: use a private one, such as 10.0.9.0/24"),
        ));
    }
    if !config.ip_range.is_empty() {
        let range = config.ip_range.parse::<Subnet>();
        let range = range.map_err(|error| invalid(field("IPRange"), error.to_string()))?;
        if !subnet.encloses(&range) {
            return Err(invalid(
                field("IPRange"),
                format!("{range} is not inside {subnet}"),
            ));
        }
    }
    let aside = config.auxiliary_addresses.iter();
    let aside = aside.map(|(name, address)| (format!("AuxiliaryAddresses[{name}]"), address));
    let gateway = Some(("Gateway".to_owned(), &config.gateway));
    let gateway = gateway.filter(|_| !config.gateway.is_empty());
    for (name, text) in gateway.into_iter().chain(aside) {
        let address = text.parse::<Ipv4Addr>().ok();
        let inside = |address: &Ipv4Addr| {
            let ends = [subnet.network(), subnet.broadcast()];
            subnet.contains(*address) && !ends.contains(address)
        };
        if !address.is_some_and(|address| inside(&address)) {
            return Err(invalid(
                field(&name),
                format!("{text:?} is not an address of a host in {subnet}"),
            ));
        }
    }
    Ok(Some(subnet))
}

fn is_usable(subnet: Subnet) -> bool {
    let first = subnet.network();
    let reserved = first.is_loopback() || first.is_multicast() || first.is_link_local();
    !reserved && first.octets()[0] != 0 && first.octets()[0] < 224
}

fn check_subnet_free(view: &View, subnet: Subnet) -> Result<(), ApiError> {
    let conflict = |with: String| {
        Err(ApiError::Conflict(format!(
            "subnet {subnet} overlaps with {with}: choose another"
        )))
    };
    for network in view.networks() {
        let taken = network.subnet().filter(|taken| taken.overlaps(&subnet));
        if let Some(taken) = taken {
            return conflict(format!("{taken} of network {}", network.spec.name));
        }
    }
    let ingress = view.cluster().map(|it| it.ingress_subnet.parse::<Subnet>());
    if let Some(Ok(ingress)) = ingress
        && ingress.overlaps(&subnet)
    {
        return conflict(format!("{ingress} of the routing mesh"));
    }
    let gateway = allocator::gateway_range();
    if gateway.overlaps(&subnet) {
        return conflict(format!("{gateway} of docker_gwbridge on every node"));
    }
    for node in view.nodes() {
        let Some(description) = &node.description else {
            continue;
        };
        let routes = allocator::routes_of(description);
        if let Some(route) = routes.into_iter().find(|it| it.overlaps(&subnet)) {
            return conflict(format!("route {route} of node {}", description.hostname));
        }
    }
    Ok(())
}

pub(super) fn remove(view: &View, reference: &str) -> Answer {
    if RESERVED.contains(&reference) {
        return Err(ApiError::Forbidden(format!(
            "{reference} is a pre-defined network and cannot be removed"
        )));
    }
    let network = query::find_network(view, reference)?;
    if network.spec.ingress {
        return Err(unsupported("removing the ingress network"));
    }
    if let Some(service) = query::services_on(view, &network.id).first() {
        return Err(ApiError::Precondition(format!(
            "network {} is in use by service {}: remove the service first",
            network.spec.name, service.spec.name
        )));
    }
    let task = view.tasks().find(|task| {
        let joined = task.networks.iter().any(|it| it.network_id == network.id);
        joined && task.is_live()
    });
    if let Some(task) = task {
        return Err(ApiError::Precondition(format!(
            "network {} is in use by task {}: wait until it has stopped",
            network.spec.name, task.id
        )));
    }
    let proposal = Proposal::of([Change::Delete {
        object: ObjectId::Network(network.id.clone()),
        version: network.meta.version,
    }]);
    Ok((proposal, done()))
}
