//! Addresses, ports, marks, VNIs.

use std::{collections::BTreeSet, net::Ipv4Addr};

use crate::{
    api::{
        ApiError, ClusterRequest, EndpointMode, EndpointSpec, Ipam, IpamConfig, PortConfig,
        ServiceSpec, TaskState,
    },
    testing::bench::{Bench, joins, network, service},
};

fn publish(spec: &mut ServiceSpec, ports: &[(u16, u16)]) {
    let ports = ports
        .iter()
        .map(|(published_port, target_port)| PortConfig {
            target_port: *target_port,
            published_port: *published_port,
            ..PortConfig::default()
        });
    spec.endpoint_spec = Some(EndpointSpec {
        ports: ports.collect(),
        ..EndpointSpec::default()
    });
}

fn with_subnet(name: &str, subnet: &str) -> crate::api::NetworkSpec {
    let mut spec = network(name);
    spec.ipam = Some(Ipam {
        config: vec![IpamConfig {
            subnet: subnet.to_owned(),
            ..IpamConfig::default()
        }],
        ..Ipam::default()
    });
    spec
}

/// The lab: network my-demo, client without ports, whoami published.
fn lab() -> (Bench, crate::id::Id<crate::api::Service>) {
    let mut bench = Bench::new(3);
    bench.settle();
    bench.create_network(&network("my-demo"));
    let mut client = service("client", 1);
    client.task_template.networks = vec![joins("my-demo")];
    bench.create(&client);
    bench.settle();
    let mut whoami = service("whoami", 3);
    whoami.task_template.networks = vec![joins("my-demo")];
    publish(&mut whoami, &[(8000, 8000)]);
    let whoami = bench.create(&whoami);
    bench.obey();
    (bench, whoami)
}

#[test]
fn the_lab_gets_the_values_of_the_articles() {
    let (bench, whoami) = lab();
    let view = bench.view();
    let ingress = view.ingress().unwrap();
    let state = ingress.state.clone().unwrap();
    assert_eq!(ingress.spec.name, "ingress");
    assert_eq!((state.vni, state.prefix), (4096, 16));
    assert_eq!(state.gateway, Ipv4Addr::new(10, 255, 0, 1));
    let demo = view.network_named("my-demo").unwrap();
    let state = demo.state.clone().unwrap();
    assert_eq!(
        (state.vni, state.subnet, state.prefix),
        (4097, Ipv4Addr::new(10, 0, 0, 0), 24)
    );

    let service = view.service(&whoami).unwrap();
    let vips = &service.endpoint.virtual_ips;
    assert_eq!(vips.len(), 2);
    assert_eq!((&vips[0].network_id, vips[0].mark), (&ingress.id, 0x100));
    assert_eq!(vips[1].network_id, demo.id);
    assert!(vips[1].mark >= 0x1_0000);

    for task in bench.live(&whoami) {
        assert_eq!(task.networks[0].network_id, ingress.id);
        assert!(task.networks[0].addresses[0].starts_with("10.255.0."));
        assert!(task.networks[0].addresses[0].ends_with("/16"));
        assert!(task.networks[1].addresses[0].starts_with("10.0.0."));
    }
    for node in view.nodes() {
        assert_eq!(node.networks.len(), 1);
    }
    for node in view.nodes() {
        let map = crate::manager::mesh::map(&view, &node.id);
        map.validate().unwrap();
        let ingress = &map.networks[&ingress.id];
        assert_eq!(ingress.node_addresses.len(), 3);
        assert_eq!(ingress.services[&whoami].mark, 0x100);
        assert_eq!(ingress.services[&whoami].ports[0].published, 8000);
        assert_eq!(
            ingress
                .endpoints
                .values()
                .filter(|it| it.in_service)
                .count(),
            3
        );
    }
}

#[test]
fn a_node_hears_only_of_its_own_networks() {
    let mut bench = Bench::new(2);
    bench.create_network(&network("a"));
    let mut spec = service("web", 1);
    spec.task_template.networks = vec![joins("a")];
    let web = bench.create(&spec);
    bench.obey();
    let on = bench.live(&web)[0].node_id.clone().unwrap();
    for node in bench.view().nodes() {
        let map = crate::manager::mesh::map(&bench.view(), &node.id);
        assert_eq!(map.networks.len(), if node.id == on { 2 } else { 1 });
    }
}

