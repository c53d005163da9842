use std::{io, sync::Arc, time::Duration};

use rustls::{ClientConnection, ServerConnection, pki_types::ServerName};
use skep_core::{
    api::Role,
    id::Id,
    wire::{token::JoinToken, unlock::UnlockKey},
};
use skep_host::clock;

use super::{
    authority::{MIN_NODE_LIFE, self_signed_api},
    certificate::{check_root, split_bundle, validity},
    tls::{CertificateCell, api_server, bootstrap_client, cluster_client, cluster_server},
    *,
};

fn authority() -> Authority {
    Authority::generate("swarm-ca", clock::timestamp()).unwrap()
}

fn subject(role: Role) -> NodeSubject {
    NodeSubject {
        node_id: Id::from_entropy(1),
        role,
        cluster_id: Id::from_entropy(2),
    }
}

const LIFE: Duration = Duration::from_secs(7200);

/// A cell with a node certificate of this role.
fn node_cell(authority: &Authority, role: Role) -> Arc<CertificateCell> {
    let KeyAndRequest { key, request } = KeyAndRequest::draw().unwrap();
    let subject = subject(role);
    let chain = authority.sign_node(&request, &subject, LIFE, clock::timestamp());
    let cell = CertificateCell::default();
    cell.set(&chain.unwrap(), &key).unwrap();
    Arc::new(cell)
}

fn operator_cell(operators: &Authority) -> Arc<CertificateCell> {
    let (chain, key) = operators
        .issue_operator("admin", clock::timestamp())
        .unwrap();
    let cell = CertificateCell::default();
    cell.set(&chain, &key).unwrap();
    Arc::new(cell)
}

fn api_cell(authority: &Authority, names: &[&str]) -> Arc<CertificateCell> {
    let KeyAndRequest { key, request } = KeyAndRequest::draw().unwrap();
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let subject = subject(Role::Worker);
    let chain = authority.sign_api(&request, &subject, &names, LIFE, clock::timestamp());
    let cell = CertificateCell::default();
    cell.set(&chain.unwrap(), &key).unwrap();
    Arc::new(cell)
}

/// Runs a handshake in memory, to its end or to the first refusal.
fn handshake(
    client: Arc<rustls::ClientConfig>,
    server: Arc<rustls::ServerConfig>,
    name: &'static str,
) -> Result<ServerConnection, io::Error> {
    let name = ServerName::try_from(name).unwrap();
    let mut client = ClientConnection::new(client, name).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    for _ in 0..8 {
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes)?;
        server.read_tls(&mut bytes.as_slice())?;
        server.process_new_packets().map_err(io::Error::other)?;
        let mut bytes = Vec::new();
        server.write_tls(&mut bytes)?;
        client.read_tls(&mut bytes.as_slice())?;
        client.process_new_packets().map_err(io::Error::other)?;
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok(server)
}

#[test]
fn the_cluster_port_knows_nodes_by_their_certificates() {
    let authority = authority();
    let manager = node_cell(&authority, Role::Manager);
    let server = cluster_server(authority.certificate(), manager).unwrap();
    for role in [Role::Worker, Role::Manager] {
        let cell = node_cell(&authority, role);
        let client = cluster_client(authority.certificate(), Some(cell)).unwrap();
        let connection = handshake(client, Arc::clone(&server), "swarm-manager").unwrap();
        let leaf = &connection.peer_certificates().unwrap()[0];
        let peer = PeerIdentity::of(leaf).unwrap();
        let expected = subject(role);
        assert_eq!(peer.node_id, expected.node_id);
        assert_eq!(peer.role, role);
        assert_eq!(peer.cluster_id, expected.cluster_id);
    }
    // Who joins shows no certificate and is let in; what it may call is decided per method.
    let joiner = cluster_client(authority.certificate(), None).unwrap();
    let connection = handshake(joiner, Arc::clone(&server), "swarm-ca").unwrap();
    assert!(connection.peer_certificates().is_none());
    let stranger = bootstrap_client().unwrap();
    handshake(stranger, server, "whatever").unwrap();
}

