//! The images' place on disk:
//!
//! ```text
//! layers/<diff id>/fs      one layer, in overlayfs's form; shared by all images that have it
//! layers/<diff id>/size    bytes in its files
//! images/<id>.json         an image
//! names.json               which name and which digest is which image
//! scratch/                 what is being made; removed when the store is opened
//! ```
//!
//! Everything gets its place by a rename, so that what is there is whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use skep_core::worker::container::image::{Digest, ImageConfig, Reference};

use super::{Image, Removed};
use crate::rooted::remove_tree;

/// An image as it is written down.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Stored {
    /// Digest of its configuration.
    pub(super) id: Digest,
    /// What containers take from it.
    pub(super) config: Arc<ImageConfig>,
    /// Unix nanoseconds.
    pub(super) created: u64,
    /// Bytes of all layers.
    pub(super) size: u64,
    /// Its layers, lowest first.
    pub(super) layers: Vec<Digest>,
    /// Its labels.
    pub(super) labels: BTreeMap<String, String>,
}

/// Names in full, and the id each stands for.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Names {
    /// `registry/repository:tag`.
    tags: BTreeMap<String, Digest>,
    /// `registry/repository@sha256:…` of the manifest or index.
    digests: BTreeMap<String, Digest>,
}

/// The store. One per directory.
pub(super) struct Store {
    root: PathBuf,
    images: BTreeMap<Digest, Stored>,
    names: Names,
    pins: BTreeMap<Digest, usize>,
}

/// Where the files of a layer are, below its directory.
pub(super) fn content(layer: &Path) -> PathBuf {
    layer.join("fs")
}

impl Store {
    /// Opens a store and brings it in order: images without all their layers and layers without an image go.
    pub(super) fn open(root: PathBuf) -> io::Result<Self> {
        remove_tree(&root.join("scratch"))?;
        for dir in ["layers", "images", "scratch", "empty"] {
            fs::create_dir_all(root.join(dir))?;
        }
        let mut store = Self {
            names: read_json(&root.join("names.json")).unwrap_or_default(),
            images: BTreeMap::new(),
            pins: BTreeMap::new(),
            root,
        };
        for entry in fs::read_dir(store.root.join("images"))? {
            let path = entry?.path();
            match read_json::<Stored>(&path) {
                Some(image) if image.layers.iter().all(|layer| store.has_layer(layer)) => {
                    store.images.insert(image.id.clone(), image);
                }
                Some(_) | None => fs::remove_file(&path)?,
            }
        }
        let images = &store.images;
        store.names.tags.retain(|_, id| images.contains_key(id));
        store.names.digests.retain(|_, id| images.contains_key(id));
        store.save_names()?;
        store.collect_layers()?;
        Ok(store)
    }

    /// Whether an image is here.
    pub(super) fn has(&self, id: &Digest) -> bool {
        self.images.contains_key(id)
    }

    /// Whether a layer is here.
    pub(super) fn has_layer(&self, diff_id: &Digest) -> bool {
        content(&self.layer(diff_id)).is_dir()
    }

    /// Bytes in a layer's files.
    pub(super) fn layer_size(&self, diff_id: &Digest) -> u64 {
        let text = fs::read_to_string(self.layer(diff_id).join("size")).unwrap_or_default();
        text.parse().unwrap_or(0)
    }

    /// A path for something that is being made.
    pub(super) fn scratch(&self, number: u64) -> PathBuf {
        self.root.join("scratch").join(number.to_string())
    }

    /// Gives a finished layer its place.
    pub(super) fn place_layer(&self, diff_id: &Digest, from: &Path, size: u64) -> io::Result<()> {
        fs::write(from.join("size"), size.to_string())?;
        match fs::rename(from, self.layer(diff_id)) {
            // It is there already, which is as good.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            Err(error) => Err(error),
            Ok(()) => sync_dir(&self.root.join("layers")),
        }
    }

    /// Records an image whose layers are here.
    pub(super) fn add(&mut self, image: Stored) -> io::Result<()> {
        write_json(&self.image_file(&image.id), &image)?;
        self.images.insert(image.id.clone(), image);
        Ok(())
    }

    /// Gives an image the names that `reference` and the digest it was pulled by are.
    pub(super) fn name(
        &mut self,
        id: &Digest,
        reference: &Reference,
        digest: &Digest,
    ) -> io::Result<Option<Image>> {
        if !self.has(id) {
            return Ok(None);
        }
        let by_digest = format!("{}@{digest}", reference.name());
        self.names.digests.insert(by_digest, id.clone());
        if let Some(tagged) = reference.tagged() {
            self.names.tags.insert(tagged.to_string(), id.clone());
        }
        self.save_names()?;
        Ok(self.image(id))
    }

    /// An image by name, digest, id or unique prefix of an id.
    pub(super) fn find(&self, name: &str) -> Option<Image> {
        self.find_id(name).and_then(|id| self.image(&id))
    }

