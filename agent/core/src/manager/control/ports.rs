//! Published ports.

use std::collections::BTreeSet;

use super::{invalid, unsupported};
use crate::{
    api::{ApiError, EndpointMode, EndpointSpec, PortConfig, Protocol, PublishMode, Service},
    network::mesh::VXLAN_PORT,
    store::View,
};

/// More published ports than any service needs.
const MAX_PORTS: usize = 1024;

/// What a node itself listens on: published, the mesh would take it away from the cluster on every node.
const NODE_PORTS: [(Protocol, u16, &str); 4] = [
    (Protocol::Tcp, 2376, "the Engine API"),
    (Protocol::Tcp, 2377, "the cluster's management"),
    (Protocol::Tcp, 7946, "the cluster's membership"),
    (Protocol::Udp, 7946, "the cluster's membership"),
];

pub(super) fn check(endpoint: &EndpointSpec) -> Result<(), ApiError> {
    if endpoint.ports.len() > MAX_PORTS {
        return Err(invalid(
            "EndpointSpec.Ports",
            format!(
                "{} are too many: give at most {MAX_PORTS}",
                endpoint.ports.len()
            ),
        ));
    }
    let mut published = BTreeSet::new();
    let mut entries = BTreeSet::new();
    for (position, port) in endpoint.ports.iter().enumerate() {
        let field = format!("EndpointSpec.Ports[{position}]");
        if port.protocol == Protocol::Sctp {
            return Err(unsupported(format!("{field}.Protocol sctp")));
        }
        if port.publish_mode == PublishMode::Host {
            return Err(unsupported(format!("{field}.PublishMode host (mode=host)")));
        }
        if port.target_port == 0 {
            return Err(invalid(
                format!("{field}.TargetPort"),
                "give a port from 1 to 65535",
            ));
        }
        if endpoint.mode == EndpointMode::DnsRr {
            return Err(invalid(
                format!("{field}.PublishMode"),
                "a port published with ingress mode can't be used with dnsrr mode: use endpoint mode vip, or do not publish",
            ));
        }
        let number = (port.protocol, port.published_port);
        if port.published_port != 0 && !published.insert(number) {
            return Err(invalid(
                format!("{field}.PublishedPort"),
                format!(
                    "duplicate published ports provided: {}",
                    port.published_port
                ),
            ));
        }
        if !entries.insert((port.protocol, port.target_port, port.published_port)) {
            return Err(invalid(&field, "the same port is given twice: remove one"));
        }
    }
    Ok(())
}

pub(super) fn check_free(
    view: &View,
    endpoint: &EndpointSpec,
    old: Option<&Service>,
) -> Result<(), ApiError> {
    for port in &endpoint.ports {
        if let Some(user) = node_user(view, port) {
            return Err(ApiError::Conflict(format!(
                "port '{}' ({}) is already in use by {user} on every node: publish another one",
                port.published_port,
                port.protocol.as_str()
            )));
        }
        let holder = view.port_holder(port.protocol, port.published_port);
        let foreign = holder.filter(|holder| old.is_none_or(|old| old.id != holder.id));
        if let Some(holder) = foreign {
            return Err(ApiError::Conflict(format!(
                "port '{}' is already in use by service '{}' ({}) as an ingress port",
                port.published_port, holder.spec.name, holder.id
            )));
        }
    }
    Ok(())
}

/// What of a node has the port already.
fn node_user(view: &View, port: &PortConfig) -> Option<&'static str> {
    let chosen = view.cluster().map_or(0, |cluster| cluster.data_path_port);
    let vxlan = if chosen == 0 { VXLAN_PORT } else { chosen };
    let data_path = (Protocol::Udp, vxlan, "the overlay networks (VXLAN)");
    let mut all = NODE_PORTS.into_iter().chain([data_path]);
    let user = all
        .find(|(protocol, number, _)| (*protocol, *number) == (port.protocol, port.published_port));
    user.map(|(_, _, user)| user)
}
