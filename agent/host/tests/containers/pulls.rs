//! Pulling: what a registry may do wrong, and that nothing is left of it.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use skep_core::worker::container::image::Reference;
use skep_host::container::Containers;
use skep_host::image::{Images, Progress, Registries, RegistryAuth};

use crate::image::{Registry, layer, sha256};
use crate::{Case, World, case};

pub(crate) const CASES: &[Case] = &[
    case!(what_was_pulled_is_found),
    case!(an_unknown_image_is_named),
    case!(wrong_bytes_are_refused),
    case!(hostile_layers_are_refused),
    case!(a_registry_that_stumbles_is_asked_again),
    case!(a_registry_that_is_down_is_said),
    case!(one_layer_is_pulled_once),
    case!(tokens_and_indexes_are_followed),
    case!(endless_answers_are_cut),
    case!(a_full_disk_makes_room),
];

struct Store {
    images: Images,
    dir: std::path::PathBuf,
}

async fn store(world: &World, registry: &Registry, name: &str) -> Store {
    let dir = world.dir.join(name);
    let registries = Registries {
        mirrors: vec![registry.address.clone()],
        insecure: vec![registry.address.clone()],
    };
    Store {
        images: Images::open(dir.clone(), registries).await.unwrap(),
        dir,
    }
}

impl Store {
    /// What is under `layers` and in the making.
    fn on_disk(&self) -> (usize, usize) {
        let count = |name| std::fs::read_dir(self.dir.join(name)).unwrap().count();
        (count("layers"), count("scratch"))
    }

    async fn fails(&self, name: &str) -> (bool, String) {
        let error = self
            .images
            .pull(&name.parse().unwrap(), None, &|_| ())
            .await
            .unwrap_err();
        let line = error.chain();
        assert!(!line.contains('\n'), "{line}");
        assert_eq!(self.on_disk().1, 0, "something half-made is left");
        (error.temporary, line)
    }
}

fn random(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    (0..length)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        })
        .collect()
}

async fn what_was_pulled_is_found(world: &World) {
    let registry = Registry::start().await;
    let shared = layer(&[("a", 0o644, random(50_000))]);
    registry.add(
        "library/one:latest",
        json!({"Cmd": ["x"]}),
        std::slice::from_ref(&shared),
    );
    let digest = registry.add(
        "library/two:v2",
        json!({"Cmd": ["y"]}),
        &[shared, layer(&[("b", 0o644, vec![2])])],
    );
    let store = store(world, &registry, "pulls-found").await;
    // Plain names come from the mirror of docker.io.
    let one = store
        .images
        .pull(&"one".parse().unwrap(), None, &|_| ())
        .await
        .unwrap();
    assert_eq!(
        (one.config.cmd.as_slice(), one.size),
        (&["x".to_owned()][..], 50_000)
    );
    let progress = std::sync::Mutex::new(Vec::new());
    let note = |step| progress.lock().unwrap().push(step);
    let two = store
        .images
        .pull(&"two:v2".parse().unwrap(), None, &note)
        .await
        .unwrap();
    let steps = progress.into_inner().unwrap();
    assert!(
        matches!(&steps[0], Progress::Resolved { digest: seen, layers } if *seen == digest && layers.len() == 2)
    );
    assert!(steps.iter().any(|step| matches!(step, Progress::Exists(_))));
    assert_eq!(store.on_disk(), (2, 0));
    // By digest nobody needs to be asked again.
    let before = registry.requests.load(Ordering::Relaxed);
    let pinned: Reference = format!("two@{digest}").parse().unwrap();
    assert_eq!(
        store.images.pull(&pinned, None, &|_| ()).await.unwrap().id,
        two.id
    );
    assert_eq!(registry.requests.load(Ordering::Relaxed), before);
    assert_eq!(
        store.images.get(&two.id).unwrap().tags,
        ["docker.io/library/two:v2"]
    );
    assert_eq!(
        store
            .images
            .resolve(&"two:v2".parse().unwrap(), None)
            .await
            .unwrap()
            .digest,
        digest
    );
    store.images.remove("two:v2", &[]).await.unwrap();
    assert_eq!(store.on_disk(), (1, 0));
    assert_eq!(store.images.list().len(), 1);
}

