//! Who may call what on 2377: one table, and one place that asks it before any service is reached.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use skep_core::{api::Role, manager::role};
use tonic::{Status, body::Body, codegen::http};
use tower::{Layer, Service};

use crate::{identity::PeerIdentity, raft::Published};

/// What a method asks of the certificate of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// None is needed: the calls by which a node joins.
    Anyone,
    /// A node of this swarm.
    Node,
    /// A manager of this swarm.
    Manager,
}

/// Every method that is served. What is not here is not reached by anybody.
pub const METHODS: [(&str, Access); 18] = [
    (
        "/docker.swarmkit.v1.CA/GetRootCACertificate",
        Access::Anyone,
    ),
    (
        "/docker.swarmkit.v1.NodeCA/IssueNodeCertificate",
        Access::Anyone,
    ),
    (
        "/docker.swarmkit.v1.NodeCA/NodeCertificateStatus",
        Access::Anyone,
    ),
    ("/docker.swarmkit.v1.Dispatcher/Session", Access::Node),
    ("/docker.swarmkit.v1.Dispatcher/Heartbeat", Access::Node),
    (
        "/docker.swarmkit.v1.Dispatcher/UpdateTaskStatus",
        Access::Node,
    ),
    ("/docker.swarmkit.v1.Dispatcher/Assignments", Access::Node),
    (
        "/docker.swarmkit.v1.LogBroker/ListenSubscriptions",
        Access::Node,
    ),
    ("/docker.swarmkit.v1.LogBroker/PublishLogs", Access::Node),
    ("/docker.swarmkit.v1.Logs/SubscribeLogs", Access::Manager),
    ("/skep.v1.Mesh/Watch", Access::Node),
    ("/skep.v1.Certificates/IssueApiCertificate", Access::Node),
    ("/skep.v1.Membership/Leave", Access::Node),
    ("/skep.v1.Raft/Append", Access::Manager),
    ("/skep.v1.Raft/Vote", Access::Manager),
    ("/skep.v1.Raft/Snapshot", Access::Manager),
    ("/skep.v1.Control/Request", Access::Manager),
    ("/skep.v1.Control/JoinRaft", Access::Manager),
];

/// Who is at the other end of a connection; an extension of each of its requests.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Where the connection comes from.
    pub addr: SocketAddr,
    /// What the verified certificate says; none if none was shown.
    pub identity: Option<PeerIdentity>,
}

impl Peer {
    /// The peer of a request.
    ///
    /// # Errors
    /// When the request did not come over a connection of ours.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Peer, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        peer.ok_or_else(|| Status::internal("the connection has no peer"))
    }

    /// The node that calls.
    ///
    /// # Errors
    /// When no certificate was shown.
    pub fn node<T>(request: &tonic::Request<T>) -> Result<PeerIdentity, Status> {
        let identity = Self::of(request)?.identity;
        identity.ok_or_else(|| Status::unauthenticated("this call needs a node certificate"))
    }
}

/// Whether `peer` may call `path`.
///
/// # Errors
/// The answer that the caller gets instead.
pub fn allowed(path: &str, peer: Option<&Peer>, published: &Published) -> Result<(), Status> {
    let rule = METHODS.iter().find(|(method, _)| *method == path);
    let Some((_, access)) = rule else {
        return Err(Status::unimplemented(format!("unknown method {path}")));
    };
    let identity = peer.and_then(|peer| peer.identity.as_ref());
    if let Some(identity) = identity {
        member(identity, published)?;
        if *access == Access::Manager {
            manager(identity, published)?;
        }
    }
    let role = identity.map(|identity| identity.role);
    match (access, role) {
        (Access::Anyone, _) | (Access::Node, Some(_)) | (Access::Manager, Some(Role::Manager)) => {
            Ok(())
        }
        (Access::Node | Access::Manager, None) => Err(Status::permission_denied(
            "this call needs a node certificate of this swarm",
        )),
        (Access::Manager, Some(Role::Worker)) => {
            Err(Status::permission_denied("this call needs a manager"))
        }
    }
}

/// Refuses nodes of other swarms and nodes that were removed.
fn member(identity: &PeerIdentity, published: &Published) -> Result<(), Status> {
    let view = published.borrow();
    let Some(cluster) = view.as_ref().and_then(|view| view.cluster()) else {
        return Ok(());
    };
    if identity.cluster_id != cluster.id {
        let why = format!("node {} is of another swarm", identity.node_id);
        return Err(Status::permission_denied(why));
    }
    if cluster.removed_nodes.contains_key(&identity.node_id) {
        let why = format!("node {} was removed from swarm", identity.node_id);
        return Err(Status::permission_denied(why));
    }
    Ok(())
}

/// Refuses nodes that were managers: their certificates are good for weeks.
fn manager(identity: &PeerIdentity, published: &Published) -> Result<(), Status> {
    let view = published.borrow();
    let former = view
        .as_ref()
        .is_some_and(|view| role::is_former(view, &identity.node_id, identity.issued));
    match former {
        false => Ok(()),
        true => Err(Status::permission_denied(format!(
            "node {} is not a manager any more",
            identity.node_id
        ))),
    }
}

/// The gate as a layer around all services.
#[derive(Clone)]
pub struct Gate {
    published: Arc<Published>,
}

impl Gate {
    /// A gate that looks up removed nodes in what is published.
    #[must_use]
    pub fn new(published: Arc<Published>) -> Self {
        Self { published }
    }
}

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated {
            inner,
            published: Arc::clone(&self.published),
        }
    }
}