#[test]
fn certificates_of_other_kinds_are_refused() {
    let (cluster, operators, foreign) = (authority(), authority(), authority());
    let manager = node_cell(&cluster, Role::Manager);
    let server = cluster_server(cluster.certificate(), manager).unwrap();
    let api = api_server(operators.certificate(), api_cell(&cluster, &["node1"])).unwrap();
    let as_client = |cell| cluster_client(cluster.certificate(), Some(cell)).unwrap();
    // 2377: no operators, no nodes of another swarm, no API certificates.
    let strangers = [
        operator_cell(&operators),
        node_cell(&foreign, Role::Manager),
        api_cell(&cluster, &["node1"]),
    ];
    for cell in strangers {
        assert!(handshake(as_client(cell), Arc::clone(&server), "swarm-manager").is_err());
    }
    // 2376: no nodes. (A client of the cluster refuses its certificate first, so the bootstrap one asks.)
    assert!(handshake(bootstrap_client().unwrap(), api, "node1").is_err());
    // A node does not take a worker, or an API certificate, for a manager.
    for pretender in [
        node_cell(&cluster, Role::Worker),
        api_cell(&cluster, &["node1"]),
    ] {
        let server = cluster_server(cluster.certificate(), pretender).unwrap();
        let client = as_client(node_cell(&cluster, Role::Worker));
        for name in ["swarm-manager", "swarm-worker", "node1"] {
            assert!(handshake(Arc::clone(&client), Arc::clone(&server), name).is_err());
        }
    }
}

#[test]
fn a_replaced_certificate_is_used_by_the_next_handshake() {
    let authority = authority();
    let cell = node_cell(&authority, Role::Worker);
    let server = cluster_server(authority.certificate(), Arc::clone(&cell)).unwrap();
    let client = || cluster_client(authority.certificate(), None).unwrap();
    assert!(handshake(client(), Arc::clone(&server), "swarm-ca").is_err());
    let KeyAndRequest { key, request } = KeyAndRequest::draw().unwrap();
    let manager = subject(Role::Manager);
    let chain = authority.sign_node(&request, &manager, LIFE, clock::timestamp());
    cell.set(&chain.unwrap(), &key).unwrap();
    handshake(client(), server, "swarm-ca").unwrap();
}

#[test]
fn names_that_nodes_are_known_by_are_not_signed_for_2376() {
    let authority = authority();
    let KeyAndRequest { request, .. } = KeyAndRequest::draw().unwrap();
    let sign = |name: &str| {
        let names = [name.to_owned()];
        let subject = subject(Role::Worker);
        authority.sign_api(&request, &subject, &names, LIFE, clock::timestamp())
    };
    let sign_manager = |name: &str| {
        let names = [name.to_owned()];
        let subject = subject(Role::Manager);
        authority.sign_api(&request, &subject, &names, LIFE, clock::timestamp())
    };
    // A manager may be called so: it is one.
    sign_manager("swarm-manager").unwrap();
    for name in ["swarm-ca", "swarm-worker", "Swarm-CA"] {
        assert!(sign_manager(name).is_err(), "{name:?}");
    }
    let node_id = Id::<()>::from_entropy(9).to_string();
    for name in [
        "swarm-manager",
        "SWARM-CA",
        "swarm-worker",
        &node_id,
        "a b",
        "",
        "-x",
        "*.x",
    ] {
        assert!(sign(name).is_err(), "{name:?}");
    }
    for name in ["node1", "node1.example.org", "10.0.0.1", "::1", "localhost"] {
        sign(name).unwrap();
    }
}

#[test]
fn requests_give_their_key_and_nothing_else() {
    let authority = authority();
    let now = clock::timestamp();
    let KeyAndRequest { request, .. } = KeyAndRequest::draw().unwrap();
    let short = Duration::from_secs(1);
    let chain = authority
        .sign_node(&request, &subject(Role::Worker), short, now)
        .unwrap();
    let (from, until) = validity(&chain).unwrap();
    assert!(from < now && until + Duration::from_secs(1) >= now + MIN_NODE_LIFE);
    for damaged in ["", "no PEM", authority.certificate()] {
        let signed = authority.sign_node(damaged, &subject(Role::Worker), LIFE, now);
        assert!(signed.is_err());
    }
    let tampered = request.replacen('A', "B", 1);
    assert!(
        authority
            .sign_node(&tampered, &subject(Role::Worker), LIFE, now)
            .is_err()
    );
}

#[test]
fn an_authority_survives_its_bundle() {
    let authority = authority();
    let bundle = format!("{}{}", authority.certificate(), authority.key());
    let (certificate, key) = split_bundle(&bundle);
    assert_eq!(certificate, authority.certificate());
    let token = JoinToken::new(authority.certificate().as_bytes(), 1);
    assert!(token.pins(certificate.as_bytes()));
    let again = Authority::from_pem(&certificate, &key).unwrap();
    assert_eq!(again.certificate(), authority.certificate());
    let other = Authority::generate("swarm-ca", clock::timestamp()).unwrap();
    assert!(Authority::from_pem(&certificate, &other.key()).is_err());
}

