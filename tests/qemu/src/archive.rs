//! Container images as files: written from a folder, read from what `docker save` or an OCI tool wrote.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// Largest archive that is read.
const ARCHIVE_MAX: u64 = 2 << 30;

/// Some bytes and their digest.
#[derive(Debug, Clone)]
pub struct Blob {
    /// `sha256:` and the hash in hex.
    pub digest: String,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl Blob {
    /// Takes the digest of these bytes.
    pub fn new(bytes: Vec<u8>) -> Blob {
        let hash: [u8; 32] = Sha256::digest(&bytes).into();
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        Blob {
            digest: format!("sha256:{hex}"),
            bytes,
        }
    }
}

/// An image, ready to be pushed.
#[derive(Debug, Clone)]
pub struct Archive {
    /// The media type of the manifest.
    pub manifest_type: String,
    /// The manifest.
    pub manifest: Blob,
    /// The configuration and the layers.
    pub blobs: Vec<Blob>,
}

/// What a container of the image runs, as in the image configuration's `config`.
#[derive(Debug, Clone, Default)]
pub struct Run<'a> {
    /// The program and its first arguments.
    pub entrypoint: &'a [&'a str],
    /// The default arguments.
    pub command: &'a [&'a str],
    /// Labels; one is enough to make another image of the same files.
    pub labels: &'a [(&'a str, &'a str)],
    /// Ports, as in `8000/tcp`.
    pub ports: &'a [&'a str],
}

impl Archive {
    /// One layer made of a folder; all belongs to root and nothing of this machine's time remains.
    pub fn of_folder(root: &Path, run: &Run<'_>) -> Result<Archive> {
        let tar = tar_of(root).with_context(|| format!("cannot pack {}", root.display()))?;
        let diff_id = Blob::new(tar.clone()).digest;
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&tar)?;
        let layer = Blob::new(gzip.finish()?);
        let empty = |names: &[&str]| -> BTreeMap<String, Value> {
            names.iter().map(|n| ((*n).to_owned(), json!({}))).collect()
        };
        let labels: BTreeMap<&str, &str> = run.labels.iter().copied().collect();
        let config = Blob::new(serde_json::to_vec(&json!({
            "architecture": "amd64",
            "os": "linux",
            "created": "2020-01-01T00:00:00Z",
            "config": {
                "Entrypoint": run.entrypoint,
                "Cmd": run.command,
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "ExposedPorts": empty(run.ports),
                "Labels": labels,
            },
            "rootfs": { "type": "layers", "diff_ids": [diff_id] },
            "history": [{ "created": "2020-01-01T00:00:00Z" }],
        }))?);
        Archive::assemble(config, vec![(format!("{LAYER_TYPE}+gzip"), layer)])
    }

    fn assemble(config: Blob, layers: Vec<(String, Blob)>) -> Result<Archive> {
        let descriptor = |media_type: &str, blob: &Blob| json!({ "mediaType": media_type, "digest": blob.digest, "size": blob.bytes.len() });
        let listed: Vec<Value> = layers
            .iter()
            .map(|(kind, layer)| descriptor(kind, layer))
            .collect();
        let manifest = Blob::new(serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": descriptor(CONFIG_TYPE, &config),
            "layers": listed,
        }))?);
        let mut blobs = vec![config];
        blobs.extend(layers.into_iter().map(|(_, layer)| layer));
        Ok(Archive {
            manifest_type: MANIFEST_TYPE.to_owned(),
            manifest,
            blobs,
        })
    }

    /// Reads an archive that `docker save` wrote (`manifest.json`) or an OCI archive (`index.json`).
    pub fn read(file: &Path) -> Result<Archive> {
        let open =
            fs::File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
        let mut entries = HashMap::new();
        for entry in tar::Archive::new(open.take(ARCHIVE_MAX)).entries()? {
            let mut entry = entry.with_context(|| format!("{} is no tar file", file.display()))?;
            let mut bytes = Vec::new();
            let name = entry
                .path()?
                .to_string_lossy()
                .trim_start_matches("./")
                .to_owned();
            entry.read_to_end(&mut bytes)?;
            entries.insert(name, bytes);
        }
        let files = Files(entries);
        let archive = match (files.json("manifest.json"), files.json("index.json")) {
            (Ok(list), _) => files.docker(&list),
            (Err(_), Ok(index)) => files.oci(&index),
            (Err(_), Err(_)) => bail!("neither manifest.json nor index.json is in it"),
        };
        archive.with_context(|| format!("{} is no image archive", file.display()))
    }
}

