//! Networks, their attachments, ports and endpoints.

use std::collections::BTreeMap;

use super::{MessageError, id, meta, refuse};
use crate::{
    api::{
        Endpoint, EndpointMode, EndpointSpec, Network, NetworkAttachment, PortConfig, Protocol,
        PublishMode, VirtualIp,
    },
    id::Id,
    wire::swarmkit as pb,
};

/// How a network of the store is found by its id.
pub(super) type Lookup<'a> = &'a dyn Fn(&Id<Network>) -> Option<&'a Network>;

pub(super) fn network(network: &Network) -> pb::Network {
    let driver = pb::Driver {
        name: "overlay".to_owned(),
        options: network.spec.options.clone(),
    };
    let state = network.state.as_ref();
    let options = state.map(|state| ("com.docker.network.driver.overlay.vxlanid_list", state.vni));
    pb::Network {
        id: network.id.to_string(),
        meta: Some(meta(&network.meta)),
        spec: Some(pb::NetworkSpec {
            annotations: Some(pb::Annotations {
                name: network.spec.name.clone(),
                labels: network.spec.labels.clone(),
                indices: Vec::new(),
            }),
            driver_config: Some(driver),
            ipv6_enabled: false,
            internal: network.spec.internal,
            ipam: None,
            attachable: network.spec.attachable,
            ingress: network.spec.ingress,
            config_from: None,
        }),
        driver_state: Some(pb::Driver {
            name: "overlay".to_owned(),
            options: options
                .into_iter()
                .map(|(key, vni)| (key.to_owned(), vni.to_string()))
                .collect(),
        }),
        ipam: Some(pb::IpamOptions {
            driver: Some(pb::Driver {
                name: "default".to_owned(),
                options: BTreeMap::new(),
            }),
            configs: state
                .map(|state| pb::IpamConfig {
                    family: pb::ipam_config::AddressFamily::Ipv4.into(),
                    subnet: format!("{}/{}", state.subnet, state.prefix),
                    range: String::new(),
                    gateway: state.gateway.to_string(),
                    reserved: BTreeMap::new(),
                })
                .into_iter()
                .collect(),
        }),
        pending_delete: false,
        extra: None,
    }
}

/// `None` for an attachment to a network that the store no longer has: a Docker node would dereference it.
pub(super) fn attachment(
    attachment: &NetworkAttachment,
    lookup: Lookup<'_>,
) -> Option<pb::NetworkAttachment> {
    Some(pb::NetworkAttachment {
        network: Some(network(lookup(&attachment.network_id)?)),
        addresses: attachment.addresses.clone(),
        aliases: attachment.aliases.clone(),
        driver_attachment_opts: BTreeMap::new(),
    })
}

pub(super) fn read_attachment(
    message: pb::NetworkAttachment,
) -> Result<NetworkAttachment, MessageError> {
    refuse(
        !message.driver_attachment_opts.is_empty(),
        "networks.driver_attachment_opts",
    )?;
    let network = message
        .network
        .ok_or_else(|| MessageError::new("networks.network", "is missing"))?;
    Ok(NetworkAttachment {
        network_id: id(&network.id, "networks.network.id")?,
        addresses: message.addresses,
        aliases: message.aliases,
    })
}

pub(super) fn port(port: &PortConfig) -> pb::PortConfig {
    let protocol = match port.protocol {
        Protocol::Tcp => pb::port_config::Protocol::Tcp,
        Protocol::Udp => pb::port_config::Protocol::Udp,
        Protocol::Sctp => pb::port_config::Protocol::Sctp,
    };
    let mode = match port.publish_mode {
        PublishMode::Ingress => pb::port_config::PublishMode::Ingress,
        PublishMode::Host => pb::port_config::PublishMode::Host,
    };
    pb::PortConfig {
        name: port.name.clone(),
        protocol: protocol.into(),
        target_port: port.target_port.into(),
        published_port: port.published_port.into(),
        publish_mode: mode.into(),
    }
}

