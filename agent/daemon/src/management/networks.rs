//! Networks: those of the cluster, and the built-in ones of this node.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use skep_core::{
    api::{
        ApiError, ClusterRequest, EndpointMode, Filters, Network, NetworkSpec, Service, Task,
        TaskState,
    },
    manager::query,
    store::View,
};

use super::{
    Management, document, filter,
    params::Params,
    port::ContainerState,
    render::{
        self,
        network::{BUILT_IN, BuiltIn},
    },
};

impl Management {
    /// Every network that matches the filters: on a worker only the built-in ones, as with Docker.
    ///
    /// # Errors
    /// `Invalid` for a filter.
    pub fn network_list(&self, params: &Params) -> Result<Value, ApiError> {
        let filters = params.filters()?;
        // A worker has no view: the filters are checked all the same.
        let view = self.cluster.view().unwrap_or_default();
        let of_cluster = query::list_networks(&view, &filters)?;
        let machine_id = self.local.info().machine_id;
        let built_in = BUILT_IN
            .iter()
            .filter(|network| is_asked_for(network, &network.id(&machine_id), &filters))
            .map(|network| network.document(&machine_id));
        let of_cluster = of_cluster.iter().map(|net| render::network::network(net));
        Ok(json!(built_in.chain(of_cluster).collect::<Vec<Value>>()))
    }

    /// One network, by id, name or prefix of the id, with the containers that this node has on it; with
    /// `verbose=true` also its peers and services.
    ///
    /// # Errors
    /// `NotFound`, `Ambiguous`.
    pub async fn network_inspect(
        &self,
        reference: &str,
        params: &Params,
    ) -> Result<Value, ApiError> {
        let found = self.find_network(reference, params.text("scope"))?;
        let mut document = match &found {
            Found::BuiltIn(network) => network.document(&self.local.info().machine_id),
            Found::Cluster(network) => render::network::network(network),
        };
        let Value::Object(fields) = &mut document else {
            return Ok(document);
        };
        if let Found::Cluster(network) = &found {
            let containers = self.containers_on(network).await;
            fields.insert("Containers".to_owned(), Value::Object(containers));
            if params.flag("verbose") {
                let view = self.view()?;
                fields.insert("Peers".to_owned(), peers(&view, network));
                fields.insert("Services".to_owned(), services(&view, network));
            }
        }
        Ok(document)
    }

    /// Makes a network of the cluster.
    ///
    /// # Errors
    /// `Forbidden` for a name that every node has by itself, `Unsupported` for a driver that is not of the
    /// cluster, else those of the request.
    pub async fn network_create(&self, body: &[u8]) -> Result<Value, ApiError> {
        let mut spec: NetworkSpec = document::parse(body)?;
        // Clients of Go send the empty reference.
        if spec.config_from == Some(json!({ "Network": "" })) {
            spec.config_from = None;
        }
        if BUILT_IN.iter().any(|network| network.name == spec.name) {
            return Err(ApiError::Forbidden(format!(
                "operation is not permitted on predefined {} network",
                spec.name
            )));
        }
        if spec.driver != "overlay" {
            return Err(ApiError::Unsupported(format!(
                "Driver {:?} (create the network with --driver overlay)",
                spec.driver
            )));
        }
        let request = ClusterRequest::NetworkCreate(Box::new(spec));
        Ok(json!({ "Id": self.made(request).await?, "Warning": "" }))
    }

    /// Removes a network of the cluster.
    ///
    /// # Errors
    /// `NotFound`, `Ambiguous`, `Forbidden` for a built-in one, `Precondition` for one in use.
    pub async fn network_remove(&self, reference: &str) -> Result<Value, ApiError> {
        match self.find_network(reference, "")? {
            Found::BuiltIn(network) => Err(ApiError::Forbidden(format!(
                "{} is a pre-defined network and cannot be removed",
                network.name
            ))),
            Found::Cluster(network) => {
                self.done(ClusterRequest::NetworkRemove(network.id.to_string()))
                    .await
            }
        }
    }

    /// By name, then full id, then unambiguous prefix of an id.
    fn find_network(&self, reference: &str, scope: &str) -> Result<Found, ApiError> {
        let machine_id = self.local.info().machine_id;
        let mut candidates: Vec<(String, Found)> = Vec::new();
        if scope != "swarm" {
            candidates.extend(BUILT_IN.map(|net| (net.id(&machine_id), Found::BuiltIn(net))));
        }
        if scope != "local"
            && let Some(view) = self.cluster.view()
        {
            let networks = view.networks().map(|network| {
                let found = Found::Cluster(Arc::clone(network));
                (network.id.to_string(), found)
            });
            candidates.extend(networks);
        }
        let exact = candidates
            .iter()
            .position(|(id, found)| found.name() == reference || id == reference);
        if let Some(position) = exact {
            return Ok(candidates.swap_remove(position).1);
        }
        candidates.retain(|(id, _)| !reference.is_empty() && id.starts_with(reference));
        let matches = candidates.len();
        match candidates.pop() {
            None => Err(ApiError::NotFound {
                kind: "network",
                reference: reference.to_owned(),
            }),
            Some((_, found)) if matches == 1 => Ok(found),
            Some(_) => Err(ApiError::Ambiguous {
                kind: "network",
                reference: reference.to_owned(),
                matches,
            }),
        }
    }