/// The files of an archive by name.
struct Files(HashMap<String, Vec<u8>>);

impl Files {
    fn bytes(&self, name: &str) -> Result<&Vec<u8>> {
        self.0
            .get(name)
            .with_context(|| format!("{name} is not in it"))
    }

    fn json(&self, name: &str) -> Result<Value> {
        serde_json::from_slice(self.bytes(name)?).with_context(|| format!("{name} is no JSON"))
    }

    fn docker(&self, list: &Value) -> Result<Archive> {
        let image = list.get(0).context("manifest.json lists no image")?;
        let config = image["Config"]
            .as_str()
            .context("manifest.json names no Config")?;
        let config = Blob::new(self.bytes(config)?.clone());
        let names = image["Layers"]
            .as_array()
            .context("manifest.json lists no Layers")?;
        let mut layers = Vec::new();
        for name in names {
            let layer = self.bytes(name.as_str().unwrap_or_default())?.clone();
            let kind = match layer.starts_with(&[0x1f, 0x8b]) {
                true => format!("{LAYER_TYPE}+gzip"),
                false => LAYER_TYPE.to_owned(),
            };
            layers.push((kind, Blob::new(layer)));
        }
        Archive::assemble(config, layers)
    }

    fn oci(&self, index: &Value) -> Result<Archive> {
        let described = &index["manifests"][0];
        let manifest = self.blob(described)?;
        let content: Value = serde_json::from_slice(&manifest.bytes)?;
        let mut blobs = vec![self.blob(&content["config"])?];
        for layer in content["layers"]
            .as_array()
            .context("the manifest lists no layers")?
        {
            blobs.push(self.blob(layer)?);
        }
        let manifest_type = described["mediaType"].as_str().unwrap_or(MANIFEST_TYPE);
        Ok(Archive {
            manifest_type: manifest_type.to_owned(),
            manifest,
            blobs,
        })
    }

    fn blob(&self, descriptor: &Value) -> Result<Blob> {
        let digest = descriptor["digest"]
            .as_str()
            .context("a descriptor without a digest")?;
        let blob = Blob::new(
            self.bytes(&format!("blobs/{}", digest.replace(':', "/")))?
                .clone(),
        );
        if blob.digest != digest {
            bail!("the bytes of {digest} have the digest {}", blob.digest);
        }
        Ok(blob)
    }
}

fn tar_of(root: &Path) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for path in sorted_tree(root)? {
        let name = path.strip_prefix(root)?;
        let data = fs::symlink_metadata(&path)?;
        let mut header = tar::Header::new_gnu();
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_mode(data.permissions().mode() & 0o7777);
        header.set_size(0);
        if data.is_dir() {
            header.set_entry_type(tar::EntryType::Directory);
            tar.append_data(&mut header, name, std::io::empty())?;
        } else if data.is_symlink() {
            header.set_entry_type(tar::EntryType::Symlink);
            tar.append_link(&mut header, name, fs::read_link(&path)?)?;
        } else if data.is_file() {
            header.set_entry_type(tar::EntryType::Regular);
            header.set_size(data.len());
            tar.append_data(&mut header, name, fs::File::open(&path)?)?;
        }
    }
    Ok(tar.into_inner()?)
}

/// Everything below a folder, folders before what is in them.
pub fn sorted_tree(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut waiting = vec![root.to_path_buf()];
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                waiting.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_folder_gives_the_same_image() {
        let folder = std::env::temp_dir().join(format!("lab-archive-{}", std::process::id()));
        fs::create_dir_all(folder.join("bin")).unwrap();
        fs::write(folder.join("bin/sh"), "x").unwrap();
        let run = Run::default();
        let first = Archive::of_folder(&folder, &run).unwrap();
        let second = Archive::of_folder(&folder, &run).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(first.manifest.digest, second.manifest.digest);
        assert_eq!(first.blobs.len(), 2);
    }

    #[test]
    fn a_blob_with_another_digest_is_refused() {
        let wrong = format!("sha256:{}", "0".repeat(64));
        let files = Files(HashMap::from([(
            format!("blobs/sha256/{}", "0".repeat(64)),
            vec![1],
        )]));
        let error = files.blob(&json!({ "digest": wrong })).unwrap_err();
        assert!(error.to_string().contains("have the digest sha256:"));
    }
}