async fn an_unknown_image_is_named(world: &World) {
    let registry = Registry::start().await;
    let store = store(world, &registry, "pulls-unknown").await;
    let (temporary, line) = store
        .fails(&format!("{}/no/such:tag", registry.address))
        .await;
    assert!(
        !temporary && line.contains("no/such:tag") && line.contains("not found"),
        "{line}"
    );
}

async fn wrong_bytes_are_refused(world: &World) {
    let registry = Registry::start().await;
    let store = store(world, &registry, "pulls-wrong").await;
    let at = |name: &str| format!("{}/{name}", registry.address);
    // A layer whose bytes are not those of the manifest.
    let good = layer(&[("a", 0o644, random(20_000))]);
    registry.add("layer:latest", json!({}), std::slice::from_ref(&good));
    let other = layer(&[("a", 0o644, random(20_001))]).1;
    registry.edit(|content| {
        content.blobs.insert(
            sha256(&good.1),
            other[..good.1.len().min(other.len())].to_vec(),
        )
    });
    let (temporary, line) = store.fails(&at("layer")).await;
    assert!(!temporary && line.contains("digest mismatch"), "{line}");
    // A manifest that is not the one asked for by digest.
    let digest = registry.add(
        "manifest:latest",
        json!({}),
        &[layer(&[("b", 0o644, vec![1])])],
    );
    registry.edit(|content| {
        let (kind, mut bytes) = content.manifests[&digest].clone();
        bytes.push(b' ');
        content.manifests.insert(digest.clone(), (kind, bytes));
    });
    let (_, line) = store.fails(&at(&format!("manifest@{digest}"))).await;
    assert!(
        line.contains("digest mismatch") && line.contains(&digest),
        "{line}"
    );
    // A configuration that says another layer than the one that comes.
    let lie = (
        layer(&[("c", 0o644, vec![3])]).0,
        layer(&[("c", 0o644, vec![4])]).1,
    );
    registry.add("config:latest", json!({}), &[lie]);
    let (_, line) = store.fails(&at("config")).await;
    assert!(line.contains("digest mismatch"), "{line}");
    // An image for another machine.
    registry.add("arm:latest", json!({}), &[]);
    registry.edit(|content| {
        let (kind, manifest) = content.manifests["arm:latest"].clone();
        let mut manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        let config = br#"{"os":"linux","architecture":"arm64","rootfs":{"diff_ids":[]}}"#.to_vec();
        manifest["config"]["digest"] = json!(sha256(&config));
        manifest["config"]["size"] = json!(config.len());
        content.blobs.insert(sha256(&config), config);
        content.manifests.insert(
            "arm:latest".into(),
            (kind, serde_json::to_vec(&manifest).unwrap()),
        );
    });
    let (_, line) = store.fails(&at("arm")).await;
    assert!(line.contains("linux/arm64"), "{line}");
    assert_eq!(store.on_disk(), (0, 0));
    assert!(store.images.list().is_empty());
}

async fn hostile_layers_are_refused(world: &World) {
    let registry = Registry::start().await;
    let store = store(world, &registry, "pulls-hostile").await;
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..14].copy_from_slice(b"../../escaped\0");
    header.set_size(0);
    header.set_mode(0o644);
    header.set_cksum();
    builder.append(&header, &b""[..]).unwrap();
    let tar = builder.into_inner().unwrap();
    registry.add("hostile:latest", json!({}), &[(tar.clone(), tar)]);
    let (temporary, line) = store.fails(&format!("{}/hostile", registry.address)).await;
    assert!(!temporary && line.contains("leaves the layer"), "{line}");
    // A bomb: what it says it is, is less than it is.
    let mut bomb = layer(&[("a", 0o644, vec![0; 100_000])]);
    registry.add("bomb:latest", json!({}), &[bomb.clone()]);
    bomb.1.extend(vec![0; 10_000]);
    let digest = sha256(&layer(&[("a", 0o644, vec![0; 100_000])]).1);
    registry.edit(|content| content.blobs.insert(digest, bomb.1.clone()));
    let (_, line) = store.fails(&format!("{}/bomb", registry.address)).await;
    assert!(line.contains("longer than"), "{line}");
}

