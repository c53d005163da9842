use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use proptest::prelude::*;
use prost::Message;
use serde_json::json;

use super::*;
use crate::{
    api::{
        Config, ConfigReference, ConfigSpec, ContainerSpec, ContainerStatus, DriverState, Endpoint,
        EndpointMode, EndpointSpec, FileTarget, Meta, Mount, MountType, Network, NetworkAttachment,
        NetworkAttachmentConfig, NetworkSpec, NodeDescription, Placement, PlacementPreference,
        Platform, PortConfig, Protocol, PublishMode, ResourceRequirements, Resources,
        RestartPolicy, Secret, SecretReference, SecretSpec, SpreadOver, Task, TaskSpec, TaskState,
        TaskStatus, VirtualIp,
        container::{DnsConfig, TmpfsOptions, Ulimit},
        task::{LogDriver, RestartCondition},
    },
    id::Id,
};

fn networks() -> Vec<Network> {
    let network = |entropy, name: &str, vni, subnet: [u8; 4], prefix, ingress| Network {
        id: Id::from_entropy(entropy),
        meta: Meta::default(),
        spec: NetworkSpec {
            name: name.to_owned(),
            driver: "overlay".to_owned(),
            ingress,
            ..NetworkSpec::default()
        },
        state: Some(DriverState {
            vni,
            subnet: subnet.into(),
            prefix,
            gateway: Ipv4Addr::new(subnet[0], subnet[1], subnet[2], 1),
            last_given: None,
        }),
    };
    vec![
        network(1, "ingress", 4096, [10, 255, 0, 0], 16, true),
        network(2, "my-demo", 4097, [10, 0, 0, 0], 24, false),
    ]
}

fn mounts() -> Vec<Mount> {
    let tmpfs = Mount {
        kind: MountType::Tmpfs,
        target: "/t".to_owned(),
        read_only: true,
        tmpfs_options: Some(TmpfsOptions {
            size_bytes: 4096,
            mode: 0o700,
        }),
        ..Mount::default()
    };
    let bind = Mount {
        source: "/srv".to_owned(),
        target: "/b".to_owned(),
        bind_options: Some(json!({"Propagation": "rslave"})),
        ..Mount::default()
    };
    let volume = Mount {
        kind: MountType::Volume,
        source: "data".to_owned(),
        target: "/v".to_owned(),
        volume_options: Some(json!({
            "NoCopy": true,
            "Labels": {"a": "b"},
            "DriverConfig": {"Name": "local", "Options": {"o": "x"}},
        })),
        ..Mount::default()
    };
    vec![tmpfs, bind, volume]
}

fn file_target(name: &str, mode: u32) -> FileTarget {
    FileTarget {
        name: name.to_owned(),
        uid: "33".to_owned(),
        gid: "34".to_owned(),
        mode,
    }
}

fn a_secret() -> Secret {
    Secret {
        id: Id::from_entropy(20),
        meta: Meta {
            version: 3,
            created_at: Timestamp(1_700_000_000_000_000_000),
            updated_at: Timestamp(1_700_000_000_000_000_001),
        },
        spec: SecretSpec {
            name: "db-1".to_owned(),
            labels: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
            data: b"canary\0\xff".to_vec().into(),
            ..SecretSpec::default()
        },
    }
}

fn a_config() -> Config {
    Config {
        id: Id::from_entropy(21),
        meta: Meta::default(),
        spec: ConfigSpec {
            name: "site-1".to_owned(),
            data: b"canary".to_vec().into(),
            ..ConfigSpec::default()
        },
    }
}

fn container_spec() -> ContainerSpec {
    let texts = |words: &[&str]| {
        words
            .iter()
            .map(|&word| word.to_owned())
            .collect::<Vec<_>>()
    };
    ContainerSpec {
        image: "whoami:latest".to_owned(),
        labels: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
        command: texts(&["/whoami"]),
        args: texts(&["--port", "8000"]),
        hostname: "h".to_owned(),
        env: texts(&["A=1"]),
        dir: "/srv".to_owned(),
        user: "1:2".to_owned(),
        groups: texts(&["3"]),
        secrets: vec![SecretReference {
            file: Some(file_target("db", 0o400)),
            secret_id: Id::<Secret>::from_entropy(20).to_string(),
            secret_name: "db-1".to_owned(),
        }],
        configs: vec![ConfigReference {
            file: Some(file_target("/etc/site.conf", 0o444)),
            runtime: None,
            config_id: Id::<Config>::from_entropy(21).to_string(),
            config_name: "site-1".to_owned(),
        }],
        tty: true,
        open_stdin: true,
        read_only: true,
        mounts: mounts(),
        stop_signal: "SIGINT".to_owned(),
        stop_grace_period: Some(Duration::from_millis(2500)),
        hosts: texts(&["1.2.3.4 x"]),
        dns_config: Some(DnsConfig {
            nameservers: texts(&["9.9.9.9"]),
            search: texts(&["example"]),
            options: texts(&["ndots:2"]),
        }),
        init: Some(true),
        sysctls: BTreeMap::from([("net.ipv4.x".to_owned(), "1".to_owned())]),
        capability_add: texts(&["NET_ADMIN"]),
        capability_drop: texts(&["MKNOD"]),
        ulimits: vec![Ulimit {
            name: "nofile".to_owned(),
            hard: 10,
            soft: 5,
        }],
        oom_score_adj: 7,
        ..ContainerSpec::default()
    }
}

