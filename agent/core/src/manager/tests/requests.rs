//! What is refused, and how it is said.

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{
    api::{ApiError, ClusterRequest, NodeState, ServiceSpec},
    manager::{
        constraint::Constraint,
        found::{Foundation, found},
        query,
        scheduler::Label,
    },
    testing::bench::{Bench, joins, network, service},
};

/// A good spec with one field, named by a JSON pointer, set to a value.
fn changed(pointer: &str, value: Value) -> ServiceSpec {
    let mut spec = serde_json::to_value(service("web", 1)).unwrap();
    let mut place = &mut spec;
    for part in pointer.split('/').skip(1) {
        place = match part.parse::<usize>() {
            Ok(index) => {
                if !place.is_array() {
                    *place = json!([]);
                }
                let items = place.as_array_mut().unwrap();
                while items.len() <= index {
                    items.push(json!({}));
                }
                &mut items[index]
            }
            Err(_) => {
                if !place.is_object() {
                    *place = json!({});
                }
                place
                    .as_object_mut()
                    .unwrap()
                    .entry(part)
                    .or_insert(json!({}))
            }
        };
    }
    *place = value;
    serde_json::from_value(spec).unwrap()
}

fn refusal(pointer: &str, value: Value) -> ApiError {
    let mut bench = Bench::new(1);
    let spec = changed(pointer, value.clone());
    let request = ClusterRequest::ServiceCreate(Box::new(spec));
    match bench.request(&request) {
        Err(error) => error,
        Ok(_) => panic!("{pointer} = {value} was taken"),
    }
}

