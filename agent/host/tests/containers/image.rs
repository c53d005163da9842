//! Images for the tests: the probe with the libraries it needs, and a registry that serves them, and lies when told to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

pub(crate) fn sha256(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

/// A tar archive of plain files with their modes.
pub(crate) fn archive(files: &[(&str, u32, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, mode, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        builder
            .append_data(&mut header, path.trim_start_matches('/'), &content[..])
            .unwrap();
    }
    builder.into_inner().unwrap()
}

/// The probe and what the loader says it needs.
pub(crate) fn probe_files(probe: &Path) -> Vec<(String, u32, Vec<u8>)> {
    let mut files = vec![("/probe".to_owned(), 0o755, std::fs::read(probe).unwrap())];
    let said = Command::new("/lib64/ld-linux-x86-64.so.2")
        .arg("--list")
        .arg(probe)
        .output()
        .expect("the dynamic loader");
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    for word in text.split_whitespace().filter(|word| word.starts_with('/')) {
        files.push((word.to_owned(), 0o755, std::fs::read(word).unwrap()));
    }
    let passwd = "root:x:0:0::/root:/bin/sh\nwww:x:33:34::/var/www:/bin/false\n";
    files.push(("/etc/passwd".to_owned(), 0o644, passwd.into()));
    files.push((
        "/etc/group".to_owned(),
        0o644,
        "root:x:0:\nwww:x:34:\nadm:x:4:www\n".into(),
    ));
    files.push(("/data/from-image".to_owned(), 0o644, "image content".into()));
    files
}

/// What a registry has, and how it misbehaves.
#[derive(Default)]
pub(crate) struct Content {
    pub(crate) manifests: BTreeMap<String, (String, Vec<u8>)>,
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
    /// So many requests are answered with 503 first.
    pub(crate) failures: usize,
    /// So many blobs end in the middle.
    pub(crate) cuts: usize,
    /// Requests want a token.
    pub(crate) token: Option<String>,
}

#[derive(Clone)]
pub(crate) struct Registry {
    pub(crate) address: String,
    pub(crate) content: Arc<Mutex<Content>>,
    pub(crate) requests: Arc<AtomicUsize>,
}

impl Registry {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let registry = Self {
            address: listener.local_addr().unwrap().to_string(),
            content: Arc::default(),
            requests: Arc::default(),
        };
        let serving = registry.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serving.clone().serve(stream));
            }
        });
        registry
    }

    pub(crate) fn edit<T>(&self, edit: impl FnOnce(&mut Content) -> T) -> T {
        edit(&mut self.content.lock().unwrap())
    }

    /// Adds an image; gives the digest of its manifest.
    pub(crate) fn add(&self, name: &str, config: Value, layers: &[(Vec<u8>, Vec<u8>)]) -> String {
        let diff_ids: Vec<String> = layers.iter().map(|(tar, _)| sha256(tar)).collect();
        let config = json!({
            "os": "linux", "architecture": "amd64", "created": "2026-01-02T03:04:05Z",
            "config": config, "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = serde_json::to_vec(&config).unwrap();
        let kind = "application/vnd.oci.image.layer.v1.tar+zstd";
        let described = layers.iter().map(
            |(_, blob)| json!({"mediaType": kind, "digest": sha256(blob), "size": blob.len()}),
        );
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2, "mediaType": kind,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": sha256(&config), "size": config.len()},
            "layers": described.collect::<Vec<_>>(),
        }))
        .unwrap();
        let digest = sha256(&manifest);
        self.edit(|content| {
            content.blobs.insert(sha256(&config), config);
            for (_, blob) in layers {
                content.blobs.insert(sha256(blob), blob.clone());
            }
            for tag in [name.to_owned(), digest.clone()] {
                content
                    .manifests
                    .insert(tag, (kind.to_owned(), manifest.clone()));
            }
        });
        digest
    }

    async fn serve(self, stream: TcpStream) {
        let mut stream = BufReader::new(stream);
        loop {
            let (mut path, mut authorization) = (None, None);
            loop {
                let mut line = String::new();
                if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                    return;
                }
                let line = line.trim_end();
                if line.is_empty() {
                    break;
                }
                if let Some(target) = line.strip_prefix("GET ") {
                    path = target.split(' ').next().map(str::to_owned);
                }
                if let Some((key, value)) = line.split_once(": ")
                    && key.eq_ignore_ascii_case("authorization")
                {
                    authorization = Some(value.to_owned());
                }
            }
            self.requests.fetch_add(1, Ordering::Relaxed);
            let answer = self.answer(&path.unwrap_or_default(), authorization.as_deref());
            let whole = answer.body.len() == answer.promised;
            let head = format!(
                "HTTP/1.1 {}\r\nContent-Length: {}\r\n{}\r\n",
                answer.status, answer.promised, answer.headers
            );
            let sent = stream
                .write_all(head.as_bytes())
                .await
                .and(stream.write_all(&answer.body).await);
            if sent.is_err() || !whole {
                return;
            }
        }
    }

    fn answer(&self, path: &str, authorization: Option<&str>) -> Answer {
        self.edit(|content| {
            if content.failures > 0 {
                content.failures -= 1;
                return Answer::of("503 Service Unavailable", b"");
            }
            if let Some(token) = &content.token {
                if path.starts_with("/token?") {
                    let body = json!({"token": token}).to_string();
                    return Answer::of("200 OK", body.as_bytes());
                }
                if authorization != Some(&format!("Bearer {token}")) {
                    let mut answer = Answer::of("401 Unauthorized", b"");
                    answer.headers = format!(
                        "WWW-Authenticate: Bearer realm=\"http://{}/token\",service=\"test\"\r\n",
                        self.address
                    );
                    return answer;
                }
            }
            let last = path.rsplit('/').next().unwrap_or_default();
            if path.contains("/manifests/") {
                let name = path
                    .trim_start_matches("/v2/")
                    .split("/manifests/")
                    .next()
                    .unwrap_or_default();
                let found = content
                    .manifests
                    .get(last)
                    .or_else(|| content.manifests.get(&format!("{name}:{last}")));
                return match found {
                    Some((kind, body)) => {
                        let mut answer = Answer::of("200 OK", body);
                        answer.headers = format!("Content-Type: {kind}\r\n");
                        answer
                    }
                    None => Answer::of(
                        "404 Not Found",
                        br#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#,
                    ),
                };
            }
            let Some(blob) = content.blobs.get(last) else {
                return Answer::of("404 Not Found", b"");
            };
            let mut answer = Answer::of("200 OK", blob);
            if content.cuts > 0 && blob.len() > 4096 {
                content.cuts -= 1;
                answer.body.truncate(blob.len() / 2);
            }
            answer
        })
    }
}