async fn a_registry_that_stumbles_is_asked_again(world: &World) {
    let registry = Registry::start().await;
    let store = store(world, &registry, "pulls-stumble").await;
    registry.add(
        "stumble:latest",
        json!({}),
        &[layer(&[("a", 0o644, random(100_000))])],
    );
    registry.edit(|content| {
        content.failures = 1;
        content.cuts = 1;
    });
    let reference = format!("{}/stumble", registry.address).parse().unwrap();
    store
        .images
        .pull(&reference, None, &|_| ())
        .await
        .unwrap_or_else(|error| panic!("{}", error.chain()));
    assert_eq!(store.on_disk(), (1, 0));
    // Not for ever: three attempts.
    registry.edit(|content| content.failures = 1000);
    let before = registry.requests.load(Ordering::Relaxed);
    let (temporary, line) = store.fails(&format!("{}/other", registry.address)).await;
    assert!(temporary && line.contains("503"), "{line}");
    assert_eq!(registry.requests.load(Ordering::Relaxed) - before, 3);
}

async fn a_registry_that_is_down_is_said(world: &World) {
    let registry = Registry::start().await;
    let store = store(world, &registry, "pulls-down").await;
    registry.add("here:latest", json!({}), &[layer(&[("a", 0o644, vec![1])])]);
    let reference: Reference = format!("{}/here", registry.address).parse().unwrap();
    let image = store.images.pull(&reference, None, &|_| ()).await.unwrap();
    // A port that nobody listens on.
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let down = Images::open(
        world.dir.join("pulls-down-2"),
        Registries {
            mirrors: Vec::new(),
            insecure: vec![closed.to_string()],
        },
    );
    let down = down.await.unwrap();
    let error = down
        .pull(&format!("{closed}/x").parse().unwrap(), None, &|_| ())
        .await
        .unwrap_err();
    assert!(error.temporary);
    let line = error.chain();
    assert!(
        line.contains(&closed.to_string()) && line.to_lowercase().contains("connection refused"),
        "{line}"
    );
    // What is here is used while the registry cannot be asked.
    registry.edit(|content| content.failures = 1000);
    assert_eq!(
        store
            .images
            .pull(&reference, None, &|_| ())
            .await
            .unwrap()
            .id,
        image.id
    );
}

async fn one_layer_is_pulled_once(world: &World) {
    let registry = Registry::start().await;
    let store = store(world, &registry, "pulls-once").await;
    let shared = layer(&[("a", 0o644, random(300_000))]);
    for name in ["p:latest", "q:latest"] {
        registry.add(name, json!({"Cmd": [name]}), std::slice::from_ref(&shared));
    }
    let done = AtomicUsize::new(0);
    let count = |step| {
        if matches!(step, Progress::Done(_)) {
            done.fetch_add(1, Ordering::Relaxed);
        }
    };
    let reference = |name: &str| {
        format!("{}/{name}", registry.address)
            .parse::<Reference>()
            .unwrap()
    };
    let (p, q) = (reference("p"), reference("q"));
    let both = tokio::join!(
        store.images.pull(&p, None, &count),
        store.images.pull(&q, None, &count)
    );
    both.0.unwrap();
    both.1.unwrap();
    assert_eq!(done.load(Ordering::Relaxed), 1);
    assert_eq!(store.on_disk(), (1, 0));
}

