//! Nodes, what they say of themselves, and their certificates.

use std::collections::BTreeMap;

use super::{MessageError, container, meta, network, network::Lookup};
use crate::{
    api::{
        Availability, Cluster, EngineDescription, Membership, Node, NodeDescription, NodeState,
        Role,
        container::Resources,
        node::{Certificate, IssuanceState},
    },
    wire::swarmkit as pb,
};

/// What a node may say of itself, in list entries and bytes: managers keep it in their store.
const MAX_ENTRIES: usize = 256;
const MAX_TEXT: usize = 256;

/// A node for itself.
///
/// `cluster` gives the port of the VXLAN, `lookup` the networks of the node's own attachments.
#[must_use]
pub fn node(node: &Node, cluster: &Cluster, lookup: Lookup<'_>) -> pb::Node {
    let address = |own: &crate::api::NodeNetwork| {
        let of = lookup(&own.network_id)?;
        let prefix = of.state.as_ref().map_or(32, |state| state.prefix);
        Some(pb::NetworkAttachment {
            network: Some(network::network(of)),
            addresses: vec![format!("{}/{prefix}", own.addr)],
            aliases: Vec::new(),
            driver_attachment_opts: BTreeMap::new(),
        })
    };
    let state = match node.status.state {
        NodeState::Unknown => pb::node_status::State::Unknown,
        NodeState::Down => pb::node_status::State::Down,
        NodeState::Ready => pb::node_status::State::Ready,
        NodeState::Disconnected => pb::node_status::State::Disconnected,
    };
    pb::Node {
        id: node.id.to_string(),
        meta: Some(meta(&node.meta)),
        spec: Some(spec(node)),
        description: node.description.as_ref().map(description),
        status: Some(pb::NodeStatus {
            state: state.into(),
            message: node.status.message.clone(),
            addr: node
                .status
                .addr
                .map_or_else(String::new, |addr| addr.to_string()),
        }),
        certificate: Some(certificate(node)),
        role: role(node.role()).into(),
        attachments: node.networks.iter().filter_map(address).collect(),
        vxlanudp_port: cluster.data_path_port.into(),
        ..pb::Node::default()
    }
}

fn spec(node: &Node) -> pb::NodeSpec {
    let availability = match node.spec.availability {
        Availability::Active => pb::node_spec::Availability::Active,
        Availability::Pause => pb::node_spec::Availability::Pause,
        Availability::Drain => pb::node_spec::Availability::Drain,
    };
    let membership = match node.spec.membership {
        Membership::Pending => pb::node_spec::Membership::Pending,
        Membership::Accepted => pb::node_spec::Membership::Accepted,
    };
    pb::NodeSpec {
        annotations: Some(pb::Annotations {
            name: node.spec.name.clone(),
            labels: node.spec.labels.clone(),
            indices: Vec::new(),
        }),
        desired_role: role(node.spec.role).into(),
        membership: membership.into(),
        availability: availability.into(),
    }
}

/// The certificate of a node as `NodeCertificateStatus` answers it.
#[must_use]
pub fn certificate(node: &Node) -> pb::Certificate {
    let certificate = &node.certificate;
    pb::Certificate {
        role: role(certificate.role).into(),
        csr: certificate.csr.clone().into_bytes(),
        status: Some(certificate_state(certificate)),
        certificate: certificate.certificate.clone().into_bytes(),
        cn: node.id.to_string(),
    }
}

/// How far the issuing of a certificate has come.
#[must_use]
pub fn certificate_state(certificate: &Certificate) -> pb::IssuanceStatus {
    let state = match certificate.state {
        IssuanceState::Unknown => pb::issuance_status::State::Unknown,
        IssuanceState::Renew => pb::issuance_status::State::Renew,
        IssuanceState::Pending => pb::issuance_status::State::Pending,
        IssuanceState::Issued => pb::issuance_status::State::Issued,
        IssuanceState::Failed => pb::issuance_status::State::Failed,
        IssuanceState::Rotate => pb::issuance_status::State::Rotate,
    };
    pb::IssuanceStatus {
        state: state.into(),
        err: certificate.err.clone(),
    }
}