    fn find_id(&self, name: &str) -> Option<Digest> {
        if let Ok(reference) = name.parse::<Reference>() {
            let known = match reference.digest() {
                Some(digest) => {
                    let name = format!("{}@{digest}", reference.name());
                    self.names.digests.get(&name)
                }
                None => self.names.tags.get(&reference.to_string()),
            };
            if let Some(id) = known {
                return Some(id.clone());
            }
        }
        let prefix = name.strip_prefix("sha256:").unwrap_or(name);
        let mut matching = self.images.keys().filter(|id| id.hex().starts_with(prefix));
        match (matching.next(), matching.next()) {
            (Some(id), None) if !prefix.is_empty() => Some(id.clone()),
            (_, _) => None,
        }
    }

    /// All images.
    pub(super) fn list(&self) -> Vec<Image> {
        self.images.keys().filter_map(|id| self.image(id)).collect()
    }

    fn image(&self, id: &Digest) -> Option<Image> {
        let stored = self.images.get(id)?;
        let named = |names: &BTreeMap<String, Digest>| -> Vec<String> {
            let ours = names.iter().filter(|(_, named)| *named == id);
            ours.map(|(name, _)| name.clone()).collect()
        };
        Some(Image {
            id: id.to_string(),
            tags: named(&self.names.tags),
            digests: named(&self.names.digests),
            config: stored.config.clone(),
            created: stored.created,
            size: stored.size,
            layers: stored.layers.iter().map(Digest::to_string).collect(),
            labels: stored.labels.clone(),
        })
    }

    /// Directories of an image's layers, highest first. overlayfs refuses one that comes twice; of a layer that does, only
    /// the highest place counts, since all that it adds and hides it adds and hides there.
    pub(super) fn layer_dirs(&self, id: &str) -> Option<Vec<PathBuf>> {
        let stored = self.images.get(&Digest::parse(id)?)?;
        let mut seen = BTreeSet::new();
        let highest = stored
            .layers
            .iter()
            .rev()
            .filter(|layer| seen.insert(*layer));
        let dirs: Vec<_> = highest.map(|layer| content(&self.layer(layer))).collect();
        if dirs.is_empty() {
            return Some(vec![self.root.join("empty")]);
        }
        Some(dirs)
    }

    /// Takes a name away; with the last tag, or named by its id, the image goes.
    pub(super) fn remove(&mut self, name: &str, in_use: &[String]) -> io::Result<Vec<Removed>> {
        let id = self
            .find_id(name)
            .ok_or_else(|| io::Error::other("no such image"))?;
        let tag = name
            .parse::<Reference>()
            .ok()
            .filter(|reference| reference.digest().is_none());
        let tag = tag.map(|reference| reference.to_string());
        let tag = tag.filter(|tag| self.names.tags.get(tag) == Some(&id));
        let tags = self
            .names
            .tags
            .values()
            .filter(|named| **named == id)
            .count();
        let last = tag.is_none() || tags == 1;
        if last && in_use.iter().any(|used| used == id.as_str()) {
            return Err(io::Error::other("conflict: a container uses it"));
        }
        let mut removed = Vec::new();
        if last {
            let gone = self.image(&id).map(|image| image.tags).unwrap_or_default();
            removed.extend(gone.into_iter().map(Removed::Untagged));
            self.names.tags.retain(|_, named| *named != id);
            self.names.digests.retain(|_, named| *named != id);
        } else if let Some(tag) = tag {
            self.names.tags.remove(&tag);
            removed.push(Removed::Untagged(tag));
        }
        self.save_names()?;
        if last {
            fs::remove_file(self.image_file(&id))?;
            self.images.remove(&id);
            removed.push(Removed::Deleted(id.to_string()));
            let layers = self.collect_layers()?;
            removed.extend(
                layers
                    .iter()
                    .map(|layer| Removed::Deleted(layer.to_string())),
            );
        }
        Ok(removed)
    }

    /// Keeps layers although no image has them yet.
    pub(super) fn pin(&mut self, layers: &[Digest]) {
        for layer in layers {
            *self.pins.entry(layer.clone()).or_default() += 1;
        }
    }

    /// Undoes one [`Self::pin`].
    pub(super) fn unpin(&mut self, layers: &[Digest]) {
        for layer in layers {
            if let Some(count) = self.pins.get_mut(layer) {
                *count -= 1;
            }
        }
        self.pins.retain(|_, count| *count > 0);
    }

    /// Removes the layers that no image has.
    fn collect_layers(&self) -> io::Result<Vec<Digest>> {
        let used: BTreeSet<&str> = self
            .images
            .values()
            .flat_map(|image| &image.layers)
            .chain(self.pins.keys())
            .map(Digest::hex)
            .collect();
        let mut removed = Vec::new();
        for entry in fs::read_dir(self.root.join("layers"))? {
            let name = entry?.file_name();
            let hex = name.to_string_lossy();
            if used.contains(&*hex) {
                continue;
            }
            // Out of its place first: half a layer must never be in it.
            let doomed = self.root.join("scratch").join(format!("gone-{hex}"));
            fs::rename(self.root.join("layers").join(&name), &doomed)?;
            remove_tree(&doomed)?;
            removed.extend(Digest::parse(&format!("sha256:{hex}")));
        }
        Ok(removed)
    }

