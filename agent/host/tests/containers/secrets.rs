//! Secrets and configs as a container sees them, and as nobody else does.

use std::path::Path;

use serde_json::{Value, json};
use skep_core::api::{Config, DependencyId, Secret};
use skep_core::id::Id;
use skep_core::worker::container::exec::ExecRequest;
use skep_core::worker::container::plan::ContainerPlan;
use skep_core::worker::dependencies::Contents;
use skep_host::container::Containers;

use crate::{Case, World, case};

pub(crate) const CASES: &[Case] = &[
    case!(secrets_have_their_place_owner_and_mode),
    case!(nothing_of_a_secret_is_on_disk_or_in_the_nodes_mounts),
    case!(links_of_an_image_lead_a_secret_nowhere),
    case!(a_read_only_root_has_its_secrets),
    case!(a_secret_without_its_content_leaves_nothing),
    case!(a_restarted_skepd_leaves_secrets_as_they_are),
];

const CANARY: &str = "canary-5e1f-of-a-secret";

fn secret() -> Id<Secret> {
    Id::from_entropy(7)
}

fn config() -> Id<Config> {
    Id::from_entropy(8)
}

fn contents() -> Contents {
    let content = |text: &str| text.as_bytes().to_vec().into();
    Contents::from([
        (DependencyId::Secret(secret()), content(CANARY)),
        (DependencyId::Config(config()), content("server {}\n")),
    ])
}

/// A plan for `probe WORDS…` with the secret at these targets.
fn plan(world: &World, targets: &[Value], words: &[&str]) -> ContainerPlan {
    let secrets = targets
        .iter()
        .map(|file| json!({"SecretID": secret(), "SecretName": "db", "File": file}));
    let spec = json!({"Image": "test", "Secrets": secrets.collect::<Vec<_>>(), "Args": words});
    world.task_plan(spec, json!({}))
}

async fn run(world: &World, plan: &ContainerPlan) -> String {
    world.create_with(plan, &contents()).await;
    world.containers.start(&plan.id).await.unwrap();
    let exit = world.containers.wait(&plan.id).await.unwrap();
    let log = world.log(&plan.id).await;
    world.containers.delete(&plan.id).await.unwrap();
    assert_eq!(exit.code, 0, "{log}");
    log
}

async fn secrets_have_their_place_owner_and_mode(world: &World) {
    let targets = [
        json!({"Name": "db"}),
        json!({"Name": "deep/er", "UID": "33", "GID": "34", "Mode": 0o400}),
        json!({"Name": "/etc/db.key", "Mode": 0o440}),
    ];
    let paths = ["/run/secrets/db", "/run/secrets/deep/er", "/etc/db.key"];
    let words = [&["owner"], &paths[..]].concat();
    let said = run(world, &plan(world, &targets, &words)).await;
    let expected = "/run/secrets/db 0 0 444\n/run/secrets/deep/er 33 34 400\n/etc/db.key 0 0 440\n";
    assert_eq!(said, expected);
    let words = [&["look"], &paths[..]].concat();
    let said = run(world, &plan(world, &targets, &words)).await;
    assert_eq!(
        said.matches(&format!("file {CANARY:?}")).count(),
        3,
        "{said}"
    );
    for path in paths {
        let said = run(world, &plan(world, &targets, &["write", path, "x"])).await;
        assert!(said.contains("Read-only file system"), "{path}: {said}");
    }
    let said = run(
        world,
        &plan(world, &targets, &["look", "/proc/self/mountinfo"]),
    )
    .await;
    let mounts = said.replace("\\n", "\n");
    for path in paths {
        let mut lines = mounts.lines();
        let line = lines.find(|line| line.contains(&format!(" {path} ")));
        let line = line.unwrap_or_else(|| panic!("{path} in {mounts}"));
        for word in ["ro", "nosuid", "nodev", "noexec", "tmpfs", "size="] {
            assert!(line.contains(word), "{word} in {line}");
        }
    }
}

/// The files below a directory that have the canary in them.
fn holders(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(holders(&entry.path()));
        } else if kind.is_file() {
            let content = std::fs::read(entry.path()).unwrap_or_default();
            let encoded = "Y2FuYXJ5LTVlMWY";
            for text in [CANARY, encoded] {
                if content
                    .windows(text.len())
                    .any(|part| part == text.as_bytes())
                {
                    found.push(entry.path());
                }
            }
        }
    }
    found
}