pub(super) fn read_port(message: pb::PortConfig) -> Result<PortConfig, MessageError> {
    let protocol = match pb::port_config::Protocol::try_from(message.protocol) {
        Ok(pb::port_config::Protocol::Tcp) => Protocol::Tcp,
        Ok(pb::port_config::Protocol::Udp) => Protocol::Udp,
        Ok(pb::port_config::Protocol::Sctp) => Protocol::Sctp,
        Err(_) => return Err(MessageError::unsupported("ports.protocol")),
    };
    let publish_mode = match pb::port_config::PublishMode::try_from(message.publish_mode) {
        Ok(pb::port_config::PublishMode::Ingress) => PublishMode::Ingress,
        Ok(pb::port_config::PublishMode::Host) => PublishMode::Host,
        Err(_) => return Err(MessageError::unsupported("ports.publish_mode")),
    };
    let number = |port, field| {
        u16::try_from(port).map_err(|_| MessageError::new(field, format!("{port} is no port")))
    };
    Ok(PortConfig {
        name: message.name,
        protocol,
        target_port: number(message.target_port, "ports.target_port")?,
        published_port: number(message.published_port, "ports.published_port")?,
        publish_mode,
    })
}

pub(super) fn read_ports(messages: Vec<pb::PortConfig>) -> Result<Vec<PortConfig>, MessageError> {
    messages.into_iter().map(read_port).collect()
}

fn spec(spec: &EndpointSpec) -> pb::EndpointSpec {
    let mode = match spec.mode {
        EndpointMode::Vip => pb::endpoint_spec::ResolutionMode::Vip,
        EndpointMode::DnsRr => pb::endpoint_spec::ResolutionMode::Dnsrr,
    };
    pb::EndpointSpec {
        mode: mode.into(),
        ports: spec.ports.iter().map(port).collect(),
    }
}

fn read_spec(message: pb::EndpointSpec) -> Result<EndpointSpec, MessageError> {
    let mode = match pb::endpoint_spec::ResolutionMode::try_from(message.mode) {
        Ok(pb::endpoint_spec::ResolutionMode::Vip) => EndpointMode::Vip,
        Ok(pb::endpoint_spec::ResolutionMode::Dnsrr) => EndpointMode::DnsRr,
        Err(_) => return Err(MessageError::unsupported("endpoint.spec.mode")),
    };
    Ok(EndpointSpec {
        mode,
        ports: read_ports(message.ports)?,
    })
}

/// The prefix length of a virtual address is its network's.
pub(super) fn endpoint(endpoint: &Endpoint, lookup: Lookup<'_>) -> pb::Endpoint {
    let address = |vip: &VirtualIp| {
        let state = lookup(&vip.network_id).and_then(|network| network.state.as_ref());
        let prefix = state.map_or(32, |state| state.prefix);
        pb::endpoint::VirtualIp {
            network_id: vip.network_id.to_string(),
            addr: format!("{}/{prefix}", vip.addr),
        }
    };
    pb::Endpoint {
        spec: endpoint.spec.as_ref().map(spec),
        ports: endpoint.ports.iter().map(port).collect(),
        virtual_ips: endpoint.virtual_ips.iter().map(address).collect(),
    }
}

/// Firewall marks do not travel in swarmkit's messages: they are 0 here and come with the mesh map.
pub(super) fn read_endpoint(message: pb::Endpoint) -> Result<Endpoint, MessageError> {
    let address = |vip: pb::endpoint::VirtualIp| {
        let text = vip.addr.split('/').next().unwrap_or_default();
        let addr = text.parse().map_err(|_| {
            MessageError::new(
                "endpoint.virtual_ips.addr",
                format!("{:?} is no IPv4 address", vip.addr),
            )
        })?;
        Ok(VirtualIp {
            network_id: id(&vip.network_id, "endpoint.virtual_ips.network_id")?,
            addr,
            mark: 0,
        })
    };
    Ok(Endpoint {
        spec: message.spec.map(read_spec).transpose()?,
        ports: read_ports(message.ports)?,
        virtual_ips: message
            .virtual_ips
            .into_iter()
            .map(address)
            .collect::<Result<_, MessageError>>()?,
    })
}