/// JSON pointer, bad value, and the field that the refusal names. `C` is the container's spec.
const BAD: &str = r#"
/Name                                  | "-web"            | Name
/Name                                  | "a.b"             | Name
/Labels                                | {"": "x"}         | Labels
/Mode/Replicated/Replicas              | 1000001           | Mode.Replicated.Replicas
/Mode/Global                           | {}                | Mode
/Mode                                  | {"GlobalJob": {}, "Global": {}} | Mode
/Mode                                  | {"ReplicatedJob": {"TotalCompletions": 1000001}} | Mode.ReplicatedJob.TotalCompletions
/Mode                                  | {"ReplicatedJob": {"MaxConcurrent": 1000001}} | Mode.ReplicatedJob.MaxConcurrent
/Mode                                  | {"ReplicatedJob": {"MaxConcurrent": 0, "TotalCompletions": 2}} | Mode.ReplicatedJob.MaxConcurrent
/UpdateConfig/FailureAction            | "explode"         | UpdateConfig.FailureAction
/RollbackConfig/FailureAction          | "rollback"        | RollbackConfig.FailureAction
/UpdateConfig/Order                    | "both"            | UpdateConfig.Order
/UpdateConfig/MaxFailureRatio          | 1.5               | UpdateConfig.MaxFailureRatio
/EndpointSpec/Ports/0/TargetPort       | 0                 | EndpointSpec.Ports[0].TargetPort
/TaskTemplate/ContainerSpec            | null              | TaskTemplate.ContainerSpec
C/Image                                | ""                | C.Image
C/Image                                | "Upper"           | C.Image
C/Image                                | "a b"             | C.Image
C/Image                                | "a@sha256:12"     | C.Image
C/Env                                  | ["=x"]            | C.Env[0]
C/Args                                 | ["a\u0000"]       | C.Args[0]
C/Hostname                             | "a_b"             | C.Hostname
C/Hosts                                | ["nonsense"]      | C.Hosts[0]
C/DNSConfig/Nameservers                | ["dns"]           | C.DNSConfig.Nameservers
C/OomScoreAdj                          | 1001              | C.OomScoreAdj
C/StopSignal                           | "SIGNOPE"         | C.StopSignal
C/StopSignal                           | "65"              | C.StopSignal
C/CapabilityAdd                        | ["CAP_FLY"]       | C.CapabilityAdd
C/Ulimits                              | [{"Name": "beans"}] | C.Ulimits[0].Name
C/Ulimits                              | [{"Name": "nofile", "Soft": -1, "Hard": 9}] | C.Ulimits[0].Soft
C/Sysctls                              | {"kernel.panic": "1"} | C.Sysctls[kernel.panic]
C/Mounts                               | [{"Type": "tmpfs", "Target": "/x"}, {"Type": "tmpfs", "Target": "/x/"}] | C.Mounts[1].Target
C/Mounts/0                             | {"Type": "volume", "Source": "../x", "Target": "/x"} | C.Mounts[0].Source
C/Mounts/0                             | {"Type": "bind", "Source": "/a", "Target": "/x", "BindOptions": {"Propagation": "up"}} | C.Mounts[0].BindOptions.Propagation
C/Mounts/0                             | {"Type": "bind", "Source": "/a", "Target": "/x", "BindOptions": "rslave"} | C.Mounts[0].BindOptions
C/Mounts/0                             | {"Type": "volume", "Target": "/x", "VolumeOptions": [1]} | C.Mounts[0].VolumeOptions
C/Mounts/0                             | {"Type": "volume", "Target": "/x", "BindOptions": {"Propagation": "rslave"}} | C.Mounts[0].BindOptions
C/Mounts/0                             | {"Type": "bind", "Source": "/a", "Target": "/x", "VolumeOptions": {"NoCopy": true}} | C.Mounts[0].VolumeOptions
C/Mounts/0                             | {"Type": "bind", "Source": "/a", "Target": "/x", "TmpfsOptions": {"Mode": 1}} | C.Mounts[0].TmpfsOptions
C/Mounts/0                             | {"Type": "volume", "Target": "/x", "VolumeOptions": {"NoCopy": "yes"}} | C.Mounts[0].VolumeOptions.NoCopy
C/Mounts/0                             | {"Type": "volume", "Target": "/x", "VolumeOptions": {"Labels": {"a": 1}}} | C.Mounts[0].VolumeOptions.Labels
C/Mounts/0                             | {"Type": "tmpfs", "Target": "/x", "TmpfsOptions": {"SizeBytes": -1}} | C.Mounts[0].TmpfsOptions.SizeBytes
C/Mounts/0                             | {"Type": "tmpfs", "Target": "/x", "Consistency": "now"} | C.Mounts[0].Consistency
/TaskTemplate/LogDriver                | {"Name": "json-file", "Options": {"max-size": "1"}} | TaskTemplate.LogDriver.Options[max-size]
C/Mounts/0                             | {"Type": "bind", "Source": "rel", "Target": "/x"} | C.Mounts[0].Source
C/Mounts/0                             | {"Type": "tmpfs", "Target": "/x/../.."} | C.Mounts[0].Target
/TaskTemplate/Resources/Limits/MemoryBytes | 4096          | TaskTemplate.Resources.Limits.MemoryBytes
/TaskTemplate/Resources/Reservations/NanoCPUs | 1          | TaskTemplate.Resources.Reservations.NanoCPUs
/TaskTemplate/Placement/Constraints    | ["node.role=manager"] | TaskTemplate.Placement.Constraints[0]
/TaskTemplate/Placement/Preferences    | [{}]              | TaskTemplate.Placement.Preferences[0].Spread
/TaskTemplate/Placement/Preferences    | [{"Spread": {"SpreadDescriptor": "node.ip"}}] | TaskTemplate.Placement.Preferences[0].Spread.SpreadDescriptor
/TaskTemplate/Placement/Preferences    | [{"Spread": {"SpreadDescriptor": "node.labels."}}] | TaskTemplate.Placement.Preferences[0].Spread.SpreadDescriptor
"#;