/// The availability that a joining node asks for.
///
/// # Errors
/// When the number is none of swarmkit's.
pub fn read_availability(number: i32) -> Result<Availability, MessageError> {
    match pb::node_spec::Availability::try_from(number) {
        Ok(pb::node_spec::Availability::Active) => Ok(Availability::Active),
        Ok(pb::node_spec::Availability::Pause) => Ok(Availability::Pause),
        Ok(pb::node_spec::Availability::Drain) => Ok(Availability::Drain),
        Err(_) => Err(MessageError::unsupported("availability")),
    }
}

fn role(role: Role) -> pb::NodeRole {
    match role {
        Role::Worker => pb::NodeRole::Worker,
        Role::Manager => pb::NodeRole::Manager,
    }
}

/// What a node says of itself. Its routes and machine id have no field in swarmkit's message.
#[must_use]
pub fn description(description: &NodeDescription) -> pb::NodeDescription {
    let plugin = |(kind, name): &(String, String)| pb::PluginDescription {
        r#type: kind.clone(),
        name: name.clone(),
    };
    pb::NodeDescription {
        hostname: description.hostname.clone(),
        platform: Some(container::platform(&description.platform)),
        resources: Some(container::resources(&description.resources)),
        engine: Some(pb::EngineDescription {
            engine_version: description.engine.engine_version.clone(),
            labels: description.engine.labels.clone(),
            plugins: description.engine.plugins.iter().map(plugin).collect(),
        }),
        ..pb::NodeDescription::default()
    }
}

/// What a node says of itself, within bounds.
///
/// # Errors
/// The field that is too large or damaged.
pub fn read_description(message: pb::NodeDescription) -> Result<NodeDescription, MessageError> {
    let engine = message.engine.unwrap_or_default();
    let resources = message.resources.unwrap_or_default();
    let description = NodeDescription {
        hostname: text(message.hostname, "description.hostname")?,
        platform: container::read_platform(message.platform.unwrap_or_default()),
        resources: Resources {
            nano_cpus: resources.nano_cpus.max(0),
            memory_bytes: resources.memory_bytes.max(0),
            ..Resources::default()
        },
        engine: EngineDescription {
            engine_version: text(engine.engine_version, "description.engine.engine_version")?,
            labels: engine.labels,
            plugins: engine
                .plugins
                .into_iter()
                .map(|plugin| (plugin.r#type, plugin.name))
                .collect(),
        },
        ..NodeDescription::default()
    };
    let platform = [&description.platform.architecture, &description.platform.os];
    if platform.iter().any(|text| text.len() > MAX_TEXT) {
        return Err(MessageError::new("description.platform", "is too long"));
    }
    within_bounds(&description.engine)?;
    Ok(description)
}

fn within_bounds(engine: &EngineDescription) -> Result<(), MessageError> {
    let pairs = engine
        .plugins
        .iter()
        .map(|(kind, name)| (kind, name))
        .chain(&engine.labels);
    if engine.plugins.len().max(engine.labels.len()) > MAX_ENTRIES {
        let why = format!("has more than {MAX_ENTRIES} plugins or labels");
        return Err(MessageError::new("description.engine", why));
    }
    for (left, right) in pairs {
        if left.len().max(right.len()) > MAX_TEXT {
            let why = format!("has a plugin or label of more than {MAX_TEXT} bytes");
            return Err(MessageError::new("description.engine", why));
        }
    }
    Ok(())
}

fn text(text: String, field: &'static str) -> Result<String, MessageError> {
    if text.len() > MAX_TEXT || text.chars().any(char::is_control) {
        let why = format!("is longer than {MAX_TEXT} bytes or has control characters");
        return Err(MessageError::new(field, why));
    }
    Ok(text)
}