/// A service behind the gate.
#[derive(Clone)]
pub struct Gated<S> {
    inner: S,
    published: Arc<Published>,
}

impl<S, B> Service<http::Request<B>> for Gated<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>> + Send,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let peer = request.extensions().get::<Peer>();
        match allowed(request.uri().path(), peer, &self.published) {
            Ok(()) => Box::pin(self.inner.call(request)),
            Err(status) => Box::pin(std::future::ready(Ok(status.into_http()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::Ipv4Addr};

    use skep_core::{
        api::{Cluster, ClusterSpec, Meta, Node, NodeSpec, NodeStatus, RootCa, node::Certificate},
        id::Id,
        store::{Change, Entry, Proposal, Store},
        time::Timestamp,
    };
    use tonic::Code;

    use super::*;

    fn peer(node: u128, role: Role, cluster: u128) -> Peer {
        Peer {
            identity: Some(PeerIdentity {
                node_id: Id::from_entropy(node),
                role,
                cluster_id: Id::from_entropy(cluster),
                issued: Timestamp(0),
            }),
            ..stranger()
        }
    }

    fn stranger() -> Peer {
        Peer {
            addr: (Ipv4Addr::LOCALHOST, 1).into(),
            identity: None,
        }
    }

    /// Cluster 7, from which node 3 was removed; node 4 was demoted at moment 10.
    fn published() -> Published {
        let removed: Id<Node> = Id::from_entropy(3);
        let cluster = Cluster {
            id: Id::from_entropy(7),
            meta: Meta::default(),
            spec: ClusterSpec::default(),
            root_ca: RootCa::default(),
            data_path_port: 4789,
            default_addr_pool: Vec::new(),
            subnet_size: 24,
            ingress_subnet: String::new(),
            unlock_key: None,
            removed_nodes: BTreeMap::from([(removed, Timestamp(0))]),
        };
        let mut store = Store::default();
        let demoted = Node {
            id: Id::from_entropy(4),
            meta: Meta {
                updated_at: Timestamp(10),
                ..Meta::default()
            },
            spec: NodeSpec::default(),
            description: None,
            status: NodeStatus::default(),
            manager_status: None,
            certificate: Certificate::default(),
            networks: Vec::new(),
        };
        let put = [Change::put_cluster(cluster), Change::put_node(demoted)];
        let proposals = vec![Proposal::of(put)];
        store.apply(1, &Entry { proposals });
        Published::new(Some(store.view()))
    }

    #[test]
    fn every_method_lets_in_exactly_whom_it_says() {
        let published = published();
        for (method, access) in METHODS {
            let let_in = |peer: Option<&Peer>| allowed(method, peer, &published).is_ok();
            let by_stranger = access == Access::Anyone;
            let by_worker = access != Access::Manager;
            assert_eq!(let_in(None), by_stranger, "{method}");
            assert_eq!(let_in(Some(&stranger())), by_stranger, "{method}");
            assert_eq!(
                let_in(Some(&peer(1, Role::Worker, 7))),
                by_worker,
                "{method}"
            );
            assert!(let_in(Some(&peer(1, Role::Manager, 7))), "{method}");
            // Whoever was removed or is of another swarm gets nowhere, whatever its certificate says.
            for role in [Role::Worker, Role::Manager] {
                assert!(!let_in(Some(&peer(3, role, 7))), "{method}");
                assert!(!let_in(Some(&peer(1, role, 8))), "{method}");
            }
        }
    }

    #[test]
    fn a_former_managers_certificate_makes_it_a_node_only() {
        let published = published();
        let with = |issued| {
            let mut peer = peer(4, Role::Manager, 7);
            peer.identity.as_mut().unwrap().issued = issued;
            peer
        };
        for (method, access) in METHODS {
            let let_in = |peer: Peer| allowed(method, Some(&peer), &published).is_ok();
            assert_eq!(
                let_in(with(Timestamp(10))),
                access != Access::Manager,
                "{method}"
            );
            assert!(let_in(with(Timestamp(11))), "{method}");
        }
    }

    #[test]
    fn every_method_of_the_services_is_in_the_table() {
        let services = [
            include_str!("../../../core/proto/swarmkit.proto"),
            include_str!("../../../core/proto/skep.proto"),
        ];
        let mut methods = Vec::new();
        for file in services {
            let (mut package, mut service) = ("", "");
            for line in file.lines() {
                let words: Vec<&str> = line.split_whitespace().collect();
                match words.as_slice() {
                    ["package", name] => package = name.trim_end_matches(';'),
                    ["service", name, ..] => service = name,
                    ["rpc", call, ..] => {
                        let name = call.split('(').next().unwrap();
                        methods.push(format!("/{package}.{service}/{name}"));
                    }
                    _ => {}
                }
            }
        }
        methods.sort();
        let mut table: Vec<String> = METHODS.iter().map(|(name, _)| (*name).to_owned()).collect();
        table.sort();
        assert_eq!(methods, table);
    }

    #[test]
    fn what_is_not_in_the_table_is_not_reached() {
        let manager = peer(1, Role::Manager, 7);
        for path in [
            "",
            "/",
            "/docker.swarmkit.v1.Control/ListNodes",
            "/skep.v1.Raft/append",
        ] {
            let refused = allowed(path, Some(&manager), &published()).unwrap_err();
            assert_eq!(refused.code(), Code::Unimplemented, "{path}");
        }
    }
}