#[test]
fn only_authorities_are_roots() {
    check_root(authority().certificate().as_bytes()).unwrap();
    let (leaf, _) = self_signed_api(&["x".to_owned()], clock::timestamp()).unwrap();
    assert!(check_root(leaf.as_bytes()).is_err());
    assert!(check_root(b"").is_err());
}

#[test]
fn the_vault_keeps_what_it_is_given() {
    let folder = std::env::temp_dir().join(format!("skep-vault-{}", std::process::id()));
    let vault = Vault::open(&folder).unwrap();
    assert_eq!(vault.node().unwrap(), None);
    let joining = storage::Joining {
        node_id: Id::from_entropy(1),
        key: "k".to_owned(),
        request: "r".to_owned(),
        root: "c".to_owned(),
        wish: storage::JoinWish::default(),
    };
    vault.set_joining(Some(&joining)).unwrap();
    assert!(vault.joining().unwrap().is_some_and(|kept| kept == joining));
    let identity = NodeIdentity {
        node_id: Id::from_entropy(1),
        cluster_id: Id::from_entropy(2),
        role: Role::Worker,
        key: "k".to_owned(),
        certificate: "c".to_owned(),
        root: "r".to_owned(),
    };
    vault.set_node(&identity).unwrap();
    assert_eq!(vault.node().unwrap(), Some(identity));
    assert!(vault.joining().unwrap().is_none(), "the join is over");
    std::fs::write(folder.join("node.json"), "{").unwrap();
    assert!(
        vault.node().is_err(),
        "damage is said, not taken for absence"
    );
    vault.forget().unwrap();
    assert_eq!(vault.node().unwrap(), None);
    std::fs::remove_dir_all(&folder).unwrap();
}

fn manager_identity() -> NodeIdentity {
    NodeIdentity {
        node_id: Id::from_entropy(1),
        cluster_id: Id::from_entropy(2),
        role: Role::Manager,
        key: "PRIVATE".to_owned(),
        certificate: "c".to_owned(),
        root: "r".to_owned(),
    }
}

fn numbers(keys: &LogKeys) -> Vec<u32> {
    keys.iter().map(|(number, _)| number).collect()
}

#[test]
fn a_locked_vault_opens_with_its_key_only_and_stays_locked() {
    let folder = std::env::temp_dir().join(format!("skep-locked-{}", std::process::id()));
    let vault = Vault::open(&folder).unwrap();
    // Keys of the log are drawn before there is an identity, and kept with it.
    let drawn = serde_json::to_string(&vault.log_keys().unwrap()).unwrap();
    vault.set_node(&manager_identity()).unwrap();
    let again = Vault::open(&folder).unwrap().log_keys().unwrap();
    assert_eq!(serde_json::to_string(&again).unwrap(), drawn);
    let key = UnlockKey::new([1; 32]);
    let keys = vault.set_lock(Some(key.clone()), 5).unwrap();
    assert_eq!(numbers(&keys), [1, 2], "a rotation is under way");
    assert!(vault.is_rotating());
    let keys = vault.set_lock(Some(key.clone()), 6).unwrap();
    assert_eq!(numbers(&keys), [1, 2], "which is not begun twice");
    assert_eq!(numbers(&vault.drop_old_log_keys().unwrap()), [2]);
    // A new certificate does not open what is locked.
    let mut renewed = manager_identity();
    "d".clone_into(&mut renewed.certificate);
    vault.set_node(&renewed).unwrap();
    let file = std::fs::read_to_string(folder.join("node.json")).unwrap();
    assert!(!file.contains("PRIVATE"), "{file}");

    let vault = Vault::open(&folder).unwrap();
    assert!(matches!(vault.node(), Err(IdentityError::Locked)));
    assert!(matches!(vault.log_keys(), Err(IdentityError::Locked)));
    let locked = vault.locked().unwrap().unwrap();
    assert_eq!(
        (locked.node_id, locked.role),
        (Id::from_entropy(1), Role::Manager)
    );
    let wrong = vault.unlock(UnlockKey::new([2; 32]));
    assert!(matches!(wrong, Err(IdentityError::WrongKey)));
    assert!(vault.locked().unwrap().is_some(), "nothing is lost");
    assert!(vault.unlock(key.clone()).unwrap() == renewed);
    assert_eq!(vault.lock(), (Some(key), 6));
    assert_eq!(numbers(&vault.log_keys().unwrap()), [2]);
    assert_eq!(vault.locked().unwrap(), None);
    vault.set_lock(None, 7).unwrap();
    assert!(Vault::open(&folder).unwrap().node().unwrap() == Some(renewed));
    std::fs::remove_dir_all(&folder).unwrap();
}
