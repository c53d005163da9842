//! A generated swarm of real daemons on one machine, each on a loopback address of its own.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends at what it did not expect; the lint knows only #[test] functions"
)]
#![allow(dead_code, reason = "each file of tests needs a part of it")]

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

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Whom an operator takes for a node.
#[derive(Clone, Copy)]
pub(crate) enum Trust {
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
pub(crate) struct Swarm {
    pub(crate) folder: PathBuf,
    net: u8,
}

/// A daemon, killed at the end.
pub(crate) struct Daemon {
    pub(crate) child: Child,
    pub(crate) address: String,
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
    pub(crate) fn generate(net: u8) -> Self {
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

    pub(crate) fn address(&self, number: u8) -> String {
        format!("127.{}.0.{number}", self.net)
    }

    pub(crate) fn role(&self, role: &str) -> PathBuf {
        self.folder.join("swarm").join(role)
    }

    pub(crate) fn start(&self, number: u8, role: &str) -> Daemon {
        self.start_with(number, &self.role(role))
    }

    pub(crate) fn start_with(&self, number: u8, role: &Path) -> Daemon {
        self.start_on_machine(number, role, &format!("node{number}"))
    }

    pub(crate) fn start_on_machine(&self, number: u8, role: &Path, machine: &str) -> Daemon {
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
    pub(crate) fn ask(&self, node: &Daemon, method: &str, path: &str, body: &str) -> Option<Value> {
        self.ask_trusting(Trust::Cluster, node, method, path, body)
    }

    pub(crate) fn ask_trusting(
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
    pub(crate) fn ready(&self, manager: &Daemon) -> Vec<String> {
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

    pub(crate) fn wait_ready(&self, manager: &Daemon, names: &[&str]) {
        eventually(&format!("{names:?} are ready"), manager, || {
            self.ready(manager) == names
        });
    }
}

impl Daemon {
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

pub(crate) fn eventually(what: &str, node: &Daemon, mut done: impl FnMut() -> bool) {
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