/// The same for what Docker knows and Skep refuses for now.
const UNSUPPORTED: &str = r#"
/TaskTemplate/PluginSpec               | {"Name": "x"}     | TaskTemplate.PluginSpec
/TaskTemplate/Runtime                  | "plugin"          | TaskTemplate.Runtime
/TaskTemplate/LogDriver/Name           | "syslog"          | TaskTemplate.LogDriver
/TaskTemplate/Networks/0/Target        | "host"            | TaskTemplate.Networks[0]
/TaskTemplate/Resources/SwapBytes      | 1                 | TaskTemplate.Resources.SwapBytes
C/Healthcheck                          | {"Test": ["CMD", "true"]} | C.Healthcheck
C/Privileges                           | {"NoNewPrivileges": true} | C.Privileges
C/Init                                 | true              | C.Init
C/Isolation                            | "hyperv"          | C.Isolation
C/Env                                  | ["A=1", "B={{.Node.Hostname}}"] | C.Env[1] with a template
C/Hostname                             | "{{.Node.Hostname}}" | C.Hostname with a template
C/Mounts/0                             | {"Type": "npipe", "Target": "/x"} | C.Mounts[0].Type
C/Mounts/0                             | {"Type": "volume", "Source": "v{{.Task.Slot}}", "Target": "/x"} | C.Mounts[0].Source with a template
C/Mounts/0                             | {"Type": "tmpfs", "Target": "/x{{.Task.Slot}}"} | C.Mounts[0].Target with a template
C/Mounts/0                             | {"Type": "bind", "Source": "/a", "Target": "/x", "BindOptions": {"NonRecursive": true}} | C.Mounts[0].BindOptions.NonRecursive
C/Mounts/0                             | {"Type": "volume", "Target": "/x", "VolumeOptions": {"Subpath": "a"}} | C.Mounts[0].VolumeOptions.Subpath
C/Mounts/0                             | {"Type": "volume", "Target": "/x", "VolumeOptions": {"DriverConfig": {"Name": "nfs"}}} | C.Mounts[0].VolumeOptions.DriverConfig
C/Mounts/0                             | {"Type": "volume", "Target": "/x", "VolumeOptions": {"DriverConfig": {"Name": "local", "Options": {"type": "nfs"}}}} | C.Mounts[0].VolumeOptions.DriverConfig
/EndpointSpec/Ports/0                  | {"TargetPort": 1, "Protocol": "sctp"} | EndpointSpec.Ports[0].Protocol
/EndpointSpec/Ports/0                  | {"TargetPort": 1, "PublishMode": "host"} | EndpointSpec.Ports[0].PublishMode
"#;

fn rows(table: &str) -> impl Iterator<Item = (String, Value, String)> {
    table.lines().filter(|line| !line.is_empty()).map(|line| {
        let mut cells = line.split(" | ").map(str::trim);
        let mut cell = || cells.next().unwrap().to_owned();
        let (pointer, value, field) = (cell(), cell(), cell());
        let pointer = match pointer.strip_prefix('C') {
            Some(rest) => format!("/TaskTemplate/ContainerSpec{rest}"),
            None => pointer,
        };
        let field = match field.strip_prefix("C.") {
            Some(rest) => format!("TaskTemplate.ContainerSpec.{rest}"),
            None => field,
        };
        (pointer, serde_json::from_str(&value).unwrap(), field)
    })
}

#[test]
fn each_bad_field_is_named() {
    for (pointer, value, field) in rows(BAD) {
        let error = refusal(&pointer, value);
        let ApiError::Invalid { field: found, why } = &error else {
            panic!("{pointer}: {error}");
        };
        assert_eq!(*found, field, "{why}");
        assert!(why.len() > 10, "{field}: {why}");
    }
}

#[test]
fn each_unsupported_field_is_named() {
    for (pointer, value, field) in rows(UNSUPPORTED) {
        let error = refusal(&pointer, value);
        let ApiError::Unsupported(found) = &error else {
            panic!("{pointer}: {error}");
        };
        assert!(found.starts_with(&field), "{found}");
    }
}

#[test]
fn numbers_that_a_mode_leaves_out_are_written_down() {
    for (mode, wanted) in [
        (json!({}), json!({"Replicated": {"Replicas": 1}})),
        (
            json!({"Replicated": {}}),
            json!({"Replicated": {"Replicas": 1}}),
        ),
        (json!({"Global": {}}), json!({"Global": {}})),
        (
            json!({"ReplicatedJob": {}}),
            json!({"ReplicatedJob": {"MaxConcurrent": 1, "TotalCompletions": 1}}),
        ),
        (
            json!({"ReplicatedJob": {"MaxConcurrent": 3}}),
            json!({"ReplicatedJob": {"MaxConcurrent": 3, "TotalCompletions": 3}}),
        ),
        (json!({"GlobalJob": {}}), json!({"GlobalJob": {}})),
    ] {
        let mut bench = Bench::new(1);
        let id = bench.create(&changed("/Mode", mode));
        let kept = bench.view().service(&id).unwrap().spec.mode.clone();
        assert_eq!(serde_json::to_value(kept).unwrap(), wanted);
    }
}

