//! Bytes of each message that travels on 2377, as the protocol has them: field numbers and types cannot
//! change unnoticed. The bytes are written out by hand from the field tables, not taken from the encoder.

use std::fmt::Debug;

use prost::Message;

use super::{skep, swarmkit as pb};

/// One field: its number and wire type as a tag byte, then its bytes.
fn field(number: u8, kind: u8, bytes: &[u8]) -> Vec<u8> {
    let mut all = vec![(number << 3) | kind];
    all.extend_from_slice(bytes);
    all
}

fn varint(number: u8, value: u8) -> Vec<u8> {
    assert!(value < 0x80);
    field(number, 0, &[value])
}

fn bytes(number: u8, content: &[u8]) -> Vec<u8> {
    let mut all = vec![u8::try_from(content.len()).unwrap()];
    assert!(all[0] < 0x80);
    all.extend_from_slice(content);
    field(number, 2, &all)
}

fn check<M: Message + Default + PartialEq + Debug>(message: &M, golden: &[Vec<u8>]) {
    let golden = golden.concat();
    assert_eq!(message.encode_to_vec(), golden, "{message:?}");
    assert_eq!(M::decode(golden.as_slice()).as_ref(), Ok(message));
}

#[test]
fn certificates() {
    check(&pb::GetRootCaCertificateRequest {}, &[]);
    let certificate = b"PEM".to_vec();
    check(
        &pb::GetRootCaCertificateResponse { certificate },
        &[bytes(1, b"PEM")],
    );
    check(
        &pb::IssueNodeCertificateRequest {
            role: pb::NodeRole::Manager.into(),
            csr: b"CSR".to_vec(),
            token: "SWMTKN".to_owned(),
            availability: pb::node_spec::Availability::Drain.into(),
        },
        &[
            varint(1, 1),
            bytes(2, b"CSR"),
            bytes(3, b"SWMTKN"),
            varint(4, 2),
        ],
    );
    check(
        &pb::IssueNodeCertificateResponse {
            node_id: "n".to_owned(),
            node_membership: pb::node_spec::Membership::Accepted.into(),
        },
        &[bytes(1, b"n"), varint(2, 1)],
    );
    let node_id = "n".to_owned();
    check(
        &pb::NodeCertificateStatusRequest { node_id },
        &[bytes(1, b"n")],
    );
    let status = pb::IssuanceStatus {
        state: pb::issuance_status::State::Issued.into(),
        err: "e".to_owned(),
    };
    let status_bytes = [varint(1, 3), bytes(2, b"e")].concat();
    check(
        &pb::NodeCertificateStatusResponse {
            status: Some(status.clone()),
            certificate: Some(pb::Certificate {
                role: pb::NodeRole::Manager.into(),
                csr: b"CSR".to_vec(),
                status: Some(status),
                certificate: b"PEM".to_vec(),
                cn: "n".to_owned(),
            }),
        },
        &[
            bytes(1, &status_bytes),
            bytes(
                2,
                &[
                    varint(1, 1),
                    bytes(2, b"CSR"),
                    bytes(3, &status_bytes),
                    bytes(4, b"PEM"),
                    bytes(5, b"n"),
                ]
                .concat(),
            ),
        ],
    );
}

#[test]
fn descriptions() {
    check(
        &pb::SessionRequest {
            description: Some(pb::NodeDescription {
                hostname: "h".to_owned(),
                platform: Some(pb::Platform {
                    architecture: "a".to_owned(),
                    os: "l".to_owned(),
                }),
                resources: Some(pb::Resources {
                    nano_cpus: 1,
                    memory_bytes: 2,
                    generic: Vec::new(),
                }),
                engine: Some(pb::EngineDescription {
                    engine_version: "v".to_owned(),
                    plugins: vec![pb::PluginDescription {
                        r#type: "t".to_owned(),
                        name: "p".to_owned(),
                    }],
                    ..pb::EngineDescription::default()
                }),
                ..pb::NodeDescription::default()
            }),
            session_id: "s".to_owned(),
        },
        &[
            bytes(
                1,
                &[
                    bytes(1, b"h"),
                    bytes(2, &[bytes(1, b"a"), bytes(2, b"l")].concat()),
                    bytes(3, &[varint(1, 1), varint(2, 2)].concat()),
                    bytes(
                        4,
                        &[
                            bytes(1, b"v"),
                            bytes(3, &[bytes(1, b"t"), bytes(2, b"p")].concat()),
                        ]
                        .concat(),
                    ),
                ]
                .concat(),
            ),
            bytes(2, b"s"),
        ],
    );
}

