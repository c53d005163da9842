//! No address, VNI, mark or port is used twice.

use std::{collections::BTreeMap, fmt::Debug};

use skep_core::{store::View, testing::fleet::SimNode};

use crate::world::World;

struct Once<K>(BTreeMap<K, String>);

impl<K> Default for Once<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Debug + Clone> Once<K> {
    fn claim(&mut self, key: K, who: String) {
        if let Some(other) = self.0.insert(key.clone(), who.clone()) {
            panic!("{key:?} is used by {other} and by {who}");
        }
    }
}

pub(crate) fn check(view: &View) {
    let (mut addresses, mut vnis) = (Once::default(), Once::default());
    let (mut marks, mut ports) = (Once::default(), Once::default());
    for network in view.networks() {
        if let Some(state) = &network.state {
            vnis.claim(state.vni, network.spec.name.clone());
            let key = (network.id.clone(), state.gateway.to_string());
            addresses.claim(key, "the gateway".to_owned());
        }
    }
    for node in view.nodes() {
        for given in &node.networks {
            let key = (given.network_id.clone(), given.addr.to_string());
            addresses.claim(key, format!("node {}", node.id));
        }
    }
    for service in view.services() {
        for vip in &service.endpoint.virtual_ips {
            let key = (vip.network_id.clone(), vip.addr.to_string());
            addresses.claim(key, format!("service {}", service.id));
            marks.claim(vip.mark, format!("service {}", service.id));
        }
        if !service.pending_delete {
            for port in &service.endpoint.ports {
                ports.claim(port.published_port, format!("service {}", service.id));
            }
        }
    }
    for task in view.tasks().filter(|task| !task.status.state.is_terminal()) {
        for attachment in &task.networks {
            for address in &attachment.addresses {
                let address = address.split('/').next().unwrap_or_default().to_owned();
                let key = (attachment.network_id.clone(), address);
                addresses.claim(key, format!("task {}", task.id));
            }
        }
    }
}

/// What really runs, also where nobody sees it.
pub(crate) fn check_containers(world: &World) {
    let mut addresses = Once::default();
    for (task, _) in world.nodes.iter().flat_map(SimNode::running) {
        for attachment in &task.networks {
            for address in &attachment.addresses {
                let key = (attachment.network_id.clone(), address.clone());
                addresses.claim(key, format!("container of {}", task.id));
            }
        }
    }
}
