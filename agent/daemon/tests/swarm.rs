//! Real daemons on one machine, each on a loopback address of its own: they form a swarm, survive what is
//! done to them, and refuse what they should.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends at what it did not expect; the lint knows only #[test] functions"
)]

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
    StreamOwned,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

/// Whom an operator takes for a node.
#[derive(Clone, Copy)]
enum Trust {
    /// Who has a certificate of the cluster's authority.
    Cluster,
    /// Anybody: a node in no swarm has signed its certificate itself.
    OnSight,
}

#[derive(Debug)]
struct OnSight;

impl ServerCertVerifier for OnSight {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = ring::default_provider().signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

/// A folder with a generated swarm; it goes with the test.
struct Swarm {
    folder: PathBuf,
    net: u8,
}

/// A daemon, killed at the end.
struct Daemon {
    child: Child,
    address: String,
    log: PathBuf,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Swarm {
    /// `net` keeps tests apart: their daemons have addresses 127.`net`.0.x.
    fn generate(net: u8) -> Self {
        let folder = std::env::temp_dir().join(format!("skep-swarm-{}-{net}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_skepd"), folder.join("skep")).unwrap();
        let swarm = Self { folder, net };
        let made = Command::new(swarm.folder.join("skep"))
            .args(["gen", "swarm"])
            .arg(swarm.folder.join("swarm"))
            .args(["--manager", &swarm.address(1)])
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        swarm
    }

    fn address(&self, number: u8) -> String {
        format!("127.{}.0.{number}", self.net)
    }

    fn role(&self, role: &str) -> PathBuf {
        self.folder.join("swarm").join(role)
    }

    fn start(&self, number: u8, role: &str) -> Daemon {
        self.start_with(number, &self.role(role))
    }

    fn start_with(&self, number: u8, role: &Path) -> Daemon {
        self.start_on_machine(number, role, &format!("node{number}"))
    }

    fn start_on_machine(&self, number: u8, role: &Path, machine: &str) -> Daemon {
        let address = self.address(number);
        let name = format!("node{number}");
        let cmdline = self.folder.join(format!("{name}.cmdline"));
        let of_role = fs::read_to_string(role.join("cmdline")).unwrap_or_default();
        let words = format!("skep.name={name} skep.advertise={address} skep.api.san={address}");
        fs::write(&cmdline, format!("{words} {of_role}")).unwrap();
        let log = self.folder.join(format!("{name}.log"));
        let output = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_skepd"))
            .args([
                "--cluster-only",
                "--machine-id",
                machine,
                "--listen",
                &address,
            ])
            .arg("--state")
            .arg(self.folder.join(&name))
            .arg("--cmdline")
            .arg(&cmdline)
            .env("CREDENTIALS_DIRECTORY", role.join("credentials"))
            .env_remove("JOURNAL_STREAM")
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output)
            .spawn()
            .unwrap();
        Daemon {
            child,
            address,
            log,
        }
    }