#[test]
fn sessions() {
    check(
        &pb::SessionMessage {
            session_id: "s".to_owned(),
            node: Some(pb::Node {
                id: "n".to_owned(),
                role: pb::NodeRole::Manager.into(),
                vxlanudp_port: 99,
                ..pb::Node::default()
            }),
            managers: vec![pb::WeightedPeer {
                peer: Some(pb::Peer {
                    node_id: "m".to_owned(),
                    addr: "a".to_owned(),
                }),
                weight: 10,
            }],
            network_bootstrap_keys: vec![pb::EncryptionKey {
                subsystem: "k".to_owned(),
                key: b"16".to_vec(),
                lamport_time: 5,
                ..pb::EncryptionKey::default()
            }],
            root_ca: b"PEM".to_vec(),
        },
        &[
            bytes(1, b"s"),
            bytes(2, &[bytes(1, b"n"), varint(9, 1), varint(11, 99)].concat()),
            bytes(
                3,
                &[
                    bytes(1, &[bytes(1, b"m"), bytes(2, b"a")].concat()),
                    varint(2, 10),
                ]
                .concat(),
            ),
            bytes(4, &[bytes(1, b"k"), bytes(3, b"16"), varint(4, 5)].concat()),
            bytes(5, b"PEM"),
        ],
    );
    let session_id = "s".to_owned();
    check(&pb::HeartbeatRequest { session_id }, &[bytes(1, b"s")]);
    check(
        &pb::HeartbeatResponse {
            period: Some(prost_types::Duration {
                seconds: 5,
                nanos: 1,
            }),
        },
        &[bytes(1, &[varint(1, 5), varint(2, 1)].concat())],
    );
}

#[test]
fn reports() {
    let container = pb::ContainerStatus {
        container_id: "c".to_owned(),
        pid: 7,
        exit_code: 1,
    };
    check(
        &pb::UpdateTaskStatusRequest {
            session_id: "s".to_owned(),
            updates: vec![pb::update_task_status_request::TaskStatusUpdate {
                task_id: "t".to_owned(),
                status: Some(pb::TaskStatus {
                    state: pb::TaskState::Running.into(),
                    message: "m".to_owned(),
                    err: "e".to_owned(),
                    runtime_status: Some(pb::task_status::RuntimeStatus::Container(container)),
                    ..pb::TaskStatus::default()
                }),
            }],
        },
        &[
            bytes(1, b"s"),
            bytes(
                3,
                &[
                    bytes(1, b"t"),
                    bytes(
                        2,
                        &[
                            // 512 in two bytes of seven bits.
                            field(2, 0, &[0x80, 0x04]),
                            bytes(3, b"m"),
                            bytes(4, b"e"),
                            bytes(5, &[bytes(1, b"c"), varint(2, 7), varint(3, 1)].concat()),
                        ]
                        .concat(),
                    ),
                ]
                .concat(),
            ),
        ],
    );
    check(&pb::UpdateTaskStatusResponse {}, &[]);
}

fn task() -> pb::Task {
    pb::Task {
        id: "t".to_owned(),
        service_id: "v".to_owned(),
        slot: 2,
        node_id: "n".to_owned(),
        desired_state: pb::TaskState::New.into(),
        networks: vec![pb::NetworkAttachment {
            network: Some(pb::Network {
                id: "w".to_owned(),
                ..pb::Network::default()
            }),
            addresses: vec!["1/8".to_owned()],
            ..pb::NetworkAttachment::default()
        }],
        endpoint: Some(pb::Endpoint {
            ports: vec![pb::PortConfig {
                protocol: pb::port_config::Protocol::Udp.into(),
                target_port: 80,
                published_port: 81,
                publish_mode: pb::port_config::PublishMode::Host.into(),
                ..pb::PortConfig::default()
            }],
            virtual_ips: vec![pb::endpoint::VirtualIp {
                network_id: "w".to_owned(),
                addr: "2/8".to_owned(),
            }],
            ..pb::Endpoint::default()
        }),
        ..pb::Task::default()
    }
}

