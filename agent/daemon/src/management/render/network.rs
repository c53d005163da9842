//! `Network` documents: those of the cluster and the built-in ones of a node.

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use skep_core::api::{DriverState, Ipam, Network};

use super::{ZERO_TIME, object};

/// The option under which Docker shows and takes a VXLAN network identifier.
const VNI_OPTION: &str = "com.docker.network.driver.overlay.vxlanid_list";

/// A network of the cluster, as `GET /networks` lists it.
pub fn network(network: &Network) -> Value {
    let spec = &network.spec;
    let mut options = spec.options.clone();
    if let Some(state) = &network.state {
        options.insert(VNI_OPTION.to_owned(), state.vni.to_string());
    }
    json!({
        "Name": spec.name,
        "Id": network.id,
        "Created": network.meta.created_at,
        "Scope": "swarm",
        "Driver": driver(&spec.driver),
        "EnableIPv4": true,
        "EnableIPv6": false,
        "IPAM": {
            "Driver": "default",
            "Options": null,
            "Config": subnets(network.state.as_ref(), spec.ipam.as_ref()),
        },
        "Internal": spec.internal,
        "Attachable": spec.attachable,
        "Ingress": spec.ingress,
        "ConfigFrom": { "Network": "" },
        "ConfigOnly": false,
        "Containers": null,
        "Options": options,
        "Labels": spec.labels,
    })
}

/// The network inside a task's document: swarmkit's shape, not that of `GET /networks`.
pub fn attached(network: &Network) -> Value {
    let spec = &network.spec;
    let configs = subnets(network.state.as_ref(), spec.ipam.as_ref());
    let mut out = object(network.id.as_str(), &network.meta);
    out.insert(
        "Spec".to_owned(),
        json!({
            "Name": spec.name,
            "Labels": spec.labels,
            "DriverConfiguration": { "Name": driver(&spec.driver), "Options": spec.options },
            "Internal": spec.internal,
            "Attachable": spec.attachable,
            "Ingress": spec.ingress,
            "IPAMOptions": { "Driver": { "Name": "default" }, "Configs": configs },
            "Scope": "swarm",
        }),
    );
    let mut driver_state = Map::new();
    driver_state.insert("Name".to_owned(), json!(driver(&spec.driver)));
    if let Some(state) = &network.state {
        driver_state.insert(
            "Options".to_owned(),
            json!({ VNI_OPTION: state.vni.to_string() }),
        );
    }
    out.insert("DriverState".to_owned(), Value::Object(driver_state));
    out.insert(
        "IPAMOptions".to_owned(),
        json!({ "Driver": { "Name": "default" }, "Configs": configs }),
    );
    Value::Object(out)
}

fn driver(name: &str) -> &str {
    if name.is_empty() { "overlay" } else { name }
}

/// What the allocator gave, or until then what the user asked for.
fn subnets(state: Option<&DriverState>, wish: Option<&Ipam>) -> Vec<Value> {
    match (state, wish) {
        (Some(state), _) => vec![json!({
            "Subnet": format!("{}/{}", state.subnet, state.prefix),
            "Gateway": state.gateway,
        })],
        (None, Some(wish)) => wish
            .config
            .iter()
            .map(crate::management::document::json)
            .collect(),
        (None, None) => Vec::new(),
    }
}

/// A network that every node has by itself and that belongs to no cluster.
#[derive(Debug, Clone, Copy)]
pub struct BuiltIn {
    /// Its name.
    pub name: &'static str,
    /// Its driver.
    pub driver: &'static str,
}

/// The built-in networks, as a node of Docker lists them.
pub const BUILT_IN: [BuiltIn; 4] = [
    BuiltIn {
        name: "bridge",
        driver: "bridge",
    },
    BuiltIn {
        name: "docker_gwbridge",
        driver: "bridge",
    },
    BuiltIn {
        name: "host",
        driver: "host",
    },
    BuiltIn {
        name: "none",
        driver: "null",
    },
];

impl BuiltIn {
    /// Its id on the machine with this id: 64 hexadecimal digits, the same after every start.
    pub fn id(&self, machine_id: &str) -> String {
        let digest = Sha256::digest(format!("skep network {} {machine_id}", self.name));
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Its document on the machine with this id.
    pub fn document(&self, machine_id: &str) -> Value {
        let options = if self.name == "docker_gwbridge" {
            json!({
                "com.docker.network.bridge.enable_icc": "false",
                "com.docker.network.bridge.enable_ip_masquerade": "true",
                "com.docker.network.bridge.name": "docker_gwbridge",
            })
        } else {
            json!({})
        };
        json!({
            "Name": self.name,
            "Id": self.id(machine_id),
            "Created": ZERO_TIME,
            "Scope": "local",
            "Driver": self.driver,
            "EnableIPv4": true,
            "EnableIPv6": false,
            "IPAM": { "Driver": "default", "Options": null, "Config": [] },
            "Internal": false,
            "Attachable": false,
            "Ingress": false,
            "ConfigFrom": { "Network": "" },
            "ConfigOnly": false,
            "Containers": {},
            "Options": options,
            "Labels": {},
        })
    }
}