fn task_spec() -> TaskSpec {
    TaskSpec {
        container_spec: Some(container_spec()),
        resources: Some(ResourceRequirements {
            limits: Some(Resources {
                nano_cpus: 500_000_000,
                memory_bytes: 1 << 26,
                pids: 64,
                ..Resources::default()
            }),
            reservations: Some(Resources {
                memory_bytes: 1 << 20,
                ..Resources::default()
            }),
            swap_bytes: Some(1),
            memory_swappiness: Some(0),
        }),
        restart_policy: Some(RestartPolicy {
            condition: Some(RestartCondition::OnFailure),
            delay: Some(Duration::from_secs(5)),
            max_attempts: Some(3),
            window: Some(Duration::from_secs(60)),
        }),
        placement: Some(Placement {
            constraints: vec!["node.role==worker".to_owned()],
            preferences: vec![PlacementPreference {
                spread: Some(SpreadOver {
                    spread_descriptor: "node.labels.zone".to_owned(),
                }),
            }],
            max_replicas: 1,
            platforms: vec![Platform {
                architecture: "x86_64".to_owned(),
                os: "linux".to_owned(),
            }],
        }),
        networks: vec![NetworkAttachmentConfig {
            target: "my-demo".to_owned(),
            aliases: vec!["w".to_owned()],
            driver_opts: BTreeMap::new(),
        }],
        log_driver: Some(LogDriver {
            name: "json-file".to_owned(),
            options: BTreeMap::from([("max-size".to_owned(), "1m".to_owned())]),
        }),
        force_update: 2,
        ..TaskSpec::default()
    }
}

fn full_task() -> Task {
    let port = PortConfig {
        name: "web".to_owned(),
        protocol: Protocol::Udp,
        target_port: 8000,
        published_port: 30000,
        publish_mode: PublishMode::Ingress,
    };
    let attachment = |entropy, address: &str| NetworkAttachment {
        network_id: Id::from_entropy(entropy),
        addresses: vec![address.to_owned()],
        aliases: vec!["w".to_owned()],
    };
    Task {
        id: Id::from_entropy(10),
        meta: Meta {
            version: 9,
            created_at: Timestamp(1_700_000_000_123_456_789),
            updated_at: Timestamp(1_700_000_001_000_000_000),
        },
        spec: task_spec(),
        spec_version: 8,
        service_id: Id::from_entropy(11),
        service_name: "whoami".to_owned(),
        service_labels: BTreeMap::from([("x".to_owned(), "y".to_owned())]),
        slot: 2,
        node_id: Some(Id::from_entropy(12)),
        status: TaskStatus {
            timestamp: Timestamp(1_700_000_000_000_000_001),
            state: TaskState::Running,
            message: "started".to_owned(),
            err: String::new(),
            container_status: Some(ContainerStatus {
                container_id: "c".repeat(64),
                pid: 4711,
                exit_code: 0,
            }),
            port_status: vec![port.clone()],
        },
        desired_state: TaskState::Running,
        networks: vec![attachment(1, "10.255.0.5/16"), attachment(2, "10.0.0.3/24")],
        endpoint: Endpoint {
            spec: Some(EndpointSpec {
                mode: EndpointMode::Vip,
                ports: vec![port.clone()],
            }),
            ports: vec![port],
            virtual_ips: vec![VirtualIp {
                network_id: Id::from_entropy(2),
                addr: Ipv4Addr::new(10, 0, 0, 2),
                mark: 0,
            }],
        },
        not_before: None,
        predecessor: None,
        running_since: None,
        job_iteration: Some(3),
    }
}