#[test]
fn assignments() {
    let session_id = "s".to_owned();
    check(&pb::AssignmentsRequest { session_id }, &[bytes(1, b"s")]);
    let port = [varint(2, 1), varint(3, 80), varint(4, 81), varint(5, 1)].concat();
    let task_bytes = [
        bytes(1, b"t"),
        bytes(4, b"v"),
        varint(5, 2),
        bytes(6, b"n"),
        bytes(11, &[bytes(1, &bytes(1, b"w")), bytes(2, b"1/8")].concat()),
        bytes(
            12,
            &[
                bytes(2, &port),
                bytes(3, &[bytes(1, b"w"), bytes(2, b"2/8")].concat()),
            ]
            .concat(),
        ),
    ]
    .concat();
    check(
        &pb::AssignmentsMessage {
            r#type: pb::assignments_message::Type::Incremental.into(),
            applies_to: "1".to_owned(),
            results_in: "2".to_owned(),
            changes: vec![pb::AssignmentChange {
                assignment: Some(pb::Assignment {
                    item: Some(pb::assignment::Item::Task(task())),
                }),
                action: pb::assignment_change::AssignmentAction::Remove.into(),
            }],
        },
        &[
            varint(1, 1),
            bytes(2, b"1"),
            bytes(3, b"2"),
            bytes(
                4,
                &[bytes(1, &bytes(1, &task_bytes)), varint(2, 1)].concat(),
            ),
        ],
    );
}

#[test]
fn secrets_and_configs() {
    let annotations = || {
        Some(pb::Annotations {
            name: "n".to_owned(),
            ..pb::Annotations::default()
        })
    };
    let secret = pb::Secret {
        id: "s".to_owned(),
        spec: Some(pb::SecretSpec {
            annotations: annotations(),
            data: b"d".to_vec(),
            ..pb::SecretSpec::default()
        }),
        internal: true,
        ..pb::Secret::default()
    };
    let spec = [bytes(1, &bytes(1, b"n")), bytes(2, b"d")].concat();
    let secret_bytes = [bytes(1, b"s"), bytes(3, &spec), varint(4, 1)].concat();
    check(
        &pb::Assignment {
            item: Some(pb::assignment::Item::Secret(secret)),
        },
        &[bytes(2, &secret_bytes)],
    );
    let config = pb::Config {
        id: "c".to_owned(),
        spec: Some(pb::ConfigSpec {
            annotations: annotations(),
            data: b"d".to_vec(),
            ..pb::ConfigSpec::default()
        }),
        ..pb::Config::default()
    };
    let config_bytes = [bytes(1, b"c"), bytes(3, &spec)].concat();
    check(
        &pb::Assignment {
            item: Some(pb::assignment::Item::Config(config)),
        },
        &[bytes(3, &config_bytes)],
    );
    let file = pb::FileTarget {
        name: "f".to_owned(),
        uid: "1".to_owned(),
        gid: "2".to_owned(),
        mode: 0o44,
    };
    let file_bytes = [
        bytes(1, b"f"),
        bytes(2, b"1"),
        bytes(3, b"2"),
        varint(4, 0o44),
    ]
    .concat();
    check(
        &pb::SecretReference {
            secret_id: "s".to_owned(),
            secret_name: "n".to_owned(),
            target: Some(pb::secret_reference::Target::File(file.clone())),
        },
        &[bytes(1, b"s"), bytes(2, b"n"), bytes(3, &file_bytes)],
    );
    check(
        &pb::ConfigReference {
            config_id: "c".to_owned(),
            config_name: "n".to_owned(),
            target: Some(pb::config_reference::Target::File(file)),
        },
        &[bytes(1, b"c"), bytes(2, b"n"), bytes(3, &file_bytes)],
    );
}