#[test]
fn what_the_docker_client_sends_by_default_is_taken() {
    let spec = json!({
        "Name": "whoami", "Labels": {},
        "TaskTemplate": {
            "ContainerSpec": {"Image": "jwilder/whoami:latest@sha256:".to_owned() + &"0a".repeat(32),
                "Init": false, "StopSignal": "SIGRTMIN+3", "CapabilityAdd": ["CAP_NET_ADMIN", "sys_time"], "CapabilityDrop": ["ALL"],
                "Ulimits": [{"Name": "nofile", "Soft": 1024, "Hard": -1}], "Sysctls": {"net.core.somaxconn": "9"},
                "Mounts": [{"Type": "volume", "Source": "data", "Target": "/data", "BindOptions": {}, "VolumeOptions": {"NoCopy": true, "Labels": {"a": "b"}, "DriverConfig": {"Name": "local"}}}, {"Type": "bind", "Source": "/srv", "Target": "/srv", "BindOptions": {"Propagation": "rslave"}}],
                "StopGracePeriod": 10_000_000_000_u64, "DNSConfig": {}, "Isolation": "default",
                "Healthcheck": {"Test": ["NONE"]}},
            "Resources": {"Limits": {}, "Reservations": {}},
            "RestartPolicy": {"Condition": "any", "Delay": 5_000_000_000_u64, "MaxAttempts": 0},
            "Placement": {"Platforms": [{"Architecture": "amd64", "OS": "linux"}]},
            "LogDriver": {"Name": "json-file", "Options": {"max-size": "10m", "max-file": "3"}}, "Networks": null, "ForceUpdate": 0, "Runtime": "container"
        },
        "Mode": {"Replicated": {"Replicas": 3}},
        "UpdateConfig": {"Parallelism": 1, "FailureAction": "pause", "Monitor": 5_000_000_000_u64, "MaxFailureRatio": 0, "Order": "stop-first"},
        "RollbackConfig": {"Parallelism": 1, "FailureAction": "pause", "Monitor": 5_000_000_000_u64, "MaxFailureRatio": 0, "Order": "stop-first"},
        "EndpointSpec": {"Mode": "vip", "Ports": [{"Protocol": "tcp", "TargetPort": 8000, "PublishedPort": 8000, "PublishMode": "ingress"}]}
    });
    let mut bench = Bench::new(3);
    let id = bench.create(&serde_json::from_value(spec).unwrap());
    bench.obey();
    assert_eq!(bench.live(&id).len(), 3);
}

#[test]
fn the_ports_of_the_node_itself_are_taken() {
    let mut bench = Bench::new(1);
    let mut publish = |protocol: &str, port: u16| {
        let entry = json!([{"Protocol": protocol, "TargetPort": 80, "PublishedPort": port}]);
        let mut spec = changed("/EndpointSpec/Ports", entry);
        spec.name = format!("web-{protocol}-{port}");
        bench.request(&ClusterRequest::ServiceCreate(Box::new(spec)))
    };
    for (protocol, port, user) in [
        ("tcp", 2376, "the Engine API"),
        ("tcp", 2377, "the cluster's management"),
        ("tcp", 7946, "the cluster's membership"),
        ("udp", 7946, "the cluster's membership"),
        ("udp", 4789, "VXLAN"),
    ] {
        let error = publish(protocol, port).unwrap_err();
        assert!(matches!(error, ApiError::Conflict(_)), "{error:?}");
        let says = error.to_string();
        assert!(
            says.contains(&format!("port '{port}' ({protocol})")),
            "{says}"
        );
        assert!(says.contains(user), "{says}");
    }
    publish("udp", 2377).unwrap();
    publish("tcp", 4789).unwrap();
    let mut cluster = crate::api::Cluster::clone(bench.view().cluster().unwrap());
    cluster.data_path_port = 4790;
    bench.must([crate::store::Change::put_cluster(cluster)]);
    let entry = json!([{"Protocol": "udp", "TargetPort": 80, "PublishedPort": 4790}]);
    let spec = changed("/EndpointSpec/Ports", entry);
    let error = bench.request(&ClusterRequest::ServiceCreate(Box::new(spec)));
    assert!(matches!(error, Err(ApiError::Conflict(_))));
}

#[test]
fn a_template_is_bounded_as_a_whole() {
    let texts = |count| {
        let text = format!("A={}", "x".repeat(1020));
        Value::Array(vec![json!(text); count])
    };
    let spec = changed("/TaskTemplate/ContainerSpec/Env", texts(240));
    Bench::new(1).create(&spec);
    let error = refusal("/TaskTemplate/ContainerSpec/Env", texts(260));
    let ApiError::Invalid { field, why } = error else {
        panic!("{error}");
    };
    assert_eq!(field, "TaskTemplate");
    assert!(why.contains("at most 262144"), "{why}");
}

