//! Manifests and configurations as registries send them: OCI image manifests and indexes, Docker's version 2 schema 2 of
//! both. Parsed defensively: they are text from a stranger.

use std::collections::BTreeMap;

use serde::Deserialize;
use skep_core::time::Timestamp;
use skep_core::worker::container::image::{Digest, ImageConfig};

/// What a registry is asked for.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json";
/// Layers of an image, as in Docker: overlayfs could do 500.
const MAX_LAYERS: usize = 127;
/// Compressed bytes of a layer.
const MAX_LAYER: u64 = 16 << 30;
/// Bytes of a configuration.
pub(super) const MAX_CONFIG: u64 = 8 << 20;

/// A reference to content.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Blob {
    /// What it is.
    #[serde(default)]
    pub(super) media_type: String,
    /// Its digest.
    pub(super) digest: Digest,
    /// Its size in bytes.
    pub(super) size: u64,
}

/// The manifest of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Manifest {
    /// Its configuration.
    pub(super) config: Blob,
    /// Its layers, lowest first.
    pub(super) layers: Vec<Blob>,
}

/// An image for one platform in an index.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct IndexEntry {
    /// Its manifest.
    #[serde(flatten)]
    pub(super) blob: Blob,
    /// Its platform.
    #[serde(default)]
    pub(super) platform: Platform,
}

/// Operating system and architecture in Go's names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Platform {
    /// `linux`.
    pub(super) os: String,
    /// `amd64`.
    pub(super) architecture: String,
}

/// Either.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Document {
    /// One image.
    Manifest(Manifest),
    /// One image per platform.
    Index(Vec<IndexEntry>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: u32,
    config: Option<Blob>,
    layers: Option<Vec<Blob>>,
    manifests: Option<Vec<IndexEntry>>,
}

/// Parses a manifest or an index.
pub(super) fn parse(bytes: &[u8]) -> Result<Document, String> {
    let raw: Raw =
        serde_json::from_slice(bytes).map_err(|error| format!("not a manifest: {error}"))?;
    if raw.schema_version != 2 {
        return Err(format!(
            "manifest schema version {} is not supported: push the image again with a current client",
            raw.schema_version
        ));
    }
    match (raw.config, raw.layers, raw.manifests) {
        (Some(config), layers, None) => {
            manifest(config, layers.unwrap_or_default()).map(Document::Manifest)
        }
        (None, None, Some(entries)) => Ok(Document::Index(entries)),
        (_, _, _) => Err("neither a manifest nor an index".to_owned()),
    }
}

fn manifest(config: Blob, layers: Vec<Blob>) -> Result<Manifest, String> {
    if config.size > MAX_CONFIG {
        return Err(format!(
            "a configuration of {} bytes is too large",
            config.size
        ));
    }
    if layers.len() > MAX_LAYERS {
        return Err(format!(
            "{} layers are more than {MAX_LAYERS}",
            layers.len()
        ));
    }
    for layer in &layers {
        let kind = layer.media_type.as_str();
        let is_layer = kind.is_empty() || kind.contains(".tar") || kind.contains("rootfs.diff");
        if !is_layer {
            return Err(format!("layer type {kind:?} is not a file system layer"));
        }
        if kind.contains("foreign") || kind.contains("nondistributable") {
            return Err(format!("layer type {kind:?} is not served by registries"));
        }
        if layer.size > MAX_LAYER {
            return Err(format!("a layer of {} bytes is too large", layer.size));
        }
    }
    Ok(Manifest { config, layers })
}

/// The entry for this platform.
pub(super) fn for_this_platform(entries: &[IndexEntry]) -> Result<&IndexEntry, String> {
    let ours = |entry: &&IndexEntry| {
        entry.platform.os == "linux" && entry.platform.architecture == "amd64"
    };
    entries.iter().find(ours).ok_or_else(|| {
        let platforms: Vec<String> = entries
            .iter()
            .take(20)
            .map(|entry| format!("{}/{}", entry.platform.os, entry.platform.architecture))
            .collect();
        format!(
            "no image for linux/amd64 in the list: {}",
            platforms.join(", ")
        )
    })
}

/// The configuration of an image.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Configuration {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    created: Option<String>,
    #[serde(default)]
    config: Option<ImageConfig>,
    rootfs: RootFs,
}

#[derive(Clone, Debug, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