#[test]
fn specs() {
    let container = pb::ContainerSpec {
        image: "i".to_owned(),
        env: vec!["A=1".to_owned()],
        hostname: "h".to_owned(),
        init: Some(true),
        ..pb::ContainerSpec::default()
    };
    check(
        &pb::TaskSpec {
            runtime: Some(pb::task_spec::Runtime::Container(container)),
            restart: Some(pb::RestartPolicy {
                condition: pb::restart_policy::RestartCondition::Any.into(),
                max_attempts: 3,
                ..pb::RestartPolicy::default()
            }),
            placement: Some(pb::Placement {
                constraints: vec!["c".to_owned()],
                max_replicas: 1,
                ..pb::Placement::default()
            }),
            networks: vec![pb::NetworkAttachmentConfig {
                target: "w".to_owned(),
                aliases: vec!["a".to_owned()],
                ..pb::NetworkAttachmentConfig::default()
            }],
            force_update: 4,
            ..pb::TaskSpec::default()
        },
        &[
            bytes(
                1,
                &[
                    bytes(1, b"i"),
                    bytes(5, b"A=1"),
                    bytes(14, b"h"),
                    // Field 23: its tag takes two bytes; the value is a wrapper message.
                    vec![0xba, 0x01, 2, 0x08, 1],
                ]
                .concat(),
            ),
            bytes(4, &[varint(1, 2), varint(3, 3)].concat()),
            bytes(5, &[bytes(1, b"c"), varint(4, 1)].concat()),
            bytes(7, &[bytes(1, b"w"), bytes(2, b"a")].concat()),
            varint(9, 4),
        ],
    );
}

#[test]
fn mounts() {
    let mount = pb::Mount {
        r#type: pb::mount::MountType::Volume.into(),
        source: "s".to_owned(),
        target: "t".to_owned(),
        readonly: true,
        bind_options: Some(pb::mount::BindOptions {
            propagation: pb::mount::bind_options::MountPropagation::Rslave.into(),
            nonrecursive: true,
            ..pb::mount::BindOptions::default()
        }),
        volume_options: Some(pb::mount::VolumeOptions {
            nocopy: true,
            labels: [("k".to_owned(), "v".to_owned())].into(),
            driver_config: Some(pb::Driver {
                name: "d".to_owned(),
                options: [("o".to_owned(), "p".to_owned())].into(),
            }),
            subpath: "b".to_owned(),
        }),
        tmpfs_options: Some(pb::mount::TmpfsOptions {
            size_bytes: 9,
            mode: 7,
            options: "x".to_owned(),
        }),
        ..pb::Mount::default()
    };
    let labels = [bytes(1, b"k"), bytes(2, b"v")].concat();
    let options = [bytes(1, b"o"), bytes(2, b"p")].concat();
    let driver = [bytes(1, b"d"), bytes(2, &options)].concat();
    let volume = [
        varint(1, 1),
        bytes(2, &labels),
        bytes(3, &driver),
        bytes(4, b"b"),
    ];
    check(
        &mount,
        &[
            varint(1, 1),
            bytes(2, b"s"),
            bytes(3, b"t"),
            varint(4, 1),
            bytes(5, &[varint(1, 4), varint(2, 1)].concat()),
            bytes(6, &volume.concat()),
            bytes(7, &[varint(1, 9), varint(2, 7), bytes(3, b"x")].concat()),
        ],
    );
}

#[test]
fn limits_and_resolvers() {
    check(
        &pb::container_spec::DnsConfig {
            nameservers: vec!["n".to_owned()],
            search: vec!["s".to_owned()],
            options: vec!["o".to_owned()],
        },
        &[bytes(1, b"n"), bytes(2, b"s"), bytes(3, b"o")],
    );
    check(
        &pb::container_spec::Ulimit {
            name: "n".to_owned(),
            soft: 1,
            hard: 2,
        },
        &[bytes(1, b"n"), varint(2, 1), varint(3, 2)],
    );
    let cpus = |nano_cpus| pb::Resources {
        nano_cpus,
        ..pb::Resources::default()
    };
    check(
        &pb::ResourceRequirements {
            limits: Some(cpus(1)),
            reservations: Some(cpus(2)),
            swap_bytes: Some(3),
            memory_swappiness: Some(4),
        },
        // Whole numbers that may be absent are wrapped.
        &[
            bytes(1, &varint(1, 1)),
            bytes(2, &varint(1, 2)),
            bytes(3, &varint(1, 3)),
            bytes(4, &varint(1, 4)),
        ],
    );
}