#[test]
fn pools_of_a_new_swarm_are_checked() {
    let found = |pools: &[&str], size| {
        let bench = Bench::new(1);
        let node = bench.node("node1");
        let foundation = Foundation {
            cluster_id: bench.view().cluster().unwrap().id.clone(),
            root_ca: crate::api::RootCa::default(),
            spec: crate::api::ClusterSpec::default(),
            drawn_unlock_key: crate::wire::unlock::UnlockKey::new([1; 32]),
            default_addr_pool: pools.iter().map(|pool| (*pool).to_owned()).collect(),
            subnet_size: size,
            data_path_port: 0,
            node_id: node.id,
            certificate: String::new(),
            raft_id: 1,
            addr: std::net::IpAddr::from([10, 1, 1, 1]),
            manager_addr: "10.1.1.1:2377".to_owned(),
            availability: crate::api::Availability::Active,
        };
        found(foundation, &bench.ctx).map_err(|error| error.to_string())
    };
    found(&[], 0).unwrap();
    found(&["10.20.0.0/16", "10.30.0.0/16"], 26).unwrap();
    for (pools, size, says) in [
        (&["10.20.0.1/16"][..], 0, "did you mean 10.20.0.0/16?"),
        (&["10.20.0.0/26"], 0, "smaller than one subnet (/24)"),
        (
            &["10.0.0.0/8", "10.9.0.0/16"],
            0,
            "overlaps with 10.0.0.0/8",
        ),
        (&[], 31, "is not from 8 to 29"),
    ] {
        let error = found(pools, size).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn references_are_resolved_as_docker_does() {
    let mut bench = Bench::new(2);
    let id = bench.create(&service("web", 1));
    bench.settle();
    let view = bench.view();
    for reference in ["web", "WEB", id.as_str(), &id.as_str()[..10]] {
        assert_eq!(
            query::find_service(&view, reference).unwrap().id,
            id,
            "{reference}"
        );
    }
    let error = query::find_service(&view, "we").unwrap_err();
    assert_eq!(error.to_string(), "service we not found");
    assert!(query::find_service(&view, "").is_err());
    bench.change_node("node2", |node| {
        node.description.as_mut().unwrap().hostname = "node1".to_owned()
    });
    let error = query::find_node(&bench.view(), "node1").unwrap_err();
    assert_eq!(
        error.to_string(),
        "node node1 is ambiguous (2 matches found)"
    );
}

#[test]
fn a_stale_version_and_a_new_name_are_refused() {
    let mut bench = Bench::new(1);
    let id = bench.create(&service("web", 1));
    let version = bench.view().service(&id).unwrap().meta.version;
    bench.settle();
    bench.update(&id, |spec| spec.task_template.force_update += 1);
    let update = |version, spec| ClusterRequest::ServiceUpdate {
        service: "web".to_owned(),
        version,
        spec: Box::new(spec),
        rollback: false,
    };
    let error = bench
        .request(&update(version, service("web", 2)))
        .unwrap_err();
    assert_eq!(error, ApiError::OutOfSequence);
    let version = bench.view().service(&id).unwrap().meta.version;
    let error = bench
        .request(&update(version, service("other", 2)))
        .unwrap_err();
    assert!(matches!(error, ApiError::Unsupported(_)));
    let error = bench
        .request(&ClusterRequest::ServiceCreate(Box::new(service("web", 1))))
        .unwrap_err();
    assert!(matches!(error, ApiError::Conflict(_)));
}

#[test]
fn networks_in_use_stay() {
    let mut bench = Bench::new(1);
    bench.create_network(&network("net"));
    let mut spec = service("web", 1);
    spec.task_template.networks = vec![joins("net")];
    bench.create(&spec);
    bench.obey();
    let remove = ClusterRequest::NetworkRemove("net".to_owned());
    let error = bench.request(&remove).unwrap_err();
    assert!(
        error.to_string().contains("in use by service web"),
        "{error}"
    );
    bench
        .request(&ClusterRequest::ServiceRemove("web".to_owned()))
        .unwrap();
    bench.settle();
    bench.request(&remove).unwrap();
    bench.obey();
    for name in ["ingress", "bridge"] {
        assert!(
            bench
                .request(&ClusterRequest::NetworkRemove(name.to_owned()))
                .is_err()
        );
    }
    let error = bench.request(&ClusterRequest::NetworkCreate(Box::new(network("ingress"))));
    assert!(matches!(error, Err(ApiError::Conflict(_))));
}

#[test]
fn nodes_are_removed_when_they_are_down() {
    let mut bench = Bench::new(2);
    let remove = |force| ClusterRequest::NodeRemove {
        node: "node2".to_owned(),
        force,
    };
    let error = bench.request(&remove(false)).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("is not down and can't be removed"),
        "{error}"
    );
    let id = bench.node("node2").id;
    bench.change_node("node2", |node| node.status.state = NodeState::Down);
    bench.request(&remove(false)).unwrap();
    assert!(
        bench
            .view()
            .cluster()
            .unwrap()
            .removed_nodes
            .contains_key(&id)
    );
    let manager = ClusterRequest::NodeRemove {
        node: "node1".to_owned(),
        force: true,
    };
    assert!(bench.request(&manager).is_err());
}

#[test]
fn lists_filter() {
    let mut bench = Bench::new(2);
    bench.create(&service("web", 2));
    let mut labelled = service("db", 1);
    labelled.labels.insert("tier".to_owned(), "data".to_owned());
    bench.create(&labelled);
    bench.obey();
    let view = bench.view();
    let filters = |pairs: &[(&str, &str)]| {
        let pairs = pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), vec![(*value).to_owned()]));
        pairs.collect::<crate::api::Filters>()
    };
    let services = |pairs| query::list_services(&view, &filters(pairs)).unwrap().len();
    assert_eq!(services(&[]), 2);
    assert_eq!(services(&[("name", "we")]), 1);
    assert_eq!(services(&[("label", "tier=data")]), 1);
    assert_eq!(services(&[("label", "tier"), ("name", "web")]), 0);
    assert_eq!(services(&[("mode", "global")]), 0);
    let tasks = |pairs| query::list_tasks(&view, &filters(pairs)).unwrap().len();
    assert_eq!(tasks(&[("service", "web")]), 2);
    assert_eq!(tasks(&[("service", "web"), ("_up-to-date", "true")]), 2);
    assert_eq!(tasks(&[("service", "web"), ("node", "node1")]), 1);
    let mut twice = filters(&[("service", "web")]);
    twice.get_mut("service").unwrap().push("WEB".to_owned());
    assert_eq!(
        query::list_tasks(&view, &twice).unwrap().len(),
        2,
        "each once"
    );
    assert_eq!(tasks(&[("desired-state", "shutdown")]), 0);
    assert!(query::list_tasks(&view, &filters(&[("service", "nope")])).is_err());
    let error = query::list_nodes(&view, &filters(&[("colour", "red")])).unwrap_err();
    assert!(
        error.to_string().contains("invalid filter 'colour'"),
        "{error}"
    );
    assert_eq!(
        query::list_nodes(&view, &filters(&[("role", "manager")]))
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        query::list_networks(&view, &filters(&[("driver", "overlay")]))
            .unwrap()
            .len(),
        1
    );
}