    fn operator(&self, trust: Trust) -> Arc<ClientConfig> {
        let folder = self.folder.join("swarm/operator");
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_file(folder.join("ca.pem")).unwrap();
        roots.add(root).unwrap();
        let verifier: Arc<dyn ServerCertVerifier> = match trust {
            Trust::Cluster => {
                let provider = Arc::new(ring::default_provider());
                WebPkiServerVerifier::builder_with_provider(roots.into(), provider)
                    .build()
                    .unwrap()
            }
            Trust::OnSight => Arc::new(OnSight),
        };
        let chain = vec![CertificateDer::from_pem_file(folder.join("cert.pem")).unwrap()];
        let key = PrivateKeyDer::from_pem_file(folder.join("key.pem")).unwrap();
        let provider = Arc::new(ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(chain, key)
            .unwrap();
        Arc::new(config)
    }

    /// A request to the Engine API of a node; `None` when it does not answer with a document.
    fn ask(&self, node: &Daemon, method: &str, path: &str, body: &str) -> Option<Value> {
        self.ask_trusting(Trust::Cluster, node, method, path, body)
    }

    fn ask_trusting(
        &self,
        trust: Trust,
        node: &Daemon,
        method: &str,
        path: &str,
        body: &str,
    ) -> Option<Value> {
        let name = ServerName::try_from(node.address.clone()).ok()?;
        let connection = ClientConnection::new(self.operator(trust), name).ok()?;
        let stream = TcpStream::connect((node.address.as_str(), 2376)).ok()?;
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .ok()?;
        let mut stream = StreamOwned::new(connection, stream);
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all((head + body).as_bytes()).ok()?;
        let mut answer = Vec::new();
        // A peer that closes without TLS's good-bye has answered all the same.
        let _ = stream.read_to_end(&mut answer);
        let text = String::from_utf8(answer).ok()?;
        let (_, body) = text.split_once("\r\n\r\n")?;
        serde_json::from_str(body).ok()
    }

    /// Host names of nodes that are ready, as a manager lists them.
    fn ready(&self, manager: &Daemon) -> Vec<String> {
        let nodes = self.ask(manager, "GET", "/v1.41/nodes", "");
        let nodes = nodes.as_ref().and_then(Value::as_array).cloned();
        let mut ready: Vec<String> = nodes
            .unwrap_or_default()
            .iter()
            .filter(|node| node["Status"]["State"] == "ready")
            .filter_map(|node| Some(node["Description"]["Hostname"].as_str()?.to_owned()))
            .collect();
        ready.sort();
        ready
    }

    fn wait_ready(&self, manager: &Daemon, names: &[&str]) {
        eventually(&format!("{names:?} are ready"), manager, || {
            self.ready(manager) == names
        });
    }
}

impl Daemon {
    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

fn eventually(what: &str, node: &Daemon, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(
            begun.elapsed() < PATIENCE,
            "not in time: {what}\n{}",
            node.log()
        );
        sleep(Duration::from_millis(100));
    }
}

#[test]
fn nodes_that_boot_at_the_same_moment_form_one_swarm_and_keep_it() {
    let swarm = Swarm::generate(41);
    // The workers come first and have to wait for their manager.
    let worker = swarm.start(2, "worker");
    let second = swarm.start(3, "worker");
    let manager = swarm.start(1, "first-manager");
    swarm.wait_ready(&manager, &["node1", "node2", "node3"]);

    // kill -9 of all, and all come back as who they were.
    let before = swarm.ask(&manager, "GET", "/v1.41/nodes", "").unwrap();
    drop((worker, manager, second));
    let worker = swarm.start(2, "worker");
    let manager = swarm.start(1, "first-manager");
    let second = swarm.start(3, "worker");
    swarm.wait_ready(&manager, &["node1", "node2", "node3"]);
    let after = swarm.ask(&manager, "GET", "/v1.41/nodes", "").unwrap();
    assert_eq!(ids(&before), ids(&after));

    // A node that is gone is seen to be gone; one that leaves is so at once.
    drop(second);
    let left = swarm.ask(&worker, "POST", "/v1.41/swarm/leave", "");
    assert_eq!(left, None, "{left:?}");
    eventually("the others are down", &manager, || {
        swarm.ready(&manager) == ["node1"]
    });
}

fn ids(nodes: &Value) -> Vec<String> {
    let nodes = nodes.as_array().unwrap();
    let mut ids: Vec<String> = nodes
        .iter()
        .map(|node| node["ID"].as_str().unwrap().to_owned())
        .collect();
    ids.sort();
    ids
}

#[test]
fn a_second_manager_takes_part_and_forwards() {
    let swarm = Swarm::generate(42);
    let first = swarm.start(1, "first-manager");
    let second = swarm.start(2, "manager");
    swarm.wait_ready(&first, &["node1", "node2"]);
    swarm.wait_ready(&second, &["node1", "node2"]);
    let network = r#"{"Name":"by-follower","Driver":"overlay"}"#;
    let made = swarm.ask(&second, "POST", "/v1.41/networks/create", network);
    let made = made.unwrap();
    assert!(made["Id"].is_string(), "{made}\n{}", second.log());
    let find = |node| swarm.ask(node, "GET", "/v1.41/networks/by-follower", "");
    assert_eq!(find(&first).unwrap()["Name"], "by-follower");
    assert_eq!(find(&second).unwrap()["Name"], "by-follower");
}

#[test]
fn three_managers_lose_their_leader_and_go_on() {
    let swarm = Swarm::generate(44);
    let first = swarm.start(1, "first-manager");
    let second = swarm.start(2, "manager");
    let third = swarm.start(3, "manager");
    swarm.wait_ready(&first, &["node1", "node2", "node3"]);
    for joined in [&second, &third] {
        let part = "takes part in consensus";
        eventually(part, joined, || joined.log().contains(part));
    }
    drop(first);
    let leads = "this manager leads";
    eventually(leads, &second, || {
        second.log().contains(leads) || third.log().contains(leads)
    });
    swarm.wait_ready(&second, &["node2", "node3"]);
    let network = r#"{"Name":"after","Driver":"overlay"}"#;
    let made = swarm.ask(&second, "POST", "/v1.41/networks/create", network);
    assert!(made.unwrap()["Id"].is_string());
    // The lost one comes back as a follower and has what it missed.
    let first = swarm.start(1, "first-manager");
    swarm.wait_ready(&first, &["node1", "node2", "node3"]);
    eventually("it has what it missed", &first, || {
        let found = swarm.ask(&first, "GET", "/v1.41/networks/after", "");
        found.is_some_and(|found| found["Name"] == "after")
    });
}

/// The document of the node called so.
fn node(swarm: &Swarm, manager: &Daemon, name: &str) -> Option<Value> {
    let nodes = swarm.ask(manager, "GET", "/v1.41/nodes", "")?;
    let mut nodes = nodes.as_array()?.iter().cloned();
    nodes.find(|node| node["Description"]["Hostname"] == name)
}

/// Gives a node another role, and tells what the manager answers when it refuses.
fn set_role(swarm: &Swarm, manager: &Daemon, name: &str, role: &str) -> Option<Value> {
    let found = node(swarm, manager, name).unwrap();
    let mut spec = found["Spec"].clone();
    spec["Role"] = role.into();
    let (id, version) = (&found["ID"], &found["Version"]["Index"]);
    let path = format!(
        "/v1.41/nodes/{}/update?version={version}",
        id.as_str().unwrap()
    );
    swarm.ask(manager, "POST", &path, &spec.to_string())
}

fn reachability(swarm: &Swarm, manager: &Daemon, name: &str) -> String {
    let found = node(swarm, manager, name).unwrap_or_default();
    let shown = found["ManagerStatus"]["Reachability"].as_str();
    shown.unwrap_or_default().to_owned()
}

#[test]
fn managers_are_promoted_demoted_and_leave_without_a_loss_of_quorum() {
    let swarm = Swarm::generate(48);
    let first = swarm.start(1, "first-manager");
    let second = swarm.start(2, "worker");
    let third = swarm.start(3, "worker");
    swarm.wait_ready(&first, &["node1", "node2", "node3"]);
    let last = set_role(&swarm, &first, "node1", "worker").unwrap_or_default();
    assert!(last.to_string().contains("the last manager"), "{last}");

    for name in ["node2", "node3"] {
        assert_eq!(set_role(&swarm, &first, name, "manager"), None);
        eventually("the promoted one is a manager", &first, || {
            reachability(&swarm, &first, name) == "reachable"
        });
    }
    // Each of them manages now, and the leader can become a worker.
    eventually("the promoted one answers", &third, || {
        node(&swarm, &third, "node1").is_some()
    });
    assert_eq!(set_role(&swarm, &third, "node1", "worker"), None);
    eventually("the old leader is a worker", &second, || {
        let found = node(&swarm, &second, "node1").unwrap_or_default();
        found["ManagerStatus"].is_null() && found["Status"]["State"] == "ready"
    });
    eventually("a worker does not manage", &first, || {
        let refused = swarm
            .ask(&first, "GET", "/v1.41/nodes", "")
            .unwrap_or_default();
        refused.to_string().contains("not a swarm manager")
    });

    // With one of two managers gone there is no majority, and no demotion is accepted; the other one comes back.
    drop(third);
    let refused = set_role(&swarm, &second, "node3", "worker").unwrap_or_default();
    assert!(
        refused.to_string().contains("does not have a leader"),
        "{refused}"
    );
    let third = swarm.start(3, "worker");
    eventually("both manage again", &third, || {
        let network = r#"{"Name":"both","Driver":"overlay"}"#;
        let made = swarm.ask(&third, "POST", "/v1.41/networks/create", network);
        made.is_some_and(|made| made["Id"].is_string())
    });

    // A manager that leaves is no loss to the one that stays.
    let left = swarm.ask(&third, "POST", "/v1.41/swarm/leave?force=1", "");
    assert_eq!(left, None, "{left:?}");
    let network = r#"{"Name":"alone","Driver":"overlay"}"#;
    let made = swarm.ask(&second, "POST", "/v1.41/networks/create", network);
    assert!(made.unwrap()["Id"].is_string());
    eventually("it is down and no manager", &second, || {
        let found = node(&swarm, &second, "node3").unwrap_or_default();
        found["ManagerStatus"].is_null() && found["Status"]["State"] == "down"
    });
}

#[test]
fn an_operator_makes_a_swarm_leaves_it_and_joins_another() {
    let swarm = Swarm::generate(45);
    let manager = swarm.start(1, "first-manager");
    swarm.wait_ready(&manager, &["node1"]);
    let role = swarm.folder.join("nothing");
    fs::create_dir_all(role.join("credentials")).unwrap();
    let operators = "credentials/skep.operator-ca";
    fs::copy(swarm.role("worker").join(operators), role.join(operators)).unwrap();
    let node = swarm.start_with(2, &role);
    let ask = |method: &str, path: &str, body: &str| {
        swarm.ask_trusting(Trust::OnSight, &node, method, path, body)
    };
    let state = || {
        let info = ask("GET", "/v1.41/info", "")?;
        Some(info["Swarm"]["LocalNodeState"].as_str()?.to_owned())
    };
    let is = |wanted: &str| state().as_deref() == Some(wanted);
    eventually("it waits", &node, || is("inactive"));

    let init = r#"{"ListenAddr":"0.0.0.0:2377"}"#;
    let made = ask("POST", "/v1.41/swarm/init", init).unwrap();
    assert_eq!(made.as_str().map(str::len), Some(25), "{made}");
    assert!(is("active"), "the first session stands when init answers");
    let again = ask("POST", "/v1.41/swarm/init", init).unwrap();
    let again = again["message"].as_str().unwrap_or_default().to_owned();
    assert!(again.contains("already part of a swarm"), "{again}");
    let kept = ask("POST", "/v1.41/swarm/leave", "").unwrap();
    let kept = kept["message"].as_str().unwrap_or_default().to_owned();
    assert!(kept.contains("--force"), "{kept}");
    ask("POST", "/v1.41/swarm/leave?force=true", "");
    assert!(is("inactive"));

    let join = fs::read_to_string(swarm.role("worker/credentials/skep.join")).unwrap();
    let (token, address) = join.trim().split_once('@').unwrap();
    let body = format!(
        r#"{{"ListenAddr":"0.0.0.0:2377","RemoteAddrs":["{address}"],"JoinToken":"{token}"}}"#
    );
    ask("POST", "/v1.41/swarm/join", &body);
    assert!(is("active"), "the first session stands when join answers");
    swarm.wait_ready(&manager, &["node1", "node2"]);
}

#[test]
fn wrong_tokens_and_hostile_bytes_harm_nobody() {
    let swarm = Swarm::generate(43);
    let manager = swarm.start(1, "first-manager");
    swarm.wait_ready(&manager, &["node1"]);
    let good = fs::read_to_string(swarm.role("worker/credentials/skep.join")).unwrap();
    let cases = [
        (damaged(&good, 3), "join token"),
        (damaged(&good, 2), "digest"),
        (
            good.replace(&swarm.address(1), &swarm.address(9)),
            "cannot reach",
        ),
    ];
    for (number, (value, said)) in (2..).zip(cases) {
        let role = swarm.folder.join(format!("bad{number}"));
        fs::create_dir_all(role.join("credentials")).unwrap();
        fs::write(role.join("credentials/skep.join"), value).unwrap();
        let operators = "credentials/skep.operator-ca";
        fs::copy(swarm.role("worker").join(operators), role.join(operators)).unwrap();
        let mut node = swarm.start_with(number, &role);
        eventually(said, &node, || node.log().contains(said));
        assert!(node.child.try_wait().unwrap().is_none(), "it stays up");
    }
    for seed in 0..50u32 {
        let mut stream = TcpStream::connect((manager.address.as_str(), 2377)).unwrap();
        let junk: Vec<u8> = (0..600u32)
            .map(|at| {
                seed.wrapping_add(at)
                    .wrapping_mul(2_654_435_761)
                    .to_be_bytes()[0]
            })
            .collect();
        // The other side may close in the middle: that is an answer, too.
        let _ = stream.write_all(&junk);
    }
    assert_eq!(swarm.ready(&manager), ["node1"]);
    assert!(!manager.log().contains("panicked"), "{}", manager.log());
}

#[test]
fn a_second_machine_with_the_same_id_is_refused_by_name() {
    let swarm = Swarm::generate(46);
    let manager = swarm.start(1, "first-manager");
    let one = swarm.start_on_machine(2, &swarm.role("worker"), "cloned");
    swarm.wait_ready(&manager, &["node1", "node2"]);
    let mut two = swarm.start_on_machine(3, &swarm.role("worker"), "cloned");
    eventually("the log names both machines", &two, || {
        let log = two.log();
        let mut lines = log.lines();
        lines.any(|line| line.contains("cloned") && line.contains("node2"))
    });
    eventually("info says it", &two, || {
        let info = swarm.ask_trusting(Trust::OnSight, &two, "GET", "/v1.41/info", "");
        let error = info.map(|info| info["Swarm"]["Error"].to_string());
        error.is_some_and(|error| error.contains("cloned") && error.contains("node2"))
    });
    assert_eq!(swarm.ready(&manager), ["node1", "node2"]);
    assert!(two.child.try_wait().unwrap().is_none(), "it stays up");
    drop(one);
}

/// The token of `TOKEN@ADDRESS` with the last digit of one part changed.
fn damaged(join: &str, part: usize) -> String {
    let (token, address) = join.split_once('@').unwrap();
    let mut parts: Vec<String> = token.split('-').map(str::to_owned).collect();
    let last = parts[part].pop().unwrap();
    parts[part].push(if last == '0' { '1' } else { '0' });
    format!("{}@{address}", parts.join("-"))
}