#[test]
fn a_task_that_must_stop_leaves_the_mesh_before_it_stops() {
    let (mut bench, whoami) = lab();
    bench.update(&whoami, |spec| {
        spec.mode.replicated.as_mut().unwrap().replicas = Some(2)
    });
    bench.settle();
    let view = bench.view();
    let node = view.nodes().next().unwrap().id.clone();
    let ingress = view.ingress().unwrap().id.clone();
    let endpoints = &crate::manager::mesh::map(&view, &node).networks[&ingress].endpoints;
    assert_eq!(endpoints.len(), 3, "it is there as long as it runs");
    assert_eq!(endpoints.values().filter(|it| it.in_service).count(), 2);
    bench.obey();
    let map = crate::manager::mesh::map(&bench.view(), &node);
    assert_eq!(map.networks[&ingress].endpoints.len(), 2);
}

#[test]
fn a_port_that_is_not_given_is_chosen_and_kept() {
    let mut bench = Bench::new(1);
    let mut spec = service("web", 1);
    publish(&mut spec, &[(0, 80), (0, 81)]);
    let web = bench.create(&spec);
    bench.obey();
    let ports = |bench: &Bench| {
        let view = bench.view();
        let ports = &view.service(&web).unwrap().endpoint.ports;
        ports
            .iter()
            .map(|it| (it.target_port, it.published_port))
            .collect::<Vec<_>>()
    };
    assert_eq!(ports(&bench), [(80, 30_000), (81, 30_001)]);
    bench.update(&web, |spec| publish(spec, &[(0, 79), (0, 81)]));
    bench.obey();
    assert_eq!(ports(&bench), [(79, 30_000), (81, 30_001)]);
}

#[test]
fn a_taken_port_is_refused_with_its_holder() {
    let mut bench = Bench::new(1);
    let mut spec = service("web", 1);
    publish(&mut spec, &[(8000, 80)]);
    bench.create(&spec);
    spec.name = "other".to_owned();
    let request = ClusterRequest::ServiceCreate(Box::new(spec));
    let error = bench.request(&request).unwrap_err();
    assert!(matches!(error, ApiError::Conflict(_)));
    assert!(
        error
            .to_string()
            .contains("port '8000' is already in use by service 'web'"),
        "{error}"
    );
    bench
        .request(&ClusterRequest::ServiceRemove("web".to_owned()))
        .unwrap();
    bench.request(&request).unwrap();
}

#[test]
fn two_proposals_of_one_entry_do_not_get_one_port() {
    let mut bench = Bench::new(1);
    let view = bench.view();
    let proposals = ["a", "b"].map(|name| {
        let mut spec = service(name, 1);
        publish(&mut spec, &[(8000, 80)]);
        let request = ClusterRequest::ServiceCreate(Box::new(spec));
        crate::manager::control::handle(&view, &request, &mut bench.ctx)
            .unwrap()
            .0
    });
    let results = bench.commit_all(proposals.to_vec());
    assert!(results[0].is_ok());
    let error = results[1].clone().unwrap_err();
    assert_eq!(
        error.to_string(),
        "port '8000/tcp' is already in use by service 'a'"
    );
}

#[test]
fn overlays_stay_out_of_nodes_routes() {
    let mut bench = Bench::new(2);
    bench.change_node("node2", |node| {
        let description = node.description.as_mut().unwrap();
        description.routes = ["0.0.0.0/0", "10.0.0.0/23", "10.0.2.7/32"]
            .map(str::to_owned)
            .into();
    });
    bench.create_network(&network("a"));
    bench.settle();
    let subnet = bench.view().network_named("a").unwrap().subnet().unwrap();
    assert_eq!(subnet.to_string(), "10.0.3.0/24");
    let refused = |bench: &mut Bench, subnet| {
        let request = ClusterRequest::NetworkCreate(Box::new(with_subnet("b", subnet)));
        bench.request(&request).unwrap_err().to_string()
    };
    assert!(refused(&mut bench, "10.0.1.0/24").contains("route 10.0.0.0/23 of node node2"));
    assert!(refused(&mut bench, "10.0.0.0/16").contains("10.0.3.0/24 of network a"));
    assert!(refused(&mut bench, "10.255.7.0/24").contains("10.255.0.0/16"));
    for inside in ["172.18.5.0/24", "172.16.0.0/12"] {
        let error = refused(&mut bench, inside);
        assert!(
            error.contains("172.18.0.0/16 of docker_gwbridge"),
            "{error}"
        );
    }
    bench.create_network(&with_subnet("beside", "172.19.0.0/16"));
}