async fn tokens_and_indexes_are_followed(world: &World) {
    let registry = Registry::start().await;
    let store = store(world, &registry, "pulls-token").await;
    let digest = registry.add(
        "inner:latest",
        json!({}),
        &[layer(&[("a", 0o644, vec![1])])],
    );
    registry.edit(|content| {
        content.token = Some("secret".into());
        let index = json!({"schemaVersion": 2, "manifests": [
            {"digest": sha256(b"other"), "size": 1, "platform": {"os": "linux", "architecture": "arm64"}},
            {"digest": digest, "size": 1, "platform": {"os": "linux", "architecture": "amd64"}},
        ]});
        let kind = "application/vnd.docker.distribution.manifest.list.v2+json".to_owned();
        content.manifests.insert("many:latest".into(), (kind, serde_json::to_vec(&index).unwrap()));
    });
    let reference = format!("{}/many", registry.address).parse().unwrap();
    let auth = RegistryAuth {
        username: "u".into(),
        password: "p".into(),
    };
    let image = store
        .images
        .pull(&reference, Some(&auth), &|_| ())
        .await
        .unwrap_or_else(|error| panic!("{}", error.chain()));
    assert_eq!(image.layers.len(), 1);
    let descriptor = store.images.resolve(&reference, None).await.unwrap();
    assert_eq!(descriptor.platforms.len(), 2);
}

async fn endless_answers_are_cut(world: &World) {
    let registry = Registry::start().await;
    let store = store(world, &registry, "pulls-endless").await;
    registry.edit(|content| {
        content
            .manifests
            .insert("long:latest".into(), ("x".into(), vec![b' '; 5 << 20]));
    });
    let (temporary, line) = store.fails(&format!("{}/long", registry.address)).await;
    assert!(!temporary && line.contains("longer than"), "{line}");
}

/// The reserve for the node's own state is 64 MiB: a file system of 66 with an image of 3 is full.
async fn a_full_disk_makes_room(world: &World) {
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
    let registry = Registry::start().await;
    let names = ["first:latest", "second:latest"];
    for (name, seed) in names.iter().zip(1_u8..) {
        let files = layer(&[("a", 0o644, [vec![seed], random(3 << 20)].concat())]);
        registry.add(name, json!({"Cmd": [name]}), &[files]);
    }
    let dir = world.dir.join("pulls-full");
    std::fs::create_dir_all(&dir).unwrap();
    mount(
        "none",
        &dir,
        "tmpfs",
        MountFlags::empty(),
        Some(c"size=66m"),
    )
    .unwrap();
    let registries = Registries {
        mirrors: Vec::new(),
        insecure: vec![registry.address.clone()],
    };
    let images = Images::open(dir.clone(), registries).await.unwrap();
    let dirs = crate::dirs(&world.dir.join("v5"));
    let containers = Containers::open(dirs.clone(), images.clone())
        .await
        .unwrap();
    let reference = |name: &str| {
        format!("{}/{name}", registry.address)
            .parse::<Reference>()
            .unwrap()
    };
    let (first, second) = (reference("first"), reference("second"));
    containers.pull(&first, None, &|_| ()).await.unwrap();
    let error = images.pull(&second, None, &|_| ()).await.unwrap_err();
    assert!(
        error.temporary && error.chain().contains("no space left"),
        "{}",
        error.chain()
    );
    // Nobody uses the first.
    containers
        .pull(&second, None, &|_| ())
        .await
        .unwrap_or_else(|error| panic!("{}", error.chain()));
    assert!(images.get(&first.to_string()).is_none());
    assert!(images.get(&second.to_string()).is_some());
    unmount(&dir, UnmountFlags::DETACH).unwrap();
    let cgroup =
        std::path::Path::new("/sys/fs/cgroup").join(dirs.cgroup.strip_prefix("/").unwrap());
    std::fs::remove_dir(cgroup).unwrap();
}
