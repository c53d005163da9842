//! Cluster networks.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Labels, Meta, Subnet, is_default, null_as_default};
use crate::id::Id;

/// A cluster-scope network as the store has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Network {
    /// Identity.
    #[serde(rename = "ID")]
    pub id: Id<Network>,
    /// Version and times.
    pub meta: Meta,
    /// What the user asked for.
    pub spec: NetworkSpec,
    /// What the allocator gave; absent until it has run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<DriverState>,
}

impl Network {
    /// The range that it has, or that its user chose while the allocator has not run; absent while
    /// neither has happened.
    #[must_use]
    pub fn subnet(&self) -> Option<Subnet> {
        let given = self.state.as_ref();
        given
            .map(|state| Subnet::around(state.subnet, state.prefix))
            .or_else(|| self.spec.wished_subnet())
    }
}

impl NetworkSpec {
    /// The routing mesh's own network.
    #[must_use]
    pub fn ingress(subnet: &str) -> Self {
        Self {
            name: "ingress".to_owned(),
            driver: "overlay".to_owned(),
            scope: "swarm".to_owned(),
            ingress: true,
            ipam: Some(Ipam {
                driver: "default".to_owned(),
                config: vec![IpamConfig {
                    subnet: subnet.to_owned(),
                    ..IpamConfig::default()
                }],
                ..Ipam::default()
            }),
            ..Self::default()
        }
    }

    /// The range that the user chose.
    #[must_use]
    pub fn wished_subnet(&self) -> Option<Subnet> {
        let config = self.ipam.as_ref()?.config.first()?;
        config.subnet.parse().ok()
    }
}

/// The body of `POST /networks/create`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct NetworkSpec {
    /// Name, unique in the cluster.
    pub name: String,
    /// Sent by old clients; names are always unique here.
    #[serde(skip_serializing_if = "is_default")]
    pub check_duplicate: bool,
    /// `overlay`; local drivers are not cluster networks.
    pub driver: String,
    /// `swarm` or empty.
    #[serde(skip_serializing_if = "is_default")]
    pub scope: String,
    /// IPv4 addressing; on unless said otherwise.
    #[serde(rename = "EnableIPv4", skip_serializing_if = "Option::is_none")]
    pub enable_ipv4: Option<bool>,
    /// IPv6 addressing; not supported yet.
    #[serde(rename = "EnableIPv6", skip_serializing_if = "Option::is_none")]
    pub enable_ipv6: Option<bool>,
    /// Subnets that the user chose.
    #[serde(rename = "IPAM", skip_serializing_if = "Option::is_none")]
    pub ipam: Option<Ipam>,
    /// No way to the outside.
    pub internal: bool,
    /// Stand-alone containers may join.
    pub attachable: bool,
    /// The routing mesh's own network.
    pub ingress: bool,
    /// A template for other networks; not supported.
    #[serde(skip_serializing_if = "is_default")]
    pub config_only: bool,
    /// The template to use; not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_from: Option<Value>,
    /// Driver options: `encrypted`, `com.docker.network.driver.mtu` …
    #[serde(
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub options: Labels,
    /// Labels of the network.
    #[serde(
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub labels: Labels,
}

/// Address management: the user's wish.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct Ipam {
    /// `default` or empty.
    pub driver: String,
    /// Driver options; none are supported.
    #[serde(
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub options: Labels,
    /// Subnets.
    #[serde(
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub config: Vec<IpamConfig>,
}

/// One subnet of a network.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct IpamConfig {
    /// `a.b.c.d/n`.
    #[serde(skip_serializing_if = "is_default")]
    pub subnet: String,
    /// The part of the subnet from which addresses are given.
    #[serde(rename = "IPRange", skip_serializing_if = "is_default")]
    pub ip_range: String,
    /// Gateway; the first address when empty.
    #[serde(skip_serializing_if = "is_default")]
    pub gateway: String,
    /// Addresses to leave alone.
    #[serde(
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub auxiliary_addresses: Labels,
}

/// What the allocator gave a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DriverState {
    /// VXLAN network identifier, from 4096.
    pub vni: u32,
    /// Network address of the subnet.
    pub subnet: Ipv4Addr,
    /// Prefix length of the subnet.
    pub prefix: u8,
    /// Gateway address, the same on every node.
    pub gateway: Ipv4Addr,
    /// The address that was given last; the next one is looked for behind it, so that an address
    /// rests before it is used again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_given: Option<Ipv4Addr>,
}