    fn layer(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(diff_id.hex())
    }

    fn image_file(&self, id: &Digest) -> PathBuf {
        self.root.join("images").join(format!("{}.json", id.hex()))
    }

    fn save_names(&self) -> io::Result<()> {
        write_json(&self.root.join("names.json"), &self.names)
    }
}

/// `None` also for a file that makes no sense: what it said is found out again.
fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = fs::File::create(&new)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    path.parent().map_or(Ok(()), sync_dir)
}

fn sync_dir(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(byte: u8) -> Digest {
        Digest::from_bytes([byte; 32])
    }

    struct Dir(PathBuf);

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn dir(name: &str) -> Dir {
        Dir(std::env::temp_dir().join(format!("skep-store-{name}-{}", std::process::id())))
    }

    fn add_layer(store: &Store, layer: u8) {
        let scratch = store.scratch(u64::from(layer));
        fs::create_dir_all(content(&scratch)).unwrap();
        store.place_layer(&digest(layer), &scratch, 10).unwrap();
    }

    fn add_image(store: &mut Store, id: u8, name: &str, layers: &[u8]) {
        layers.iter().for_each(|layer| add_layer(store, *layer));
        let image = Stored {
            id: digest(id),
            config: Arc::default(),
            created: 0,
            size: 0,
            layers: layers.iter().map(|layer| digest(*layer)).collect(),
            labels: BTreeMap::new(),
        };
        store.add(image).unwrap();
        store
            .name(&digest(id), &name.parse().unwrap(), &digest(id + 100))
            .unwrap()
            .unwrap();
    }

    #[test]
    fn images_are_found_and_shared_layers_stay() {
        let dir = dir("shared");
        let mut store = Store::open(dir.0.clone()).unwrap();
        add_image(&mut store, 1, "one", &[10, 11]);
        add_image(&mut store, 2, "two:x", &[10, 12]);
        drop(store);

        let mut store = Store::open(dir.0.clone()).unwrap();
        let id = digest(1).to_string();
        let by_digest = format!("one@{}", digest(101));
        for name in [
            "one",
            "docker.io/library/one:latest",
            &id,
            &id[7..20],
            &by_digest,
        ] {
            assert_eq!(store.find(name).unwrap().id, id, "{name}");
        }
        assert!(store.find("two").is_none() && store.find("").is_none());
        let dirs = store.layer_dirs(&id).unwrap();
        assert!(
            dirs[0].ends_with(format!("{}/fs", digest(11).hex())),
            "highest first"
        );

        assert!(
            store
                .remove("one", std::slice::from_ref(&id))
                .unwrap_err()
                .to_string()
                .contains("uses it")
        );
        store.pin(&[digest(11)]);
        let removed = store.remove("one", &[]).unwrap();
        assert_eq!(removed.len(), 2);
        assert!(store.has_layer(&digest(10)) && store.has_layer(&digest(11)));
        store.unpin(&[digest(11)]);
        assert_eq!(store.remove("two:x", &[]).unwrap().len(), 5);
        assert!(!store.has_layer(&digest(10)));
    }

    #[test]
    fn one_of_two_names_goes_alone() {
        let dir = dir("names");
        let mut store = Store::open(dir.0.clone()).unwrap();
        add_image(&mut store, 1, "one", &[10]);
        store
            .name(&digest(1), &"other".parse().unwrap(), &digest(101))
            .unwrap();
        let removed = store.remove("one", &[digest(1).to_string()]).unwrap();
        assert_eq!(
            removed,
            [Removed::Untagged("docker.io/library/one:latest".into())]
        );
        assert!(store.find("other").is_some());
    }

    #[test]
    fn what_a_crash_left_is_cleared() {
        let dir = dir("crash");
        let mut store = Store::open(dir.0.clone()).unwrap();
        add_image(&mut store, 1, "one", &[10, 11, 10]);
        add_layer(&store, 99);
        fs::create_dir_all(store.scratch(5).join("half")).unwrap();
        fs::write(dir.0.join("images/nonsense.json"), "{").unwrap();
        assert_eq!(
            store.layer_dirs(digest(1).as_str()).unwrap().len(),
            2,
            "no layer twice"
        );
        drop(store);
        let store = Store::open(dir.0.clone()).unwrap();
        assert!(store.find("one").is_some());
        assert!(!store.has_layer(&digest(99)) && !store.scratch(5).exists());
        fs::remove_dir_all(store.layer(&digest(11))).unwrap();
        drop(store);
        assert!(Store::open(dir.0.clone()).unwrap().find("one").is_none());
    }
}