impl Configuration {
    /// Parses a configuration and checks that it is for this machine and says as many layers as there are.
    pub(super) fn parse(bytes: &[u8], layers: usize) -> Result<Self, String> {
        let configuration: Self = serde_json::from_slice(bytes)
            .map_err(|error| format!("not an image configuration: {error}"))?;
        if (
            configuration.os.as_str(),
            configuration.architecture.as_str(),
        ) != ("linux", "amd64")
        {
            return Err(format!(
                "the image is for {}/{}, this node is linux/amd64",
                configuration.os, configuration.architecture
            ));
        }
        if configuration.diff_ids().len() != layers {
            return Err("manifest and configuration disagree on the number of layers".to_owned());
        }
        Ok(configuration)
    }

    /// Digests of the unpacked layers, lowest first.
    pub(super) fn diff_ids(&self) -> &[Digest] {
        self.rootfs.diff_ids.as_deref().unwrap_or_default()
    }

    /// What containers take from it.
    pub(super) fn config(&self) -> ImageConfig {
        self.config.clone().unwrap_or_default()
    }

    /// Unix nanoseconds; 0 if it does not say or makes no sense.
    pub(super) fn created(&self) -> u64 {
        let text = self.created.clone().map(serde_json::Value::String);
        text.and_then(|text| serde_json::from_value::<Timestamp>(text).ok())
            .and_then(|time| u64::try_from(time.0).ok())
            .unwrap_or(0)
    }

    /// The labels.
    pub(super) fn labels(&self) -> BTreeMap<String, String> {
        self.config
            .as_ref()
            .map(|config| config.labels.clone())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn text(template: &str) -> Vec<u8> {
        template.replace("DIGEST", DIGEST).into_bytes()
    }

    #[test]
    fn manifests_and_indexes_are_told_apart() {
        let manifest = text(
            r#"{"schemaVersion":2,"mediaType":"x","config":{"mediaType":"c","digest":"DIGEST","size":5},
            "layers":[{"mediaType":"application/vnd.docker.image.rootfs.diff.tar.gzip","digest":"DIGEST","size":7}]}"#,
        );
        let Document::Manifest(manifest) = parse(&manifest).unwrap() else {
            panic!("an index");
        };
        assert_eq!(manifest.layers[0].size, 7);
        let index = text(
            r#"{"schemaVersion":2,"manifests":[
            {"digest":"DIGEST","size":1,"platform":{"os":"linux","architecture":"arm64","variant":"v8"}},
            {"digest":"DIGEST","size":2,"platform":{"os":"linux","architecture":"amd64"}}]}"#,
        );
        let Document::Index(entries) = parse(&index).unwrap() else {
            panic!("a manifest");
        };
        assert_eq!(for_this_platform(&entries).unwrap().blob.size, 2);
        assert!(
            for_this_platform(&entries[..1])
                .unwrap_err()
                .contains("linux/arm64")
        );
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let cases = [
            r#"{"schemaVersion":1,"fsLayers":[]}"#,
            r#"{"schemaVersion":2}"#,
            r#"{"schemaVersion":2,"config":{"digest":"../../etc","size":5},"layers":[]}"#,
            r#"{"schemaVersion":2,"config":{"digest":"DIGEST","size":99999999999},"layers":[]}"#,
            r#"{"schemaVersion":2,"config":{"digest":"DIGEST","size":-1},"layers":[]}"#,
            r#"{"schemaVersion":2,"config":{"digest":"DIGEST","size":1},"layers":[{"mediaType":"application/vnd.helm","digest":"DIGEST","size":1}]}"#,
            r#"{"schemaVersion":2,"config":{"digest":"DIGEST","size":1},"layers":[{"mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip","digest":"DIGEST","size":1}]}"#,
            "[]",
            "",
            "null",
        ];
        for case in cases {
            assert!(parse(&text(case)).is_err(), "{case}");
        }
        let many = format!(
            r#"{{"schemaVersion":2,"config":{{"digest":"{DIGEST}","size":1}},"layers":[{}]}}"#,
            vec![format!(r#"{{"digest":"{DIGEST}","size":1}}"#); 128].join(",")
        );
        assert!(parse(many.as_bytes()).is_err());
    }

    #[test]
    fn a_configuration_must_fit() {
        let good = text(
            r#"{"os":"linux","architecture":"amd64","created":"1970-01-01T00:00:01Z","config":null,"rootfs":{"type":"layers","diff_ids":["DIGEST"]}}"#,
        );
        assert_eq!(
            Configuration::parse(&good, 1).unwrap().created(),
            1_000_000_000
        );
        assert!(Configuration::parse(&good, 2).is_err());
        let arm = text(r#"{"os":"linux","architecture":"arm64","rootfs":{"diff_ids":[]}}"#);
        assert!(
            Configuration::parse(&arm, 0)
                .unwrap_err()
                .contains("linux/arm64")
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
            let _ = Configuration::parse(&bytes, 1);
        }
    }
}
