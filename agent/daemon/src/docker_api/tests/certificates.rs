//! The certificates of a swarm and of its operators, for tests of TLS.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;

use super::super::listener;

/// Certificates as a node and an operator have them, written where the client looks.
pub(crate) fn certificates(folder: &Path) -> rustls::ServerConfig {
    let authority = |name: &str| {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    };
    let (cluster, operators) = (authority("cluster"), authority("operators"));
    let node_key = KeyPair::generate().unwrap();
    let node = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()])
        .unwrap()
        .signed_by(&node_key, &cluster)
        .unwrap();
    let write = |issuer: &CertifiedIssuer<'_, KeyPair>, prefix: &str| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, prefix);
        let certificate = params.signed_by(&key, issuer).unwrap();
        let folder = folder.join(prefix);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("ca.pem"), cluster.pem()).unwrap();
        std::fs::write(folder.join("cert.pem"), certificate.pem()).unwrap();
        std::fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
    };
    write(&operators, "admin");
    write(&cluster, "node");
    let key = PrivatePkcs8KeyDer::from(node_key.serialize_der());
    let roots = [operators.der().clone()];
    listener::tls_config(vec![node.der().clone()], key.into(), roots).unwrap()
}