proptest! {
    #[test]
    fn any_constraint_text_is_read_or_refused(text in "\\PC{0,40}") {
        let _ = text.parse::<Constraint>();
    }

    #[test]
    fn label_constraints_are_read_whatever_the_value(key in "[a-z.]{1,10}", value in "[^\\s!=\\x00][^!=\\x00]{0,20}[^\\s!=\\x00]") {
        for operator in ["==", "!=", " == ", " != "] {
            let text = format!("node.labels.{key}{operator}{value}");
            prop_assert!(text.parse::<Constraint>().is_ok(), "{}", text);
        }
    }

    #[test]
    fn what_is_spread_over_is_a_label_or_refused(text in "([nN]ode\\.labels\\.|engine\\.LABELS\\.|)\\PC{0,40}") {
        let lower = text.to_ascii_lowercase();
        let prefixes = ["node.labels.", "engine.labels."];
        let is_label = prefixes.iter().any(|it| lower.len() > it.len() && lower.starts_with(it));
        prop_assert_eq!(Label::parse(&text).is_some(), is_label, "{}", text);
    }

    #[test]
    fn any_reference_is_resolved_or_refused(reference in "\\PC{0,30}") {
        let bench = Bench::new(2);
        let _ = query::find_node(&bench.view(), &reference);
        let _ = query::find_task(&bench.view(), &reference);
    }

    #[test]
    fn any_image_text_is_taken_or_refused(image in "\\PC{0,40}") {
        let mut bench = Bench::new(1);
        let mut spec = service("web", 1);
        spec.task_template.container_spec.as_mut().unwrap().image = image;
        let _ = bench.request(&ClusterRequest::ServiceCreate(Box::new(spec)));
    }
}
