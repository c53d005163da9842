//! Images on this node: pulled from registries, verified, unpacked once per layer, shared by all containers.

mod layer;
mod manifest;
mod registry;
mod store;
mod tar_reader;
mod unpack;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::try_join_all;
use skep_core::worker::container::image::{Digest, ImageConfig, Reference};
use tokio::sync::{Semaphore, mpsc};

use self::layer::{Expected, LayerError, Scratch};
use self::manifest::{Blob, Configuration, Document, Manifest};
use self::registry::{Fetched, RegistryClient, RegistryError};
use self::store::{Store, Stored};
use self::unpack::UnpackError;
use crate::error::{Context, HostError, Result};

/// Layers that are downloaded at a time, over all pulls.
const PARALLEL: usize = 3;
/// Pauses before the second and third attempt.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];
/// Bytes between two reports of progress.
const REPORT: u64 = 1 << 20;

/// How registries are reached.
#[derive(Clone, Debug, Default)]
pub struct Registries {
    /// Asked in this order before docker.io (`skep.registry.mirror=`): `host[:port]`, with or without `http://` or `https://`.
    pub mirrors: Vec<String>,
    /// Reached by plain HTTP (`skep.registry.insecure=`): `host[:port]`.
    pub insecure: Vec<String>,
}

/// User name and password for a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryAuth {
    /// The user.
    pub username: String,
    /// The password or access token.
    pub password: String,
}

/// An image that is on this node, whole.
#[derive(Clone, Debug)]
pub struct Image {
    /// `sha256:…` of its configuration: Docker's image id.
    pub id: String,
    /// Names with tags it is known by here, in full (`docker.io/library/busybox:latest`).
    pub tags: Vec<String>,
    /// `name@sha256:…` of the manifests it was pulled by.
    pub digests: Vec<String>,
    /// What a container takes from it when its own specification says nothing.
    pub config: Arc<ImageConfig>,
    /// Unix nanoseconds at which it was built; 0 if it does not say.
    pub created: u64,
    /// Bytes of all its layers, unpacked.
    pub size: u64,
    /// Digests of its unpacked layers, lowest first.
    pub layers: Vec<String>,
    /// The labels of its configuration.
    pub labels: BTreeMap<String, String>,
}

/// How far a pull has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The manifest is known: the reference's digest and the layers with their sizes in bytes, lowest first.
    Resolved {
        /// Digest of the manifest or index that the reference names.
        digest: String,
        /// Digest and compressed size of each layer.
        layers: Vec<(String, u64)>,
    },
    /// A layer is there already.
    Exists(String),
    /// Bytes of a layer that have come.
    Downloading(String, u64),
    /// A layer is unpacked.
    Done(String),
}

/// What a registry says a reference names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Media type of the manifest or index.
    pub media_type: String,
    /// Its digest.
    pub digest: String,
    /// Its size in bytes.
    pub size: u64,
    /// Operating system and architecture of each entry.
    pub platforms: Vec<(String, String)>,
}

/// The images of this node. Cheap to clone.
#[derive(Clone)]
pub struct Images {
    inner: Arc<Inner>,
}

struct Inner {
    store: Mutex<Store>,
    client: RegistryClient,
    parallel: Semaphore,
    /// One per layer that is being pulled, so that two pulls of a layer are one.
    layers: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
    scratch: AtomicU64,
}

/// Why an image did not come.
#[derive(Debug, thiserror::Error)]
enum PullError {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("{0}")]
    Manifest(String),
    #[error(transparent)]
    Layer(#[from] LayerError),
    #[error(transparent)]
    Store(#[from] std::io::Error),
}

impl PullError {
    fn is_temporary(&self) -> bool {
        match self {
            Self::Registry(error) => error.is_temporary(),
            Self::Layer(LayerError::Unpack(_, UnpackError::NoSpace)) => true,
            Self::Layer(LayerError::Unpack(_, UnpackError::Tar(error))) => error.is_early_end(),
            Self::Layer(_) | Self::Manifest(_) | Self::Store(_) => false,
        }
    }

    fn into_host(self, op: &'static str, reference: &Reference) -> HostError {
        HostError {
            op,
            object: reference.to_string(),
            temporary: self.is_temporary(),
            source: Box::new(self),
        }
    }
}

/// What every step of a pull needs.
struct Pull<'a> {
    reference: &'a Reference,
    auth: Option<&'a RegistryAuth>,
    progress: &'a (dyn Fn(Progress) + Send + Sync),
}

