//! Gives out what must be unique in the cluster: subnets, VNIs, addresses, published ports, marks.
//!
//! What is in use is read off the objects that use it, so nothing can leak and nothing is counted
//! twice. An address is in use until its task has ended for sure: a task on a node that is not heard
//! of keeps it.

mod ipam;
mod ports;
mod vni;

use std::collections::{BTreeMap, BTreeSet};

use super::Ctx;
use crate::{
    api::{
        DriverState, Endpoint, EndpointMode, Meta, Network, NetworkAttachment,
        NetworkAttachmentConfig, NetworkSpec, Node, NodeNetwork, Service, Task, TaskState,
        VirtualIp,
    },
    id::Id,
    store::{Change, Proposal, View},
};
use ipam::Pool;
pub(crate) use ipam::{addresses, gateway_range, routes_of};
pub use ports::{FIRST_DYNAMIC_PORT, LAST_DYNAMIC_PORT};

/// The first firewall mark for a service on the routing mesh.
const FIRST_INGRESS_MARK: u32 = 0x100;
/// The first firewall mark for a service on an overlay: a range of its own, so that services without
/// published ports do not use up the small marks.
const FIRST_OVERLAY_MARK: u32 = 0x1_0000;

/// Makes the ingress network, gives networks their subnet and VNI, nodes their ingress address, services
/// their ports and virtual addresses, and new tasks their addresses. What can't be given is said in the
/// status of the tasks that wait for it, and tried again in every pass.
#[must_use]
pub fn allocate(view: &View, ctx: &mut Ctx) -> Vec<Proposal> {
    if view.cluster().is_none() {
        return Vec::new();
    }
    let mut allocator = Allocator::new(view);
    allocator.ingress_network(ctx);
    allocator.networks();
    allocator.nodes();
    allocator.services();
    let tasks = allocator.tasks(ctx);
    allocator.into_proposals(tasks)
}

/// One pass's knowledge of what is taken.
struct Allocator<'a> {
    view: &'a View,
    networks: BTreeMap<Id<Network>, Network>,
    changed_networks: BTreeSet<Id<Network>>,
    pools: BTreeMap<Id<Network>, Pool>,
    nodes: Vec<Node>,
    services: BTreeMap<Id<Service>, Service>,
    /// Services that could not get what they need, and why.
    starved: BTreeMap<Id<Service>, String>,
}

impl<'a> Allocator<'a> {
    fn new(view: &'a View) -> Self {
        let networks = view.networks();
        Self {
            view,
            networks: networks
                .map(|it| (it.id.clone(), Network::clone(it)))
                .collect(),
            changed_networks: BTreeSet::new(),
            pools: BTreeMap::new(),
            nodes: Vec::new(),
            services: BTreeMap::new(),
            starved: BTreeMap::new(),
        }
    }

    fn ingress_network(&mut self, ctx: &mut Ctx) {
        if self.view.ingress().is_some() {
            return;
        }
        let Some(cluster) = self.view.cluster() else {
            return;
        };
        let spec = NetworkSpec::ingress(&cluster.ingress_subnet);
        let network = Network {
            id: Id::draw(&mut ctx.rng),
            meta: Meta {
                version: 0,
                created_at: ctx.now,
                updated_at: ctx.now,
            },
            spec,
            state: None,
        };
        self.changed_networks.insert(network.id.clone());
        self.networks.insert(network.id.clone(), network);
    }

    fn networks(&mut self) {
        let waiting = self.networks.values().filter(|it| it.state.is_none());
        // The ingress network first: its VNI is the first.
        let mut waiting: Vec<_> = waiting
            .map(|it| (!it.spec.ingress, it.id.clone()))
            .collect();
        waiting.sort();
        for (_, id) in waiting {
            let used = self.networks.values().filter_map(|it| it.state.as_ref());
            let vni = vni::next(&used.map(|state| state.vni).collect());
            let subnet = match &self.networks[&id].spec.wished_subnet() {
                Some(wished) => Some(*wished),
                None => ipam::free_subnet(self.view, self.networks.values()),
            };
            let (Some(vni), Some(subnet)) = (vni, subnet) else {
                continue;
            };
            let Some(network) = self.networks.get_mut(&id) else {
                continue;
            };
            network.state = Some(DriverState {
                vni,
                subnet: subnet.network(),
                prefix: subnet.prefix(),
                gateway: ipam::gateway(&network.spec, subnet),
                last_given: None,
            });
            self.changed_networks.insert(id);
        }
        self.pools = ipam::pools(self.view, self.networks.values());
    }

