//! Documents against those that Docker 26.1 gave for the same objects (`docker/`), and against golden ones
//! where only the shape can be compared.

use serde_json::{Value, json};
use skep_core::{
    api::{
        Cluster, ContainerStatus, DriverState, Endpoint, EngineDescription, JobStatus, JoinTokens,
        ManagerStatus, Meta, Network, NetworkAttachment, NetworkSpec, Node, NodeDescription,
        NodeSpec, NodeState, NodeStatus, Platform, Reachability, Resources, Role, RootCa, Service,
        ServiceSpec, Task, TaskState, TaskStatus, VirtualIp, node::Certificate,
    },
    id::Id,
    time::Timestamp,
};

use crate::management::document;

fn docker(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn moment(text: &Value) -> Timestamp {
    serde_json::from_value(text.clone()).unwrap()
}

fn meta(document: &Value) -> Meta {
    Meta {
        version: document["Version"]["Index"].as_u64().unwrap_or(0),
        created_at: moment(&document["CreatedAt"]),
        updated_at: moment(&document["UpdatedAt"]),
    }
}

#[test]
fn a_service_is_as_docker_shows_it() {
    let wanted = docker(include_str!("docker/service.json"));
    let sent = json!({
        "Name": "whoami",
        "Labels": {},
        "TaskTemplate": {
            "ContainerSpec": {
                "Image": wanted["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"],
                "Init": false,
                "DNSConfig": {},
                "Isolation": "default",
            },
            "Resources": { "Limits": {}, "Reservations": {} },
            "Placement": { "Platforms": [{ "Architecture": "amd64", "OS": "linux" }] },
            "Networks": [{ "Target": "pcad2s1xm5nzhp9dvjlkmwwcw" }],
            "ForceUpdate": 0,
        },
        "Mode": { "Replicated": { "Replicas": 3 } },
        "EndpointSpec": wanted["Spec"]["EndpointSpec"],
    });
    let spec: ServiceSpec = document::parse(sent.to_string().as_bytes()).unwrap();
    let vip = |position: usize, mark| {
        let given = &wanted["Endpoint"]["VirtualIPs"][position];
        let addr = given["Addr"].as_str().unwrap().split('/').next().unwrap();
        VirtualIp {
            network_id: serde_json::from_value(given["NetworkID"].clone()).unwrap(),
            addr: addr.parse().unwrap(),
            mark,
        }
    };
    let ports = serde_json::from_value(wanted["Endpoint"]["Ports"].clone()).unwrap();
    let service = Service {
        id: serde_json::from_value(wanted["ID"].clone()).unwrap(),
        meta: meta(&wanted),
        previous_spec: None,
        spec_version: 33,
        endpoint: Endpoint {
            spec: spec.endpoint_spec.clone(),
            ports,
            virtual_ips: vec![vip(0, 256), vip(1, 257)],
        },
        spec,
        update_status: None,
        job_status: None,
        pending_delete: false,
    };
    let mut shown = super::service::service(&service, |_| Some(24));
    assert_eq!(
        shown["Spec"], sent,
        "a stored spec is the one that was sent"
    );
    shown["Spec"] = super::service::with_defaults(&service.spec);
    assert_eq!(shown, wanted);
}

#[test]
fn a_job_shows_its_run_and_has_no_settings_for_updates() {
    let mode = json!({ "ReplicatedJob": { "MaxConcurrent": 2, "TotalCompletions": 3 } });
    let spec = json!({
        "Name": "sum",
        "TaskTemplate": { "ContainerSpec": { "Image": "busybox" } },
        "Mode": mode,
    });
    let spec: ServiceSpec = document::parse(spec.to_string().as_bytes()).unwrap();
    let service = Service {
        id: id(6),
        meta: any_meta(),
        spec,
        previous_spec: None,
        spec_version: 12,
        endpoint: Endpoint::default(),
        update_status: None,
        job_status: Some(JobStatus {
            job_iteration: 4,
            last_execution: at(2),
        }),
        pending_delete: false,
    };
    let shown = super::service::service(&service, |_| None);
    assert_eq!(shown["Spec"]["Mode"], mode);
    let run = json!({ "JobIteration": { "Index": 4 }, "LastExecution": at(2) });
    assert_eq!(shown["JobStatus"], run);
    let whole = super::service::with_defaults(&service.spec);
    assert_eq!(
        (&whole["UpdateConfig"], &whole["RollbackConfig"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(whole["Mode"], mode);
    document::parse::<ServiceSpec>(whole.to_string().as_bytes()).unwrap();
}

#[test]
fn a_network_is_as_docker_shows_it() {
    let wanted = docker(include_str!("docker/network.json"));
    let network = Network {
        id: serde_json::from_value(wanted["Id"].clone()).unwrap(),
        meta: Meta {
            version: 1,
            created_at: moment(&wanted["Created"]),
            updated_at: moment(&wanted["Created"]),
        },
        spec: NetworkSpec {
            name: "my-demo".to_owned(),
            driver: "overlay".to_owned(),
            ..NetworkSpec::default()
        },
        state: Some(DriverState {
            vni: 4097,
            subnet: "10.0.1.0".parse().unwrap(),
            prefix: 24,
            gateway: "10.0.1.1".parse().unwrap(),
            last_given: None,
        }),
    };
    let shown = super::network::network(&network);
    for (key, value) in wanted.as_object().unwrap() {
        // Clients of Go read an empty map and null as the same.
        if key == "Labels" {
            assert!(shown[key].as_object().unwrap().is_empty());
        } else {
            assert_eq!(&shown[key], value, "{key}");
        }
    }
}

fn id<K>(number: u128) -> Id<K> {
    Id::from_entropy(number)
}

fn at(seconds: i128) -> Timestamp {
    Timestamp((1_700_000_000 + seconds) * 1_000_000_000)
}

fn any_meta() -> Meta {
    Meta {
        version: 12,
        created_at: at(0),
        updated_at: at(1),
    }
}

#[test]
fn a_manager_node() {
    let node = Node {
        id: id(1),
        meta: any_meta(),
        spec: NodeSpec {
            role: Role::Manager,
            ..NodeSpec::default()
        },
        description: Some(NodeDescription {
            hostname: "swarm-manager".to_owned(),
            platform: Platform {
                architecture: "x86_64".to_owned(),
                os: "linux".to_owned(),
            },
            resources: Resources {
                nano_cpus: 2_000_000_000,
                memory_bytes: 2_062_471_168,
                ..Resources::default()
            },
            engine: EngineDescription {
                engine_version: "0.1.0".to_owned(),
                plugins: vec![("Network".to_owned(), "overlay".to_owned())],
                ..EngineDescription::default()
            },
            ..NodeDescription::default()
        }),
        status: NodeStatus {
            state: NodeState::Ready,
            addr: "192.168.77.11".parse().ok(),
            ..NodeStatus::default()
        },
        manager_status: Some(ManagerStatus {
            raft_id: 1,
            leader: true,
            reachability: Reachability::Reachable,
            addr: "192.168.77.11:2377".to_owned(),
        }),
        certificate: Certificate::default(),
        networks: Vec::new(),
    };
    insta::assert_json_snapshot!(super::node::node(&node, &json!({ "TrustRoot": "PEM" })));
}

#[test]
fn a_running_task() {
    let network = Network {
        id: id(3),
        meta: any_meta(),
        spec: NetworkSpec::ingress("10.255.0.0/16"),
        state: Some(DriverState {
            vni: 4096,
            subnet: "10.255.0.0".parse().unwrap(),
            prefix: 16,
            gateway: "10.255.0.1".parse().unwrap(),
            last_given: None,
        }),
    };
    let spec = json!({ "ContainerSpec": { "Image": "whoami:1" } });
    let task = Task {
        id: id(4),
        meta: any_meta(),
        spec: serde_json::from_value(spec).unwrap(),
        spec_version: 9,
        service_id: id(5),
        service_name: "whoami".to_owned(),
        service_labels: skep_core::api::Labels::new(),
        slot: 2,
        node_id: Some(id(1)),
        status: TaskStatus {
            timestamp: at(5),
            state: TaskState::Running,
            message: "started".to_owned(),
            container_status: Some(ContainerStatus {
                container_id: "5e".repeat(32),
                pid: 4711,
                exit_code: 0,
            }),
            ..TaskStatus::default()
        },
        desired_state: TaskState::Running,
        networks: vec![NetworkAttachment {
            network_id: id(3),
            addresses: vec!["10.255.0.6/16".to_owned()],
            aliases: Vec::new(),
        }],
        endpoint: Endpoint::default(),
        not_before: None,
        predecessor: None,
        running_since: None,
        job_iteration: None,
    };
    let document = super::task::task(&task, |_| Some(super::network::attached(&network)));
    insta::assert_json_snapshot!(document);
}

#[test]
fn a_swarm_has_its_tokens_and_no_key() {
    let cluster = Cluster {
        id: id(6),
        meta: any_meta(),
        spec: skep_core::api::ClusterSpec::default(),
        root_ca: RootCa {
            certificate: "not a certificate".to_owned(),
            key: "secret".to_owned(),
            join_tokens: JoinTokens {
                worker: "SWMTKN-1-x-w".to_owned(),
                manager: "SWMTKN-1-x-m".to_owned(),
            },
        },
        data_path_port: 4789,
        default_addr_pool: vec!["10.0.0.0/8".to_owned()],
        subnet_size: 24,
        ingress_subnet: "10.255.0.0/16".to_owned(),
        unlock_key: None,
        removed_nodes: std::collections::BTreeMap::new(),
    };
    let document = super::swarm::swarm(&cluster);
    assert!(!document.to_string().contains("secret"));
    insta::assert_json_snapshot!(document);
}