#[test]
fn the_way_out_of_containers_is_in_no_pool() {
    let mut bench = Bench::new(1);
    let mut cluster = crate::api::Cluster::clone(bench.view().cluster().unwrap());
    cluster.default_addr_pool = vec!["172.16.0.0/14".to_owned()];
    cluster.subnet_size = 15;
    bench.must([crate::store::Change::put_cluster(cluster)]);
    bench.create_network(&network("a"));
    bench.create_network(&network("b"));
    bench.settle();
    let view = bench.view();
    let mut given: Vec<_> = view.networks().filter_map(|it| it.subnet()).collect();
    given.retain(|it| it.to_string() != "10.255.0.0/16");
    assert_eq!(given.len(), 1, "{given:?}");
    assert_eq!(given[0].to_string(), "172.16.0.0/15");
}

#[test]
fn a_full_network_says_so_and_goes_on_when_something_is_freed() {
    let mut bench = Bench::new(1);
    // Six hosts: the gateway, a virtual address and four tasks.
    bench.create_network(&with_subnet("small", "192.168.10.0/29"));
    let mut spec = service("web", 5);
    spec.task_template.networks = vec![joins("small")];
    let web = bench.create(&spec);
    bench.obey();
    let waiting = bench
        .live(&web)
        .into_iter()
        .find(|it| it.status.state == TaskState::New);
    let err = waiting.unwrap().status.err.clone();
    assert!(
        err.starts_with("no address is left in network small (192.168.10.0/29)"),
        "{err}"
    );
    bench.update(&web, |spec| {
        spec.mode.replicated.as_mut().unwrap().replicas = Some(4)
    });
    bench.obey();
    let running = bench.live(&web);
    assert!(
        running
            .iter()
            .all(|it| it.status.state == TaskState::Running)
    );
    assert_eq!(running.len(), 4);
}

#[test]
fn an_address_rests_before_it_is_given_again() {
    let mut bench = Bench::new(1);
    bench.create_network(&with_subnet("net", "192.168.10.0/27"));
    let mut spec = service("web", 1);
    spec.task_template.networks = vec![joins("net")];
    let web = bench.create(&spec);
    let mut seen = BTreeSet::new();
    for _ in 0..20 {
        bench.wait(std::time::Duration::from_secs(6));
        bench.obey();
        let task = bench.live(&web).remove(0);
        assert!(
            seen.insert(task.networks[0].addresses[0].clone()),
            "too early"
        );
        bench.report(&task, TaskState::Failed);
    }
}

#[test]
fn dnsrr_has_no_virtual_address() {
    let mut bench = Bench::new(1);
    let net = bench.create_network(&network("net"));
    let mut spec = service("web", 1);
    spec.task_template.networks = vec![joins("net")];
    spec.endpoint_spec = Some(EndpointSpec {
        mode: EndpointMode::DnsRr,
        ports: Vec::new(),
    });
    let web = bench.create(&spec);
    bench.obey();
    assert_eq!(bench.view().service(&web).unwrap().endpoint.virtual_ips, []);
    let node = bench.node("node1").id;
    let map = crate::manager::mesh::map(&bench.view(), &node);
    let entry = &map.networks[&net].services[&web];
    assert_eq!((entry.vip, entry.mark), (None, 0));
    publish(&mut spec, &[(80, 80)]);
    spec.endpoint_spec.as_mut().unwrap().mode = EndpointMode::DnsRr;
    spec.name = "other".to_owned();
    let request = ClusterRequest::ServiceCreate(Box::new(spec));
    let error = bench.request(&request).unwrap_err();
    assert!(error.to_string().contains("dnsrr"), "{error}");
}

#[test]
fn pools_that_are_used_up_are_said_in_the_tasks_status() {
    let mut bench = Bench::new(1);
    let mut cluster = crate::api::Cluster::clone(bench.view().cluster().unwrap());
    cluster.default_addr_pool = vec!["172.30.0.0/23".to_owned()];
    bench.must([crate::store::Change::put_cluster(cluster)]);
    for name in ["a", "b", "c"] {
        bench.create_network(&network(name));
    }
    bench.settle();
    let view = bench.view();
    let without = view.networks().filter(|it| it.state.is_none());
    let without: Vec<_> = without.map(|it| it.spec.name.clone()).collect();
    assert_eq!(without.len(), 1);
    let mut spec = service("web", 1);
    spec.task_template.networks = vec![joins(&without[0])];
    let web = bench.create(&spec);
    bench.settle();
    let err = bench.live(&web)[0].status.err.clone();
    assert!(
        err.contains("the address pools of the cluster are used up"),
        "{err}"
    );
    let other = ["a", "b", "c"]
        .into_iter()
        .find(|it| *it != without[0])
        .unwrap();
    bench
        .request(&ClusterRequest::NetworkRemove(other.to_owned()))
        .unwrap();
    bench.obey();
    assert_eq!(bench.live(&web)[0].status.state, TaskState::Running);
}