    fn ingress(&self) -> Option<&Network> {
        self.networks.values().find(|network| network.spec.ingress)
    }

    fn give(&mut self, network: &Id<Network>) -> Result<std::net::Ipv4Addr, String> {
        let Some(known) = self.networks.get_mut(network) else {
            return Err(format!("network {network} not found"));
        };
        let name = &known.spec.name;
        let Some(pool) = self.pools.get_mut(network) else {
            return Err(format!(
                "network {name} has no subnet: the address pools of the cluster are used up, remove networks"
            ));
        };
        let Some(address) = pool.give() else {
            return Err(format!(
                "no address is left in network {name} ({}): remove tasks or services, or use a larger network",
                pool.subnet()
            ));
        };
        if let Some(state) = &mut known.state {
            state.last_given = Some(address);
            self.changed_networks.insert(network.clone());
        }
        Ok(address)
    }

    fn nodes(&mut self) {
        let Some(ingress) = self.ingress().map(|network| network.id.clone()) else {
            return;
        };
        for node in self.view.nodes() {
            if node.networks.iter().any(|it| it.network_id == ingress) {
                continue;
            }
            if let Ok(addr) = self.give(&ingress) {
                let mut node = Node::clone(node);
                let known = |it: &NodeNetwork| self.view.network(&it.network_id).is_some();
                node.networks.retain(known);
                node.networks.push(NodeNetwork {
                    network_id: ingress.clone(),
                    addr,
                });
                self.nodes.push(node);
            }
        }
    }

    fn services(&mut self) {
        let view = self.view;
        for service in view.services().filter(|it| !it.pending_delete) {
            let networks = self.vip_networks(service);
            if is_allocated(service, &networks) {
                continue;
            }
            match self.endpoint(service, &networks) {
                Ok(endpoint) => {
                    let service = Service {
                        endpoint,
                        ..Service::clone(service)
                    };
                    self.services.insert(service.id.clone(), service);
                }
                Err(why) => {
                    self.starved.insert(service.id.clone(), why);
                }
            }
        }
    }

    /// The networks on which a service has a virtual address, the ingress network first.
    fn vip_networks(&self, service: &Service) -> Vec<Id<Network>> {
        let spec = service.spec.endpoint_spec.as_ref();
        match spec.map(|spec| spec.mode).unwrap_or_default() {
            EndpointMode::DnsRr => Vec::new(),
            EndpointMode::Vip => {
                let joined = self.attachments(service, &service.spec.task_template.networks);
                joined.into_iter().map(|(id, _)| id).collect()
            }
        }
    }

    /// The networks that a task joins with its names there, the ingress network first. A target that is
    /// no network of the store is left out here and found again by [`Self::attach`].
    fn attachments(
        &self,
        service: &Service,
        wanted: &[NetworkAttachmentConfig],
    ) -> Vec<(Id<Network>, Vec<String>)> {
        let ingress = self.ingress().filter(|_| service.is_on_ingress());
        let ingress = ingress.map(|network| (network.id.clone(), Vec::new()));
        let wanted = wanted.iter();
        let wanted = wanted.filter_map(|it| Some((it.target.parse().ok()?, it.aliases.clone())));
        ingress.into_iter().chain(wanted).collect()
    }

    fn endpoint(
        &mut self,
        service: &Service,
        networks: &[Id<Network>],
    ) -> Result<Endpoint, String> {
        let given = self.services.values().map(|it| (&it.id, &it.endpoint));
        let ports = ports::assign(self.view, service, given)?;
        let mut virtual_ips: Vec<VirtualIp> = Vec::new();
        for network in networks {
            let has = service.endpoint.virtual_ips.iter();
            let vip = match has.into_iter().find(|vip| vip.network_id == *network) {
                Some(vip) => vip.clone(),
                None => VirtualIp {
                    network_id: network.clone(),
                    addr: self.give(network)?,
                    mark: self.free_mark(network, &virtual_ips),
                },
            };
            virtual_ips.push(vip);
        }
        Ok(Endpoint {
            spec: service.spec.endpoint_spec.clone(),
            ports,
            virtual_ips,
        })
    }

