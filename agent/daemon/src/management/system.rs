//! `version`, `info` and ping: facts about this node and its part in a swarm.

use serde_json::{Map, Value, json};
use skep_core::{api::Role, store::View};

use super::{
    Management,
    port::{ContainerState, LocalInfo},
    render,
};
use crate::cluster::{LocalNodeState, SwarmStatus};

/// The newest version of the Engine API that is served: that of Debian 13's client.
pub const API_VERSION: &str = "1.45";
/// The oldest one that is served, Docker's own floor.
pub const MIN_API_VERSION: &str = "1.24";
/// Version of the agent.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

impl Management {
    /// The value of the `Swarm` header of a ping.
    pub fn swarm_header(&self) -> String {
        let status = self.cluster.status();
        match status.state {
            LocalNodeState::Active if self.is_manager(&status) => "active/manager".to_owned(),
            LocalNodeState::Active => "active/worker".to_owned(),
            LocalNodeState::Inactive => "inactive".to_owned(),
            LocalNodeState::Pending => "pending".to_owned(),
            LocalNodeState::Locked => "locked".to_owned(),
            LocalNodeState::Error => "error".to_owned(),
        }
    }

    fn is_manager(&self, status: &SwarmStatus) -> bool {
        status.role == Role::Manager && self.cluster.view().is_some()
    }

    /// The document of `GET /version`.
    pub fn version(&self) -> Value {
        let info = self.local.info();
        json!({
            "Platform": { "Name": "Skep" },
            "Components": [{
                "Name": "Engine",
                "Version": VERSION,
                "Details": {
                    "ApiVersion": API_VERSION,
                    "Arch": go_arch(&info.platform.architecture),
                    "BuildTime": "",
                    "Experimental": "false",
                    "GitCommit": "",
                    "GoVersion": "",
                    "KernelVersion": info.kernel,
                    "MinAPIVersion": MIN_API_VERSION,
                    "Os": "linux",
                },
            }],
            "Version": VERSION,
            "ApiVersion": API_VERSION,
            "MinAPIVersion": MIN_API_VERSION,
            "GitCommit": "",
            "GoVersion": "",
            "Os": "linux",
            "Arch": go_arch(&info.platform.architecture),
            "KernelVersion": info.kernel,
            "BuildTime": "",
        })
    }

    /// The document of `GET /info`.
    pub async fn info(&self) -> Value {
        let info = self.local.info();
        let containers = self.local.containers().await.unwrap_or_default();
        let count = |state| {
            let matching = containers.iter().filter(|one| one.state == state);
            matching.count()
        };
        let mut out = engine_facts(&info);
        let running = count(ContainerState::Running);
        out.insert("Containers".to_owned(), json!(containers.len()));
        out.insert("ContainersRunning".to_owned(), json!(running));
        out.insert("ContainersPaused".to_owned(), json!(0));
        out.insert(
            "ContainersStopped".to_owned(),
            json!(containers.len() - running),
        );
        out.insert("Swarm".to_owned(), self.swarm_info());
        Value::Object(out)
    }

    /// `Swarm` of `GET /info`.
    fn swarm_info(&self) -> Value {
        let status = self.cluster.status();
        let managers: Vec<Value> = status
            .managers
            .iter()
            .map(|(id, addr)| json!({ "NodeID": id, "Addr": addr }))
            .collect();
        let mut out = Map::new();
        out.insert("NodeID".to_owned(), json!(status.node_id));
        if status.node_id.is_none() {
            out.insert("NodeID".to_owned(), json!(""));
        }
        let addr = status.node_addr.map(|addr| addr.to_string());
        out.insert("NodeAddr".to_owned(), json!(addr.unwrap_or_default()));
        out.insert("LocalNodeState".to_owned(), json!(status.state));
        out.insert("Error".to_owned(), json!(status.error));
        out.insert(
            "ControlAvailable".to_owned(),
            json!(self.is_manager(&status)),
        );
        if managers.is_empty() {
            out.insert("RemoteManagers".to_owned(), Value::Null);
        } else {
            out.insert("RemoteManagers".to_owned(), json!(managers));
        }
        if let Some(view) = self.cluster.view() {
            add_cluster(&mut out, &view);
        }
        Value::Object(out)
    }
}

fn add_cluster(out: &mut Map<String, Value>, view: &View) {
    let managers = view
        .nodes()
        .filter(|node| node.spec.role == Role::Manager)
        .count();
    out.insert("Nodes".to_owned(), json!(view.nodes().count()));
    out.insert("Managers".to_owned(), json!(managers));
    if let Some(cluster) = view.cluster() {
        out.insert("Cluster".to_owned(), render::swarm::cluster(cluster));
    }
}

/// What does not change with the swarm. Fields that have no meaning here have Docker's zero value.
fn engine_facts(info: &LocalInfo) -> Map<String, Value> {
    let insecure: Map<String, Value> = info
        .insecure_registries
        .iter()
        .map(|name| {
            let entry = json!({ "Name": name, "Mirrors": [], "Secure": false, "Official": false });
            (name.clone(), entry)
        })
        .collect();
    let mut facts = fields(json!({
        "ID": info.machine_id,
        "Name": info.name,
        "Images": info.images,
        "KernelVersion": info.kernel,
        "OperatingSystem": info.operating_system,
        "OSVersion": "",
        "OSType": "linux",
        "Architecture": info.platform.architecture,
        "NCPU": info.cpus,
        "MemTotal": info.memory,
        "DockerRootDir": info.root,
        "RegistryConfig": {
            "InsecureRegistryCIDRs": [],
            "IndexConfigs": insecure,
            "Mirrors": info.registry_mirrors,
        },
        "IndexServerAddress": "",
        "ServerVersion": VERSION,
        "Labels": [],
        "Warnings": null,
    }));
    facts.append(&mut fields(what_skep_is()));
    facts
}

/// What is the same on every node.
fn what_skep_is() -> Value {
    json!({
        "Driver": "overlay",
        "DriverStatus": [["Backing Filesystem", "overlayfs"]],
        "Plugins": {
            "Volume": ["local"],
            "Network": ["overlay"],
            "Authorization": null,
            "Log": ["json-file"],
        },
        "MemoryLimit": true,
        "SwapLimit": true,
        "CpuCfsPeriod": true,
        "CpuCfsQuota": true,
        "CPUShares": true,
        "CPUSet": true,
        "PidsLimit": true,
        "IPv4Forwarding": true,
        "BridgeNfIptables": true,
        "BridgeNfIp6tables": true,
        "Debug": false,
        "LoggingDriver": "json-file",
        "CgroupDriver": "none",
        "CgroupVersion": "2",
        "ExperimentalBuild": false,
        "Runtimes": { "skep-shim": { "path": "/usr/libexec/skep/skep-shim" } },
        "DefaultRuntime": "skep-shim",
        "LiveRestoreEnabled": true,
        "InitBinary": "",
        "ContainerdCommit": { "ID": "", "Expected": "" },
        "RuncCommit": { "ID": "", "Expected": "" },
        "InitCommit": { "ID": "", "Expected": "" },
        "SecurityOptions": ["name=seccomp,profile=builtin", "name=cgroupns"],
    })
}

/// The fields of a document that is an object.
fn fields(document: Value) -> Map<String, Value> {
    match document {
        Value::Object(fields) => fields,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Map::new()
        }
    }
}

/// Go's name of a machine kind.
fn go_arch(machine: &str) -> &str {
    match machine {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
