//! The registry: Debian's `docker-registry` on the host's loopback, filled by our own push.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::archive::{Archive, Blob};
use crate::http::Client;
use crate::packages::{Suite, host_codename};
use crate::paths::{Paths, write_atomically};
use crate::process::{Background, Signal};
use crate::progress::Step;
use crate::vm::{HOST, free_port};

/// The registry of this lab.
pub struct Registry {
    folder: PathBuf,
    /// Its port on 127.0.0.1; the same for as long as `.lab` lives, since nodes are told about it.
    pub port: u16,
}

impl Registry {
    /// Finds the registry's folder and port; starts nothing.
    pub fn at(paths: &Paths) -> Result<Registry> {
        let folder = paths.folder("registry")?;
        let file = folder.join("port");
        let known = fs::read_to_string(&file)
            .ok()
            .and_then(|text| text.trim().parse().ok());
        let port = match known {
            Some(port) => port,
            None => {
                let port = free_port()?;
                write_atomically(&file, port.to_string().as_bytes())?;
                port
            }
        };
        Ok(Registry { folder, port })
    }

    /// How a node reaches it: `host:port`.
    pub fn address_for_nodes(&self) -> String {
        format!("{HOST}:{}", self.port)
    }

    fn process(&self) -> Background {
        Background::at(self.folder.join("pid"))
    }

    /// Whether it runs.
    pub fn running(&self) -> bool {
        self.process().alive()
    }

    /// Starts it, unpacking Debian's package the first time.
    pub fn start(&self, paths: &Paths) -> Result<()> {
        if self.running() {
            return Ok(());
        }
        let program = self.folder.join("program/usr/bin/docker-registry");
        if !program.exists() {
            let step = Step::begin("fetching docker-registry");
            Suite::open(paths, &host_codename()?)?
                .unpack(&["docker-registry"], &self.folder.join("program"))?;
            step.done();
        }
        let data = self.folder.join("data");
        fs::create_dir_all(&data)?;
        let configuration = format!(
            "version: 0.1\nlog:\n  level: warn\n  accesslog:\n    disabled: true\nstorage:\n  delete:\n    enabled: true\n  \
             filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{}\n",
            serde_json::to_string(&data)?,
            self.port
        );
        let file = self.folder.join("config.yml");
        fs::write(&file, configuration)?;
        let log = self.folder.join("log");
        self.process()
            .start(Command::new(program).arg("serve").arg(&file), &log)?;
        let begun = Instant::now();
        while self.client().get("/v2/").is_err() {
            if !self.running() || begun.elapsed() > Duration::from_secs(20) {
                let said = fs::read_to_string(&log).unwrap_or_default();
                bail!(
                    "docker-registry does not start: {}",
                    said.lines().last().unwrap_or_default()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Stops it; its content stays.
    pub fn stop(&self) -> Result<()> {
        self.process()
            .stop(Signal::Terminate, Duration::from_secs(5))
    }

    /// A client of it.
    pub fn client(&self) -> Client {
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        Client::plain(address, Duration::from_secs(30))
    }

    /// The digest of an image that is there already.
    pub fn digest(&self, repository: &str, tag: &str) -> Option<String> {
        let path = format!("/v2/{repository}/manifests/{tag}");
        let accept = [("Accept", "application/vnd.oci.image.manifest.v1+json")];
        let answer = self
            .client()
            .request("HEAD", &path, &accept, &[])
            .ok()?
            .good()
            .ok()?;
        answer.header("docker-content-digest").map(str::to_owned)
    }

    /// Pushes an image under a name such as `library/whoami:latest`.
    ///
    /// # Errors
    /// When the registry does not run or refuses.
    pub fn push(&self, archive: &Archive, name: &str) -> Result<()> {
        let (repository, tag) = split_name(name)?;
        let client = self.client();
        for blob in &archive.blobs {
            self.push_blob(&client, &repository, blob)
                .with_context(|| format!("cannot push {} of {name}", blob.digest))?;
        }
        let path = format!("/v2/{repository}/manifests/{tag}");
        client
            .request(
                "PUT",
                &path,
                &[("Content-Type", &archive.manifest_type)],
                &archive.manifest.bytes,
            )?
            .good()
            .with_context(|| format!("cannot push the manifest of {name}"))?;
        Ok(())
    }

    /// Gives an image that is there another name of the same repository.
    pub fn tag(&self, repository: &str, tag: &str, name: &str) -> Result<()> {
        let manifest_type = "application/vnd.oci.image.manifest.v1+json";
        let client = self.client();
        let path = format!("/v2/{repository}/manifests/{tag}");
        let manifest = client
            .request("GET", &path, &[("Accept", manifest_type)], &[])?
            .good()?;
        let (_, new_tag) = split_name(name)?;
        let path = format!("/v2/{repository}/manifests/{new_tag}");
        let kind = [("Content-Type", manifest_type)];
        client
            .request("PUT", &path, &kind, &manifest.body)?
            .good()?;
        Ok(())
    }

    /// The file in which the registry keeps a blob.
    pub fn blob_file(&self, digest: &str) -> PathBuf {
        let hash = digest.trim_start_matches("sha256:");
        let first = hash.get(..2).unwrap_or_default();
        let blobs = self.folder.join("data/docker/registry/v2/blobs/sha256");
        blobs.join(first).join(hash).join("data")
    }

    fn push_blob(&self, client: &Client, repository: &str, blob: &Blob) -> Result<()> {
        let there = format!("/v2/{repository}/blobs/{}", blob.digest);
        if client.request("HEAD", &there, &[], &[])?.status == 200 {
            return Ok(());
        }
        let begin = format!("/v2/{repository}/blobs/uploads/");
        let answer = client.request("POST", &begin, &[], &[])?.good()?;
        let location = answer
            .header("location")
            .context("no Location for the upload")?;
        // The registry gives an absolute URL with the host name it was asked by.
        let path = location
            .split_once("://")
            .and_then(|(_, rest)| rest.find('/').map(|at| &rest[at..]))
            .unwrap_or(location);
        let joint = if path.contains('?') { '&' } else { '?' };
        client
            .request(
                "PUT",
                &format!("{path}{joint}digest={}", blob.digest),
                &[("Content-Type", "application/octet-stream")],
                &blob.bytes,
            )?
            .good()?;
        Ok(())
    }
}

/// Splits `NAME[:TAG]`; a name of one part belongs to Docker Hub's `library`.
fn split_name(name: &str) -> Result<(String, String)> {
    let (repository, tag) = name.rsplit_once(':').unwrap_or((name, "latest"));
    let sound = |part: &str| {
        !part.is_empty()
            && part
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c))
    };
    if !repository.split('/').all(sound) || tag.is_empty() || tag.contains('/') {
        bail!("{name:?} is no image name: give NAME[:TAG] in lower case, without a registry");
    }
    match repository.contains('/') {
        true => Ok((repository.to_owned(), tag.to_owned())),
        false => Ok((format!("library/{repository}"), tag.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_docker_does() {
        let split = |name| split_name(name).unwrap();
        assert_eq!(split("whoami"), ("library/whoami".into(), "latest".into()));
        assert_eq!(
            split("jwilder/whoami:2"),
            ("jwilder/whoami".into(), "2".into())
        );
        assert!(split_name("Whoami").is_err());
        assert!(split_name("host:5000/whoami").is_err());
    }
}