    fn free_mark(&self, network: &Id<Network>, own: &[VirtualIp]) -> u32 {
        let first = match self.ingress().is_some_and(|ingress| ingress.id == *network) {
            true => FIRST_INGRESS_MARK,
            false => FIRST_OVERLAY_MARK,
        };
        let before = self.view.services().flat_map(|it| &it.endpoint.virtual_ips);
        let now = self
            .services
            .values()
            .flat_map(|it| &it.endpoint.virtual_ips);
        let used: BTreeSet<u32> = before.chain(now).chain(own).map(|vip| vip.mark).collect();
        (first..).find(|mark| !used.contains(mark)).unwrap_or(first)
    }

    fn tasks(&mut self, ctx: &mut Ctx) -> Vec<Proposal> {
        let view = self.view;
        let mut proposals = Vec::new();
        for task in view.tasks() {
            let waits = task.status.state == TaskState::New;
            if !waits || !task.is_wanted() {
                continue;
            }
            let Some(service) = view.service(&task.service_id) else {
                continue;
            };
            let next = self.task(task, service, ctx);
            if next != **task {
                proposals.push(Proposal::of([Change::put_task(next)]));
            }
        }
        proposals
    }

    fn task(&mut self, task: &Task, service: &Service, ctx: &Ctx) -> Task {
        let service = self.services.get(&service.id).unwrap_or(service).clone();
        let mut next = task.clone();
        let starved = self.starved.get(&service.id).cloned();
        let joined = match starved {
            Some(why) => Err(why),
            None => self.attach(&service, task),
        };
        match joined {
            Ok(networks) => {
                next.networks = networks;
                next.endpoint = service.endpoint;
                next.status.state = TaskState::Pending;
                next.status.message = "pending task scheduling".to_owned();
                next.status.err = String::new();
                next.status.timestamp = ctx.now;
            }
            Err(why) => next.status.err = why,
        }
        next
    }

    fn attach(&mut self, service: &Service, task: &Task) -> Result<Vec<NetworkAttachment>, String> {
        let mut joined: Vec<NetworkAttachment> = Vec::new();
        for (network_id, aliases) in self.attachments(service, &task.spec.networks) {
            let address = match self.give(&network_id) {
                Ok(address) => address,
                Err(why) => {
                    // A task gets all of its addresses or none.
                    for attachment in &joined {
                        self.take_back(attachment);
                    }
                    return Err(why);
                }
            };
            let prefix = self.pools[&network_id].subnet().prefix();
            joined.push(NetworkAttachment {
                network_id,
                addresses: vec![format!("{address}/{prefix}")],
                aliases,
            });
        }
        Ok(joined)
    }

    fn take_back(&mut self, attachment: &NetworkAttachment) {
        if let Some(pool) = self.pools.get_mut(&attachment.network_id) {
            for address in ipam::addresses(attachment) {
                pool.take_back(address);
            }
        }
    }

    fn into_proposals(self, tasks: Vec<Proposal>) -> Vec<Proposal> {
        let changed = self.changed_networks.iter();
        let networks = changed.filter_map(|id| self.networks.get(id).cloned());
        let networks = networks.map(Change::put_network);
        let nodes = self.nodes.into_iter().map(Change::put_node);
        let services = self.services.into_values().map(Change::put_service);
        let single = networks.chain(nodes).chain(services);
        let single = single.map(|change| Proposal::of([change]));
        single.chain(tasks).collect()
    }
}

/// Whether a service has all that its spec asks for, and nothing else.
fn is_allocated(service: &Service, networks: &[Id<Network>]) -> bool {
    let vips = service.endpoint.virtual_ips.iter();
    service.endpoint.spec == service.spec.endpoint_spec
        && vips.map(|vip| &vip.network_id).eq(networks)
}