fn encoded(original: &Task) -> pb::Task {
    let networks = networks();
    task(original, &|id| {
        networks.iter().find(|network| network.id == *id)
    })
}

#[test]
fn a_task_survives_the_wire_whole() {
    let original = full_task();
    let bytes = encoded(&original).encode_to_vec();
    let decoded = pb::Task::decode(bytes.as_slice()).unwrap();
    assert_eq!(read_task(decoded), Ok(original));
}

#[test]
fn secrets_and_configs_survive_the_wire_and_are_not_shown() {
    let message = secret(&a_secret());
    let shown = format!("{message:?}");
    assert!(
        shown.contains("8 bytes") && !shown.contains("99, 97, 110"),
        "{shown}"
    );
    let bytes = message.encode_to_vec();
    let decoded = pb::Secret::decode(bytes.as_slice()).unwrap();
    assert_eq!(read_secret(decoded), Ok(a_secret()));
    let message = config(&a_config());
    let shown = format!("{message:?}");
    assert!(
        shown.contains("6 bytes") && !shown.contains("99, 97, 110"),
        "{shown}"
    );
    let bytes = message.encode_to_vec();
    let decoded = pb::Config::decode(bytes.as_slice()).unwrap();
    assert_eq!(read_config(decoded), Ok(a_config()));
}

#[test]
fn what_is_no_secret_is_refused_by_name() {
    type Change = fn(&mut pb::Secret);
    fn spec(secret: &mut pb::Secret) -> &mut pb::SecretSpec {
        secret.spec.as_mut().unwrap()
    }
    let cases: [(Change, &str); 4] = [
        (|it| it.id = "a.b".to_owned(), "secret.id"),
        (|it| spec(it).data = vec![0; 512_000], "secret.data"),
        (
            |it| spec(it).driver = Some(pb::Driver::default()),
            "secret.driver",
        ),
        (
            |it| spec(it).templating = Some(pb::Driver::default()),
            "secret.templating",
        ),
    ];
    for (change, field) in cases {
        let mut message = secret(&a_secret());
        change(&mut message);
        assert_eq!(read_secret(message).unwrap_err().field, field);
    }
    let mut message = config(&a_config());
    message.spec.as_mut().unwrap().data = vec![0; 1_024_000];
    assert_eq!(read_config(message).unwrap_err().field, "config.data");
}

#[test]
fn every_propagation_survives_the_wire() {
    for name in [
        "private", "rprivate", "shared", "rshared", "slave", "rslave",
    ] {
        let mut bind = mounts().remove(1);
        bind.bind_options = Some(json!({ "Propagation": name }));
        let message = mount::mount(&bind);
        assert_eq!(mount::read_mount(message), Ok(bind));
    }
}

#[test]
fn options_of_another_kind_of_mount_do_not_travel() {
    let mut volume = mounts().remove(2);
    volume.bind_options = Some(json!({}));
    volume.tmpfs_options = Some(TmpfsOptions::default());
    let message = mount::mount(&volume);
    assert_eq!((message.bind_options, message.tmpfs_options), (None, None));
}

#[test]
fn what_a_docker_node_dereferences_is_set() {
    let message = encoded(&full_task());
    for attachment in &message.networks {
        let network = attachment.network.as_ref().unwrap();
        assert!(network.driver_state.is_some());
        assert!(network.ipam.as_ref().unwrap().driver.is_some());
    }
    let first = message.networks[0].network.as_ref().unwrap();
    assert_eq!(
        first.driver_state.as_ref().unwrap().options["com.docker.network.driver.overlay.vxlanid_list"],
        "4096"
    );
    assert_eq!(message.endpoint.unwrap().virtual_ips[0].addr, "10.0.0.2/24");
}

#[test]
fn an_attachment_to_a_vanished_network_is_left_out() {
    let message = task(&full_task(), &|_| None);
    assert!(message.networks.is_empty());
}