    /// This node's containers on a network: container id to what `network inspect` shows of it.
    /// A node that runs none still shows its networks.
    async fn containers_on(&self, network: &Network) -> Map<String, Value> {
        let mut out = Map::new();
        for container in self.local.containers().await.unwrap_or_default() {
            if container.state != ContainerState::Running {
                continue;
            }
            let on_network = container
                .networks
                .iter()
                .find(|(_, id, _)| id == network.id.as_str());
            if let Some((_, _, address)) = on_network {
                let entry = json!({
                    "Name": container.name,
                    "EndpointID": "",
                    "MacAddress": mac_of(address),
                    "IPv4Address": address,
                    "IPv6Address": "",
                });
                out.insert(container.id.clone(), entry);
            }
        }
        out
    }
}

/// What a reference stands for.
#[derive(Clone)]
enum Found {
    BuiltIn(BuiltIn),
    Cluster(Arc<Network>),
}

impl Found {
    fn name(&self) -> &str {
        match self {
            Found::BuiltIn(network) => network.name,
            Found::Cluster(network) => &network.spec.name,
        }
    }
}

/// `02:42:` and the address in hexadecimal, as every endpoint of an overlay has it.
fn mac_of(address: &str) -> String {
    let ip = address.split('/').next().unwrap_or_default();
    ip.parse::<std::net::Ipv4Addr>()
        .map(|ip| {
            let [a, b, c, d] = ip.octets();
            format!("02:42:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
        })
        .unwrap_or_default()
}

/// Whether a network that every node has by itself passes the filters of a list, which were checked before. None of
/// them has a label or dangles.
fn is_asked_for(network: &BuiltIn, id: &str, filters: &Filters) -> bool {
    filters.iter().all(|(key, values)| {
        filter::values_match(key, values, |value| match key.as_str() {
            "name" => network.name.contains(value.as_str()),
            "id" => id.starts_with(value.as_str()),
            "driver" => network.driver == value,
            "scope" => value == "local",
            "type" => value == "builtin",
            "label" => false,
            "dangling" => !query::is_true(value),
            _ => true,
        })
    })
}

/// The tasks that are on a network now.
fn live_tasks<'a>(view: &'a View, network: &'a Network) -> impl Iterator<Item = &'a Task> {
    view.tasks()
        .map(AsRef::as_ref)
        .filter(|task: &&Task| task.status.state == TaskState::Running)
        .filter(|task| {
            task.networks
                .iter()
                .any(|attachment| attachment.network_id == network.id)
        })
}

/// The nodes that take part in a network, as libnetwork names its peers.
fn peers(view: &View, network: &Network) -> Value {
    let nodes = view.nodes().filter(|node| {
        network.spec.ingress
            || live_tasks(view, network).any(|task| task.node_id.as_ref() == Some(&node.id))
    });
    let peers: Vec<Value> = nodes
        .map(|node| {
            let name = node.id.short();
            json!({ "Name": name, "IP": node.status.addr.map(|addr| addr.to_string()) })
        })
        .collect();
    json!(peers)
}

/// The services on a network with their addresses and tasks.
fn services(view: &View, network: &Network) -> Value {
    let entries: Map<String, Value> = view
        .services()
        .filter_map(|service| {
            let tasks: Vec<Value> = live_tasks(view, network)
                .filter(|task| task.service_id == service.id)
                .map(|task| task_on(view, network, task))
                .collect();
            let entry = json!({
                "VIP": vip_on(network, service)?,
                "Ports": ports_of(service),
                "LocalLBIndex": lb_index(network, service),
                "Tasks": tasks,
            });
            Some((service.spec.name.clone(), entry))
        })
        .collect();
    Value::Object(entries)
}

/// The virtual address of a service on a network: empty text for DNS round robin, absent if the service
/// is not on the network.
fn vip_on(network: &Network, service: &Service) -> Option<String> {
    let vip = service
        .endpoint
        .virtual_ips
        .iter()
        .find(|vip| vip.network_id == network.id);
    if let Some(vip) = vip {
        return Some(vip.addr.to_string());
    }
    let round_robin = service
        .spec
        .endpoint_spec
        .as_ref()
        .is_some_and(|spec| spec.mode == EndpointMode::DnsRr);
    let joined = service
        .spec
        .task_template
        .networks
        .iter()
        .any(|wish| wish.target == network.id.as_str() || wish.target == network.spec.name);
    (round_robin && joined).then(String::new)
}

fn lb_index(network: &Network, service: &Service) -> u32 {
    service
        .endpoint
        .virtual_ips
        .iter()
        .find(|vip| vip.network_id == network.id)
        .map_or(0, |vip| vip.mark)
}

fn ports_of(service: &Service) -> Vec<String> {
    service
        .endpoint
        .ports
        .iter()
        .map(|port| {
            format!(
                "Target: {}, Publish: {}",
                port.target_port, port.published_port
            )
        })
        .collect()
}

fn task_on(view: &View, network: &Network, task: &Task) -> Value {
    let address = task
        .networks
        .iter()
        .find(|attachment| attachment.network_id == network.id)
        .and_then(|attachment| attachment.addresses.first())
        .map(|address| address.split('/').next().unwrap_or_default());
    let host = task
        .node_id
        .as_ref()
        .and_then(|id| view.node(id))
        .and_then(|node| node.status.addr)
        .map(|addr| addr.to_string());
    json!({
        "Name": task.name(),
        "EndpointID": "",
        "EndpointIP": address,
        "Info": { "Host IP": host },
    })
}
