//! The difference between two maps, small when little has changed.

use std::{collections::BTreeMap, net::Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::{
    api::{Network, Node, Service, Task},
    id::Id,
    network::mesh::{MeshEndpoint, MeshMap, MeshNetwork, MeshNode, MeshService},
};

/// What must be changed in one map to get another.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MeshDelta {
    /// The version of the map that it changes.
    pub base: u64,
    /// The version of the map that comes out.
    pub version: u64,
    /// Peers.
    #[serde(default)]
    pub nodes: Changes<Id<Node>, MeshNode>,
    /// Networks that are new, are gone, or are no longer what they were.
    #[serde(default)]
    pub networks: Changes<Id<Network>, MeshNetwork>,
    /// Changes inside networks that stay.
    #[serde(default)]
    pub inside: BTreeMap<Id<Network>, NetworkDelta>,
}

/// What must be changed in one network.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NetworkDelta {
    /// Addresses of nodes.
    #[serde(default)]
    pub node_addresses: Changes<Id<Node>, Ipv4Addr>,
    /// Tasks.
    #[serde(default)]
    pub endpoints: Changes<Id<Task>, MeshEndpoint>,
    /// Services.
    #[serde(default)]
    pub services: Changes<Id<Service>, MeshService>,
}

/// What must be changed in one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound(deserialize = "K: Ord + Deserialize<'de>, V: Deserialize<'de>"))]
pub struct Changes<K, V> {
    /// New and changed entries.
    pub put: BTreeMap<K, V>,
    /// Keys of entries that are gone.
    pub gone: Vec<K>,
}

impl<K, V> Default for Changes<K, V> {
    fn default() -> Self {
        Self {
            put: BTreeMap::new(),
            gone: Vec::new(),
        }
    }
}

impl<K: Ord + Clone, V: PartialEq + Clone> Changes<K, V> {
    fn between(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> Self {
        let changed = new
            .iter()
            .filter(|(key, value)| old.get(key) != Some(value));
        let gone = old.keys().filter(|key| !new.contains_key(key));
        Self {
            put: changed
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
            gone: gone.cloned().collect(),
        }
    }

    fn apply(&self, table: &mut BTreeMap<K, V>) {
        for key in &self.gone {
            table.remove(key);
        }
        let put = self.put.iter();
        table.extend(put.map(|(key, value)| (key.clone(), value.clone())));
    }

    fn is_empty(&self) -> bool {
        self.put.is_empty() && self.gone.is_empty()
    }
}

/// A difference came to a map that it was not made for; the stream must begin anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a mesh update for version {base} came at version {version}: open the stream again")]
pub struct WrongBase {
    /// The version that the difference is for.
    pub base: u64,
    /// The version of the map.
    pub version: u64,
}

impl MeshDelta {
    /// The difference between two maps of one node.
    #[must_use]
    pub fn between(old: &MeshMap, new: &MeshMap) -> Self {
        let mut delta = Self {
            base: old.version,
            version: new.version,
            nodes: Changes::between(&old.nodes, &new.nodes),
            ..Self::default()
        };
        let gone = old
            .networks
            .keys()
            .filter(|id| !new.networks.contains_key(id));
        delta.networks.gone = gone.cloned().collect();
        for (id, network) in &new.networks {
            match old.networks.get(id) {
                Some(before) if same_head(before, network) => {
                    let inside = NetworkDelta::between(before, network);
                    if !inside.is_empty() {
                        delta.inside.insert(id.clone(), inside);
                    }
                }
                Some(_) | None => {
                    delta.networks.put.insert(id.clone(), network.clone());
                }
            }
        }
        delta
    }

    /// Whether it changes nothing but the version.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.networks.is_empty() && self.inside.is_empty()
    }

    /// The map that comes out.
    ///
    /// # Errors
    /// When the difference was made for another version of the map.
    pub fn apply(&self, map: &MeshMap) -> Result<MeshMap, WrongBase> {
        if map.version != self.base {
            return Err(WrongBase {
                base: self.base,
                version: map.version,
            });
        }
        let mut map = map.clone();
        map.version = self.version;
        self.nodes.apply(&mut map.nodes);
        self.networks.apply(&mut map.networks);
        for (id, inside) in &self.inside {
            if let Some(network) = map.networks.get_mut(id) {
                inside.node_addresses.apply(&mut network.node_addresses);
                inside.endpoints.apply(&mut network.endpoints);
                inside.services.apply(&mut network.services);
            }
        }
        Ok(map)
    }
}

impl NetworkDelta {
    fn between(old: &MeshNetwork, new: &MeshNetwork) -> Self {
        Self {
            node_addresses: Changes::between(&old.node_addresses, &new.node_addresses),
            endpoints: Changes::between(&old.endpoints, &new.endpoints),
            services: Changes::between(&old.services, &new.services),
        }
    }

    fn is_empty(&self) -> bool {
        self.node_addresses.is_empty() && self.endpoints.is_empty() && self.services.is_empty()
    }
}

/// Whether all but the tables of two networks is the same.
fn same_head(old: &MeshNetwork, new: &MeshNetwork) -> bool {
    let head = |network: &MeshNetwork| MeshNetwork {
        node_addresses: BTreeMap::new(),
        endpoints: BTreeMap::new(),
        services: BTreeMap::new(),
        ..network.clone()
    };
    head(old) == head(new)
}