#[test]
fn address_management_and_nodes() {
    check(
        &pb::IpamOptions {
            driver: Some(pb::Driver {
                name: "d".to_owned(),
                ..pb::Driver::default()
            }),
            configs: vec![pb::IpamConfig {
                family: pb::ipam_config::AddressFamily::Ipv4.into(),
                subnet: "s".to_owned(),
                range: "r".to_owned(),
                gateway: "g".to_owned(),
                reserved: [("k".to_owned(), "v".to_owned())].into(),
            }],
        },
        &[
            bytes(1, &bytes(1, b"d")),
            bytes(
                3,
                &[
                    varint(1, 4),
                    bytes(2, b"s"),
                    bytes(3, b"r"),
                    bytes(4, b"g"),
                    bytes(5, &[bytes(1, b"k"), bytes(2, b"v")].concat()),
                ]
                .concat(),
            ),
        ],
    );
    check(
        &pb::NodeSpec {
            desired_role: pb::NodeRole::Manager.into(),
            membership: pb::node_spec::Membership::Accepted.into(),
            availability: pb::node_spec::Availability::Drain.into(),
            ..pb::NodeSpec::default()
        },
        &[varint(2, 1), varint(3, 1), varint(4, 2)],
    );
    check(
        &pb::NodeStatus {
            state: pb::node_status::State::Ready.into(),
            message: "m".to_owned(),
            addr: "a".to_owned(),
        },
        &[varint(1, 2), bytes(2, b"m"), bytes(3, b"a")],
    );
}

#[test]
fn our_own_mesh_and_control() {
    use skep::{control_response, mesh_request, mesh_response};
    let request = |kind| skep::MeshRequest { kind: Some(kind) };
    check(&request(mesh_request::Kind::Subscribe(1)), &[varint(1, 1)]);
    check(&request(mesh_request::Kind::Applied(2)), &[varint(2, 2)]);
    let response = |kind| skep::MeshResponse { kind: Some(kind) };
    let update = skep::MeshUpdate {
        version: 3,
        base: 2,
        document: b"{}".to_vec(),
    };
    check(
        &response(mesh_response::Kind::Update(update)),
        &[bytes(
            1,
            &[varint(1, 3), varint(2, 2), bytes(3, b"{}")].concat(),
        )],
    );
    check(&response(mesh_response::Kind::Settled(4)), &[varint(2, 4)]);
    let document = b"{}".to_vec();
    check(
        &skep::RaftMessage {
            document: document.clone(),
            lineage: "l".to_owned(),
        },
        &[bytes(1, b"{}"), bytes(2, b"l")],
    );
    check(
        &skep::ControlRequest {
            document: document.clone(),
        },
        &[bytes(1, b"{}")],
    );
    check(
        &skep::ControlResponse {
            result: Some(control_response::Result::Error(skep::ControlError {
                name: "n".to_owned(),
                parts: vec!["p".to_owned()],
            })),
            version: 5,
        },
        &[
            bytes(2, &[bytes(1, b"n"), bytes(2, b"p")].concat()),
            varint(3, 5),
        ],
    );
    check(
        &skep::ControlResponse {
            result: Some(control_response::Result::Document(document)),
            version: 0,
        },
        &[bytes(1, b"{}")],
    );
}

#[test]
fn our_own_certificates_and_membership() {
    check(
        &skep::JoinRaftRequest {
            raft_id: 1,
            addr: "a".to_owned(),
        },
        &[varint(1, 1), bytes(2, b"a")],
    );
    check(&skep::JoinRaftResponse {}, &[]);
    check(
        &skep::IssueApiCertificateRequest {
            csr: b"CSR".to_vec(),
            names: vec!["n".to_owned()],
        },
        &[bytes(1, b"CSR"), bytes(2, b"n")],
    );
    let certificate = b"PEM".to_vec();
    check(
        &skep::IssueApiCertificateResponse { certificate },
        &[bytes(1, b"PEM")],
    );
    let session_id = "s".to_owned();
    check(&skep::LeaveRequest { session_id }, &[bytes(1, b"s")]);
    check(&skep::LeaveResponse {}, &[]);
}
