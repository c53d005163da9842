//! 2377: gRPC over mutual TLS, both ends.
//!
//! Managers serve [`server`] behind one [`gate`] that decides from the method and the certificate who may
//! call. Every node, a leader's own worker too, is a client: [`join`] makes it a member, [`session`] keeps
//! it one.

pub mod authority;
pub mod dial;
pub mod dispatcher;
pub mod gate;
pub mod join;
pub mod log_publisher;
pub mod logs;
pub mod managers;
pub mod mesh;
pub mod server;
pub mod session;
mod status;
mod streams;

use tonic::service::Routes;

use self::services::{skep, swarmkit};
use crate::manager::Manager;

/// The services of `docker.swarmkit.v1` and `skep.v1`; their messages are those of `skep_core::wire`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::restriction
)]
pub mod services {
    /// swarmkit's own.
    pub mod swarmkit {
        tonic::include_proto!("docker.swarmkit.v1");
    }
    /// Skep's own.
    pub mod skep {
        tonic::include_proto!("skep.v1");
    }
}

/// Every service of a manager.
#[must_use]
pub fn routes(manager: &Manager) -> Routes {
    let authority = authority::AuthorityService(manager.clone());
    let dispatcher = dispatcher::DispatcherService(manager.clone());
    let managers = managers::ManagersService(manager.clone());
    let logs = logs::LogsService(manager.clone());
    let mut routes = Routes::builder();
    routes
        .add_service(swarmkit::ca_server::CaServer::new(authority.clone()))
        .add_service(swarmkit::node_ca_server::NodeCaServer::new(
            authority.clone(),
        ))
        .add_service(skep::certificates_server::CertificatesServer::new(
            authority,
        ))
        .add_service(
            swarmkit::dispatcher_server::DispatcherServer::new(dispatcher.clone())
                .max_decoding_message_size(MAX_SERVER_MESSAGE),
        )
        .add_service(skep::membership_server::MembershipServer::new(dispatcher))
        .add_service(skep::mesh_server::MeshServer::new(mesh::MeshService(
            manager.clone(),
        )))
        .add_service(
            skep::raft_server::RaftServer::new(managers.clone())
                .max_decoding_message_size(MAX_CLIENT_MESSAGE),
        )
        .add_service(skep::control_server::ControlServer::new(managers))
        .add_service(
            swarmkit::log_broker_server::LogBrokerServer::new(logs.clone())
                .max_decoding_message_size(MAX_SERVER_MESSAGE),
        )
        .add_service(swarmkit::logs_server::LogsServer::new(logs));
    routes.routes()
}

/// The port of the control plane.
pub const CLUSTER_PORT: u16 = 2377;

/// Bytes of a message that a server takes, as in swarmkit.
pub const MAX_SERVER_MESSAGE: usize = 4 << 20;
/// Bytes of a message that a client takes from a manager, which it trusts more.
pub const MAX_CLIENT_MESSAGE: usize = 64 << 20;

/// `address` with the port of the control plane if it has none.
#[must_use]
pub fn with_port(address: &str) -> String {
    let bare_v6 = address.parse::<std::net::Ipv6Addr>().is_ok();
    if bare_v6 {
        format!("[{address}]:{CLUSTER_PORT}")
    } else if address.contains("]:") || (!address.starts_with('[') && address.contains(':')) {
        address.to_owned()
    } else {
        format!("{address}:{CLUSTER_PORT}")
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_missing_port_is_2377() {
        let cases = [
            ("10.0.0.1", "10.0.0.1:2377"),
            ("10.0.0.1:9", "10.0.0.1:9"),
            ("host", "host:2377"),
            ("host:9", "host:9"),
            ("::1", "[::1]:2377"),
            ("[::1]", "[::1]:2377"),
            ("[::1]:9", "[::1]:9"),
        ];
        for (given, want) in cases {
            assert_eq!(super::with_port(given), want);
        }
    }
}