async fn nothing_of_a_secret_is_on_disk_or_in_the_nodes_mounts(world: &World) {
    let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let plan = plan(world, &[json!({"Name": "db"})], &["wait"]);
    world.create_with(&plan, &contents()).await;
    world.containers.start(&plan.id).await.unwrap();
    world.until_log(&plan.id, "ready").await;
    for dir in [&world.dirs.run, &world.dirs.state, &world.dirs.volumes] {
        assert_eq!(holders(dir), Vec::<std::path::PathBuf>::new());
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert_eq!(mounts, before);
    let provided = world.dirs.run.join(plan.id.as_str()).join("provided");
    assert_eq!(std::fs::read_dir(provided).unwrap().count(), 0);
    world.containers.delete(&plan.id).await.unwrap();
    assert!(!world.dirs.run.join(plan.id.as_str()).exists());
}

/// An image whose `/run` and whose place of the file are links: they lead to places of the container.
async fn links_of_an_image_lead_a_secret_nowhere(world: &World) {
    let configs =
        json!([{"ConfigID": config(), "ConfigName": "site", "File": {"Name": "/site.conf"}}]);
    let secrets = json!([{"SecretID": secret(), "SecretName": "db", "File": {"Name": "db"}}]);
    let words = ["look", "/run/secrets/db", "/tmp/secrets/db", "/etc/second"];
    let spec = json!({"Image": "test", "Secrets": secrets, "Configs": configs, "Args": words});
    let mut plan = world.task_plan(spec, json!({}));
    plan.image_id.clone_from(&world.secret_links.id);
    let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let said = run(world, &plan).await;
    let expected = format!(
        "/run/secrets/db file {CANARY:?}\n/tmp/secrets/db file {CANARY:?}\n/etc/second file \"server {{}}\\n\"\n"
    );
    assert_eq!(said, expected);
    assert!(
        !Path::new("/tmp/secrets").exists(),
        "it was made on the node"
    );
    assert!(
        !Path::new("/etc/second").exists(),
        "it was made on the node"
    );
    let after = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert_eq!(after, before);
}

async fn a_read_only_root_has_its_secrets(world: &World) {
    let secrets = json!([{"SecretID": secret(), "SecretName": "db", "File": {"Name": "db"}}]);
    let words = ["look", "/run/secrets/db"];
    let spec = json!({"Image": "test", "Secrets": secrets, "Args": words, "ReadOnly": true});
    let said = run(world, &world.task_plan(spec, json!({}))).await;
    assert!(said.contains(CANARY), "{said}");
}

async fn a_secret_without_its_content_leaves_nothing(world: &World) {
    let plan = plan(world, &[json!({"Name": "db"})], &["wait"]);
    let created = world.containers.create(&plan, &Contents::new()).await;
    let error = created.unwrap_err().chain();
    let wanted = format!("secret {}: its content is not here", secret());
    assert!(error.contains(&wanted), "{error}");
    assert!(!world.dirs.run.join(plan.id.as_str()).exists());
    assert!(!world.dirs.state.join(plan.id.as_str()).exists());
}

async fn a_restarted_skepd_leaves_secrets_as_they_are(world: &World) {
    let plan = plan(world, &[json!({"Name": "db"})], &["wait"]);
    world.create_with(&plan, &contents()).await;
    world.containers.start(&plan.id).await.unwrap();
    world.until_log(&plan.id, "ready").await;
    let images = world.containers.images().clone();
    let again = Containers::open(world.dirs.clone(), images).await;
    let again = again.unwrap_or_else(|error| panic!("{}", error.chain()));
    let words = ["/probe", "look", "/run/secrets/db"];
    let request = ExecRequest {
        args: words.map(str::to_owned).into(),
        ..ExecRequest::default()
    };
    let mut session = again.exec(&plan.id, request).await.unwrap();
    let mut said = Vec::new();
    while let Some((_, data)) = session.output.recv().await {
        said.extend_from_slice(&data);
    }
    let said = String::from_utf8(said).unwrap();
    assert!(said.contains(CANARY), "{said}");
    world.containers.delete(&plan.id).await.unwrap();
}