impl Images {
    /// Opens the store (`/var/lib/skep/images`), removing what an interrupted pull left.
    pub async fn open(root: PathBuf, registries: Registries) -> Result<Self> {
        let client = RegistryClient::new(registries).context("prepare for", "registries")?;
        let path = root.clone();
        let store = tokio::task::spawn_blocking(move || Store::open(path)).await;
        let store = store
            .context("open image store", root.display())?
            .context("open image store", root.display())?;
        Ok(Self {
            inner: Arc::new(Inner {
                store: Mutex::new(store),
                client,
                parallel: Semaphore::new(PARALLEL),
                layers: Mutex::default(),
                scratch: AtomicU64::new(0),
            }),
        })
    }

    /// Brings an image here. A reference by digest that is here is not asked for again; a tag always is, as Docker does for
    /// services. If the registry cannot be reached and the tag is here, that image is the answer.
    /// Pulls of the same layer at the same time are one. The error's `temporary` says whether trying later makes sense.
    pub async fn pull(
        &self,
        reference: &Reference,
        auth: Option<&RegistryAuth>,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Image> {
        let known = self.store().find(&reference.to_string());
        if let Some(image) = known.clone().filter(|_| reference.digest().is_some()) {
            return Ok(image);
        }
        let pull = Pull {
            reference,
            auth,
            progress,
        };
        match (self.pull_now(&pull).await, known) {
            (Err(error), Some(image)) if error.is_temporary() => {
                tracing::warn!(image = %reference, %error, "the registry cannot be asked; using the image that is here: {error}");
                Ok(image)
            }
            (result, _) => result.map_err(|error| error.into_host("pull image", reference)),
        }
    }

    async fn pull_now(&self, pull: &Pull<'_>) -> std::result::Result<Image, PullError> {
        let fetched = self.manifest(pull).await?;
        let (manifest, at) = self.manifest_of_this_platform(pull, &fetched).await?;
        (pull.progress)(Progress::Resolved {
            digest: fetched.digest.to_string(),
            layers: manifest
                .layers
                .iter()
                .map(|layer| (layer.digest.to_string(), layer.size))
                .collect(),
        });
        let id = manifest.config.digest.clone();
        let here = self.store().has(&id);
        if !here {
            let config = &manifest.config;
            let client = &self.inner.client;
            let limit = manifest::MAX_CONFIG.min(config.size);
            let text = client.small_blob(
                &at.endpoint,
                pull.reference,
                &config.digest,
                limit,
                pull.auth,
            );
            let text = text.await?;
            let configuration = Configuration::parse(&text, manifest.layers.len());
            let configuration = configuration.map_err(PullError::Manifest)?;
            self.bring(pull, &at, &manifest, id.clone(), &configuration)
                .await?;
        }
        let image = self.store().name(&id, pull.reference, &fetched.digest)?;
        image.ok_or_else(|| {
            PullError::Manifest("the image was removed while it was pulled".to_owned())
        })
    }

    /// Brings all layers and records the image.
    async fn bring(
        &self,
        pull: &Pull<'_>,
        at: &Fetched,
        manifest: &Manifest,
        id: Digest,
        configuration: &Configuration,
    ) -> std::result::Result<(), PullError> {
        let diff_ids = configuration.diff_ids().to_vec();
        // While they are pinned, no removal of another image takes them away.
        let pins = Pins::new(self, &diff_ids);
        let layers = manifest.layers.iter().zip(&diff_ids);
        try_join_all(layers.map(|(blob, diff_id)| self.bring_layer(pull, at, blob, diff_id)))
            .await?;
        let mut store = self.store();
        let size = diff_ids
            .iter()
            .map(|diff_id| store.layer_size(diff_id))
            .sum();
        store.add(Stored {
            id,
            config: Arc::new(configuration.config()),
            created: configuration.created(),
            size,
            layers: diff_ids,
            labels: configuration.labels(),
        })?;
        drop(store);
        drop(pins);
        Ok(())
    }

    async fn manifest(&self, pull: &Pull<'_>) -> std::result::Result<Fetched, RegistryError> {
        let mut pauses = PAUSES.iter();
        loop {
            let result = self.inner.client.manifest(pull.reference, pull.auth).await;
            match (result, pauses.next()) {
                (Err(error), Some(pause)) if error.is_hiccup() => tokio::time::sleep(*pause).await,
                (result, _) => return result,
            }
        }
    }

    /// Follows an index to the manifest for this machine.
    async fn manifest_of_this_platform(
        &self,
        pull: &Pull<'_>,
        fetched: &Fetched,
    ) -> std::result::Result<(Manifest, Fetched), PullError> {
        let index = match manifest::parse(&fetched.bytes).map_err(PullError::Manifest)? {
            Document::Manifest(manifest) => return Ok((manifest, fetched.clone())),
            Document::Index(index) => index,
        };
        let entry = manifest::for_this_platform(&index).map_err(PullError::Manifest)?;
        let wanted = entry.blob.digest.as_str();
        let client = &self.inner.client;
        let fetched = client
            .manifest_at(&fetched.endpoint, pull.reference, wanted, pull.auth)
            .await?;
        match manifest::parse(&fetched.bytes).map_err(PullError::Manifest)? {
            Document::Manifest(manifest) => Ok((manifest, fetched)),
            Document::Index(_) => Err(PullError::Manifest("an index inside an index".to_owned())),
        }
    }

    async fn bring_layer(
        &self,
        pull: &Pull<'_>,
        at: &Fetched,
        blob: &Blob,
        diff_id: &Digest,
    ) -> std::result::Result<(), PullError> {
        let lock = self.layer_lock(diff_id);
        let _alone = lock.lock().await;
        let name = blob.digest.to_string();
        if self.store().has_layer(diff_id) {
            (pull.progress)(Progress::Exists(name));
            return Ok(());
        }
        // Never closed.
        let _permit = self.inner.parallel.acquire().await;
        let mut pauses = PAUSES.iter();
        loop {
            let result = self.download(pull, at, blob, diff_id).await;
            match (result, pauses.next()) {
                (Err(error), Some(pause)) if error.is_temporary() => {
                    tokio::time::sleep(*pause).await
                }
                (Err(error), _) => return Err(error),
                (Ok(()), _) => break,
            }
        }
        (pull.progress)(Progress::Done(name));
        Ok(())
    }

    /// One attempt at a layer.
    async fn download(
        &self,
        pull: &Pull<'_>,
        at: &Fetched,
        blob: &Blob,
        diff_id: &Digest,
    ) -> std::result::Result<(), PullError> {
        let client = &self.inner.client;
        let mut stream = client
            .blob(&at.endpoint, pull.reference, &blob.digest, pull.auth)
            .await?;
        let number = self.inner.scratch.fetch_add(1, Ordering::Relaxed);
        let scratch = Scratch::new(self.store().scratch(number));
        let expected = Expected {
            digest: blob.digest.clone(),
            size: blob.size,
            diff_id: diff_id.clone(),
        };
        let (sender, receiver) = mpsc::channel(layer::BACKLOG);
        let path = scratch.path().to_owned();
        let unpacking =
            tokio::task::spawn_blocking(move || -> std::result::Result<u64, PullError> {
                let size = layer::receive(receiver, &store::content(&path), &expected)?;
                layer::settle(&path)?;
                Ok(size)
            });
        let (mut done, mut reported) = (0_u64, 0_u64);
        let sent: std::result::Result<(), RegistryError> = loop {
            match stream.chunk().await {
                Ok(Some(bytes)) => {
                    done += u64::try_from(bytes.len()).unwrap_or(0);
                    if sender.send(bytes).await.is_err() {
                        break Ok(());
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
            if done - reported >= REPORT {
                reported = done;
                (pull.progress)(Progress::Downloading(blob.digest.to_string(), done));
            }
        };
        drop(sender);
        let unpacked = unpacking.await.map_err(std::io::Error::other)?;
        // A broken line is the cause of what the unpacking then says.
        sent?;
        let size = unpacked?;
        tracing::debug!(layer = %blob.digest, registry = stream.endpoint(), bytes = size, "layer unpacked");
        Ok(self.store().place_layer(diff_id, scratch.path(), size)?)
    }

    fn layer_lock(&self, diff_id: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut layers = self
            .inner
            .layers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        layers.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = layers.get(diff_id).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        layers.insert(diff_id.clone(), Arc::downgrade(&lock));
        lock
    }

    /// Whether an error of [`Self::pull`] says that the disk is full.
    pub fn says_no_space(error: &HostError) -> bool {
        matches!(
            error.source.downcast_ref::<PullError>(),
            Some(PullError::Layer(LayerError::Unpack(
                _,
                UnpackError::NoSpace
            )))
        )
    }

    /// Asks the registry what a reference names, without pulling.
    pub async fn resolve(
        &self,
        reference: &Reference,
        auth: Option<&RegistryAuth>,
    ) -> Result<Descriptor> {
        const OP: &str = "resolve image";
        let fetched = self.inner.client.manifest(reference, auth).await;
        let fetched = fetched.map_err(|error| PullError::from(error).into_host(OP, reference))?;
        let document = manifest::parse(&fetched.bytes).context(OP, reference)?;
        let platforms = match document {
            Document::Manifest(_) => vec![("linux".to_owned(), "amd64".to_owned())],
            Document::Index(entries) => entries
                .into_iter()
                .map(|entry| (entry.platform.os, entry.platform.architecture))
                .collect(),
        };
        Ok(Descriptor {
            media_type: fetched.media_type,
            digest: fetched.digest.to_string(),
            size: u64::try_from(fetched.bytes.len()).unwrap_or(0),
            platforms,
        })
    }

    /// An image that is here, by name, digest, id or unique prefix of an id.
    pub fn get(&self, name: &str) -> Option<Image> {
        self.store().find(name)
    }

    /// All images that are here.
    pub fn list(&self) -> Vec<Image> {
        self.store().list()
    }

    /// How many images are here.
    #[must_use]
    pub fn count(&self) -> usize {
        self.store().list().len()
    }

    /// Takes a name away, and with its last name the image and the layers no other image has.
    /// Refused while a container in `in_use` (image ids) has it.
    pub async fn remove(&self, name: &str, in_use: &[String]) -> Result<Vec<Removed>> {
        let (images, name, in_use) = (self.clone(), name.to_owned(), in_use.to_vec());
        let object = name.clone();
        let removed = tokio::task::spawn_blocking(move || images.store().remove(&name, &in_use));
        removed
            .await
            .context("remove image", &object)?
            .context("remove image", &object)
    }

    /// Removes every image that is not in `in_use` (image ids), with the layers that only such images have.
    pub async fn prune(&self, in_use: &[String]) -> Result<Vec<Removed>> {
        let mut removed = Vec::new();
        for image in self.list() {
            if !in_use.contains(&image.id) {
                removed.extend(self.remove(&image.id, in_use).await?);
            }
        }
        Ok(removed)
    }

    /// Directories of an image's layers, highest first, as overlayfs wants them.
    pub fn layer_dirs(&self, image_id: &str) -> Result<Vec<PathBuf>> {
        let dirs = self.store().layer_dirs(image_id);
        dirs.ok_or_else(|| HostError::new("use image", image_id, "no such image on this node"))
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.inner
            .store
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps layers from being removed while it lives.
struct Pins<'a> {
    images: &'a Images,
    layers: Vec<Digest>,
}

impl<'a> Pins<'a> {
    fn new(images: &'a Images, layers: &[Digest]) -> Self {
        images.store().pin(layers);
        Self {
            images,
            layers: layers.to_vec(),
        }
    }
}

impl Drop for Pins<'_> {
    fn drop(&mut self) {
        self.images.store().unpin(&self.layers);
    }
}

/// What [`Images::remove`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    /// A name was taken away.
    Untagged(String),
    /// An image or layer was deleted.
    Deleted(String),
}