struct Answer {
    status: &'static str,
    headers: String,
    body: Vec<u8>,
    promised: usize,
}

impl Answer {
    fn of(status: &'static str, body: &[u8]) -> Self {
        Self {
            status,
            headers: String::new(),
            body: body.to_vec(),
            promised: body.len(),
        }
    }
}

/// A layer and its compressed form.
pub(crate) fn layer(files: &[(&str, u32, Vec<u8>)]) -> (Vec<u8>, Vec<u8>) {
    let tar = archive(files);
    let blob = zstd::encode_all(&tar[..], 1).unwrap();
    (tar, blob)
}

/// A layer of symbolic links.
pub(crate) fn links(links: &[(&str, &str)]) -> (Vec<u8>, Vec<u8>) {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, target) in links {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, path, target).unwrap();
    }
    let tar = builder.into_inner().unwrap();
    let blob = zstd::encode_all(&tar[..], 1).unwrap();
    (tar, blob)
}

/// The probe's path: beside this program, or where cargo puts examples.
pub(crate) fn program(name: &str, cargo_path: &str, build: &[&str]) -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let beside = here.with_file_name(name);
    if beside.exists() {
        return beside;
    }
    if let Some(cargo) = std::env::var_os("CARGO") {
        let status = Command::new(cargo)
            .arg("build")
            .args(build)
            .status()
            .unwrap();
        assert!(status.success(), "cargo build {build:?}");
    }
    let target = here.parent().and_then(Path::parent).unwrap();
    let built = target.join(cargo_path);
    assert!(
        built.exists(),
        "{} is missing: cargo build {}",
        built.display(),
        build.join(" ")
    );
    built
}