#[test]
fn what_cannot_be_honoured_is_refused_by_name() {
    type Change = fn(&mut pb::Task);
    fn container(task: &mut pb::Task) -> &mut pb::ContainerSpec {
        match task.spec.as_mut().unwrap().runtime.as_mut().unwrap() {
            pb::task_spec::Runtime::Container(container) => container,
            pb::task_spec::Runtime::Attachment(_) | pb::task_spec::Runtime::Generic(_) => {
                panic!("a container")
            }
        }
    }
    fn bind(task: &mut pb::Task) -> &mut pb::mount::BindOptions {
        container(task).mounts[1].bind_options.as_mut().unwrap()
    }
    let cases: [(Change, &str); 11] = [
        (|task| task.id = "no".to_owned(), "id"),
        (|task| task.desired_state = 5, "desired_state"),
        (
            |task| task.volumes.push(pb::VolumeAttachment::default()),
            "volumes",
        ),
        (
            |task| container(task).secrets[0].target = None,
            "spec.container.secrets.target",
        ),
        (
            |task| {
                let runtime = pb::config_reference::Target::Runtime(pb::RuntimeTarget {});
                container(task).configs[0].target = Some(runtime);
            },
            "spec.container.configs.runtime",
        ),
        (
            |task| container(task).healthcheck = Some(pb::HealthConfig::default()),
            "spec.container.healthcheck",
        ),
        (
            |task| container(task).mounts[0].r#type = pb::mount::MountType::Cluster.into(),
            "spec.container.mounts.type",
        ),
        (
            |task| bind(task).propagation = 9,
            "spec.container.mounts.bind_options.propagation",
        ),
        (
            |task| bind(task).nonrecursive = true,
            "spec.container.mounts.bind_options",
        ),
        (
            |task| {
                let tmpfs = container(task).mounts[0].tmpfs_options.as_mut();
                tmpfs.unwrap().options = "exec".to_owned();
            },
            "spec.container.mounts.tmpfs_options.options",
        ),
        (
            |task| task.endpoint.as_mut().unwrap().ports[0].target_port = 70_000,
            "ports.target_port",
        ),
    ];
    for (change, field) in cases {
        let mut message = encoded(&full_task());
        change(&mut message);
        assert_eq!(read_task(message).unwrap_err().field, field);
    }
}

#[test]
fn status_texts_are_cut_at_a_character() {
    let message = pb::TaskStatus {
        err: "é".repeat(4000),
        ..pb::TaskStatus::default()
    };
    assert_eq!(read_status(message).unwrap().err, "é".repeat(2048));
}

#[test]
fn descriptions_survive_and_are_bounded() {
    let original = NodeDescription {
        hostname: "swarm-worker1".to_owned(),
        platform: Platform {
            architecture: "x86_64".to_owned(),
            os: "linux".to_owned(),
        },
        resources: Resources {
            nano_cpus: 2_000_000_000,
            memory_bytes: 1 << 30,
            ..Resources::default()
        },
        engine: crate::api::EngineDescription {
            engine_version: "0.1.0".to_owned(),
            labels: BTreeMap::new(),
            plugins: vec![("Network".to_owned(), "overlay".to_owned())],
        },
        ..NodeDescription::default()
    };
    assert_eq!(
        read_description(description(&original)),
        Ok(original.clone())
    );
    let mut long = description(&original);
    long.hostname = "x".repeat(257);
    assert_eq!(
        read_description(long).unwrap_err().field,
        "description.hostname"
    );
    let mut many = description(&original);
    many.engine.as_mut().unwrap().plugins = vec![pb::PluginDescription::default(); 257];
    assert_eq!(
        read_description(many).unwrap_err().field,
        "description.engine"
    );
}

proptest! {
    #[test]
    fn hostile_bytes_never_break_the_reading(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        if let Ok(message) = pb::Task::decode(bytes.as_slice()) {
            let _ = read_task(message);
        }
        if let Ok(message) = pb::NodeDescription::decode(bytes.as_slice()) {
            let _ = read_description(message);
        }
        if let Ok(message) = pb::Secret::decode(bytes.as_slice()) {
            let _ = read_secret(message);
        }
        if let Ok(message) = pb::Config::decode(bytes.as_slice()) {
            let _ = read_config(message);
        }
        if let Ok(message) = pb::TaskStatus::decode(bytes.as_slice()) {
            let _ = read_status(message);
        }
    }

    #[test]
    fn damaged_tasks_never_break_the_reading(at in any::<prop::sample::Index>(), value: u8) {
        let mut bytes = encoded(&full_task()).encode_to_vec();
        let at = at.index(bytes.len());
        bytes[at] = value;
        if let Ok(message) = pb::Task::decode(bytes.as_slice()) {
            let _ = read_task(message);
        }
    }

    #[test]
    fn times_survive(seconds in 0..=253_402_300_799_i64, nanos in 0..1_000_000_000_i64) {
        let moment = Timestamp(i128::from(seconds) * 1_000_000_000 + i128::from(nanos));
        prop_assert_eq!(read_timestamp(Some(&timestamp(moment))), moment);
    }
}
