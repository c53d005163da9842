//! Secrets and configs: what is taken, who may use them, and which nodes get them.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;

use crate::{
    api::{
        ApiError, ClusterRequest, ConfigSpec, DependencyId, Filters, SecretSpec, ServiceSpec,
        TaskState,
    },
    manager::{
        control,
        dispatcher::{AssignmentChange, assignments, messages, needed},
        query,
    },
    store::{ApplyError, View},
    testing::bench::{Bench, config, secret, service},
};

/// A service whose container has these `Secrets` and `Configs`.
fn with(name: &str, secrets: serde_json::Value, configs: serde_json::Value) -> ServiceSpec {
    let mut spec = serde_json::to_value(service(name, 1)).unwrap();
    let container = &mut spec["TaskTemplate"]["ContainerSpec"];
    container["Secrets"] = secrets;
    container["Configs"] = configs;
    serde_json::from_value(spec).unwrap()
}

fn reference(id: &str, name: &str, target: &str) -> serde_json::Value {
    json!({"SecretID": id, "SecretName": name, "File": {"Name": target}})
}

/// A service that uses the secret `db` as `db`.
fn uses(bench: &Bench, name: &str) -> ServiceSpec {
    let id = bench.view().secret_named("db").unwrap().id.to_string();
    with(name, json!([reference(&id, "db", "db")]), json!([]))
}

fn refused(bench: &mut Bench, request: &ClusterRequest) -> ApiError {
    bench.request(request).expect_err("it was taken")
}

fn create(spec: ServiceSpec) -> ClusterRequest {
    ClusterRequest::ServiceCreate(Box::new(spec))
}

#[test]
fn what_is_no_secret_is_refused_by_field() {
    let cases = [
        (json!({"Name": "", "Data": "eA=="}), "Name"),
        (json!({"Name": "-a", "Data": "eA=="}), "Name"),
        (json!({"Name": "a b", "Data": "eA=="}), "Name"),
        (json!({"Name": "x".repeat(65), "Data": "eA=="}), "Name"),
        (json!({"Name": "a"}), "Data"),
        (
            json!({"Name": "a", "Data": "eA==", "Labels": {"": "x"}}),
            "Labels",
        ),
    ];
    for (spec, wanted) in cases {
        let spec: SecretSpec = serde_json::from_value(spec).unwrap();
        let request = ClusterRequest::SecretCreate(Box::new(spec));
        let error = refused(&mut Bench::new(1), &request);
        let ApiError::Invalid { field, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(field, wanted, "{error}");
    }
    let unsupported = [
        (json!({"Driver": {"Name": "vault"}}), "Driver"),
        (json!({"Templating": {"Name": "golang"}}), "Templating"),
    ];
    for (extra, wanted) in unsupported {
        let mut spec = json!({"Name": "a", "Data": "eA=="});
        spec.as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        let spec: SecretSpec = serde_json::from_value(spec).unwrap();
        let request = ClusterRequest::SecretCreate(Box::new(spec));
        let error = refused(&mut Bench::new(1), &request).to_string();
        assert!(
            error.starts_with(wanted) && error.contains("not supported"),
            "{error}"
        );
    }
}

#[test]
fn contents_have_dockers_bounds() {
    let mut bench = Bench::new(1);
    let mut make = |kind: &str, bytes: usize| {
        let name = format!("{kind}{bytes}");
        let request = match kind {
            "secret" => ClusterRequest::SecretCreate(Box::new(secret(&name, &vec![b'x'; bytes]))),
            _ => ClusterRequest::ConfigCreate(Box::new(config(&name, &vec![b'x'; bytes]))),
        };
        bench
            .request(&request)
            .map(drop)
            .map_err(|error| error.to_string())
    };
    for (kind, limit) in [("secret", 512_000), ("config", 1_024_000)] {
        make(kind, 1).unwrap();
        make(kind, limit - 1).unwrap();
        let words = format!("{kind} data must be larger than 0 and less than {limit} bytes");
        for bytes in [0, limit] {
            let error = make(kind, bytes).unwrap_err();
            assert!(error.contains(&words), "{error}");
        }
    }
}

#[test]
fn a_name_is_used_once_among_secrets_and_once_among_configs() {
    let mut bench = Bench::new(1);
    bench.create_secret("db", b"one");
    bench.create_config("db", b"two");
    let again = ClusterRequest::SecretCreate(Box::new(secret("DB", b"x")));
    let error = refused(&mut bench, &again);
    assert_eq!(
        error,
        ApiError::Conflict("secret DB already exists".to_owned())
    );
    // Both decided over the same view.
    let view = bench.view();
    let make = ClusterRequest::ConfigCreate(Box::new(config("site", b"x")));
    let mut decide = || control::handle(&view, &make, &mut bench.ctx).unwrap().0;
    let proposals = vec![decide(), decide()];
    let results = bench.commit_all(proposals);
    assert!(results[0].is_ok());
    assert!(matches!(
        results[1],
        Err(ApplyError::NameTaken { kind: "config", .. })
    ));
}

#[test]
fn an_update_changes_labels_and_nothing_else() {
    let mut bench = Bench::new(1);
    let id = bench.create_secret("db", b"one");
    let update = |version: u64, spec: SecretSpec| ClusterRequest::SecretUpdate {
        secret: "db".to_owned(),
        version,
        spec: Box::new(spec),
    };
    let version = |bench: &Bench| bench.view().secret(&id).unwrap().meta.version;
    let mut labelled = secret("db", b"");
    labelled.labels.insert("tier".to_owned(), "data".to_owned());
    let first = version(&bench);
    bench.request(&update(first, labelled.clone())).unwrap();
    assert_eq!(
        refused(&mut bench, &update(first, labelled.clone())),
        ApiError::OutOfSequence
    );
    let after = Arc::clone(bench.view().secret(&id).unwrap());
    assert_eq!(after.spec.labels, labelled.labels);
    assert_eq!(after.spec.data.bytes(), b"one");
    // Clients that deploy stacks send the content again.
    let now = version(&bench);
    bench.request(&update(now, secret("db", b"one"))).unwrap();
    let now = version(&bench);
    for spec in [secret("db", b"two"), secret("other", b"")] {
        let error = refused(&mut bench, &update(now, spec)).to_string();
        assert!(
            error.contains("only updates to Labels are allowed"),
            "{error}"
        );
    }
}

#[test]
fn what_services_use_stays_and_they_are_named() {
    let mut bench = Bench::new(1);
    bench.create_secret("db", b"one");
    let remove = ClusterRequest::SecretRemove("db".to_owned());
    let spec = uses(&bench, "web");
    bench.create(&spec);
    let error = refused(&mut bench, &remove);
    let words = "secret 'db' is in use by the following service: web";
    assert_eq!(error, ApiError::Precondition(words.to_owned()));
    let spec = uses(&bench, "api");
    bench.create(&spec);
    let words = "secret 'db' is in use by the following services: api, web";
    assert_eq!(refused(&mut bench, &remove).to_string(), words);
    for name in ["web", "api"] {
        bench
            .request(&ClusterRequest::ServiceRemove(name.to_owned()))
            .unwrap();
    }
    bench.request(&remove).unwrap();
    assert!(bench.view().secret_named("db").is_none());
    let error = refused(&mut bench, &remove);
    assert_eq!(error.to_string(), "secret db not found");
}

#[test]
fn a_removal_and_a_use_that_meet_are_not_both_done() {
    for use_first in [true, false] {
        let mut bench = Bench::new(1);
        bench.create_secret("db", b"one");
        let view = bench.view();
        let (spec, remove) = (
            uses(&bench, "web"),
            ClusterRequest::SecretRemove("db".to_owned()),
        );
        let mut decide = |request| control::handle(&view, &request, &mut bench.ctx).unwrap().0;
        let mut proposals = vec![decide(create(spec)), decide(remove)];
        if !use_first {
            proposals.reverse();
        }
        let results = bench.commit_all(proposals);
        assert!(results[0].is_ok());
        let error = results[1].clone().unwrap_err().to_string();
        let words = match use_first {
            true => "secret 'db' is in use by the following service: web",
            false => "secret not found: db",
        };
        assert_eq!(error, words);
    }
}

/// Specs with one wrong reference to secret `db` or config `site`, each with its field and what is said of it.
fn wrong_references(db: &str, site: &str) -> Vec<(ServiceSpec, &'static str, &'static str)> {
    let secrets = |list| with("web", list, json!([]));
    let config = |file: serde_json::Value| {
        let one = json!({"ConfigID": site, "ConfigName": "site", "File": file});
        with("web", json!([]), json!([one]))
    };
    vec![
        (
            secrets(json!([reference("", "db", "x")])),
            "Secrets[0]",
            "malformed secret reference",
        ),
        (
            secrets(json!([reference("no-id", "db", "x")])),
            "Secrets[0]",
            "secret not found: db",
        ),
        (
            secrets(json!([reference(site, "db", "x")])),
            "Secrets[0]",
            "secret not found: db",
        ),
        (
            secrets(json!([reference(db, "other", "x")])),
            "Secrets[0]",
            "secret not found: other",
        ),
        (
            secrets(json!([{"SecretID": db, "SecretName": "db"}])),
            "Secrets[0].File",
            "no target provided",
        ),
        (
            secrets(json!([reference(db, "db", "")])),
            "Secrets[0].File.Name",
            "give a path",
        ),
        (
            secrets(json!([reference(db, "db", "../x")])),
            "Secrets[0].File.Name",
            "leave out ..",
        ),
        (
            secrets(json!([reference(db, "db", "/proc/1/x")])),
            "Secrets[0].File.Name",
            "/proc",
        ),
        (
            secrets(json!([
                reference(db, "db", "x"),
                reference(db, "db", "/run/secrets/x")
            ])),
            "Secrets[1].File.Name",
            "conflicting target: /run/secrets/x",
        ),
        (
            config(json!({"Name": "x", "UID": "www"})),
            "Configs[0].File.UID",
            "is not a number",
        ),
        (
            config(json!({"Name": "x", "GID": "-1"})),
            "Configs[0].File.GID",
            "is not a number",
        ),
        (
            config(json!({"Name": "x", "Mode": 0o10_000})),
            "Configs[0].File.Mode",
            "0o10000",
        ),
    ]
}

#[test]
fn references_are_checked_field_by_field() {
    let mut bench = Bench::new(1);
    let db = bench.create_secret("db", b"one").to_string();
    let site = bench.create_config("site", b"two").to_string();
    for (spec, field, words) in wrong_references(&db, &site) {
        let error = refused(&mut bench, &create(spec)).to_string();
        let field = format!("invalid TaskTemplate.ContainerSpec.{field}: ");
        assert!(
            error.starts_with(&field) && error.contains(words),
            "{error}"
        );
    }
    let both =
        json!([{"ConfigID": site, "ConfigName": "site", "File": {"Name": "/run/secrets/db"}}]);
    let spec = with("web", json!([reference(&db, "db", "db")]), both);
    let error = refused(&mut bench, &create(spec)).to_string();
    assert!(
        error.contains("config site and secret db have a conflicting target"),
        "{error}"
    );
    let runtime = json!([{"ConfigID": site, "ConfigName": "site", "Runtime": {}}]);
    let error = refused(&mut bench, &create(with("web", json!([]), runtime)));
    assert!(
        matches!(&error, ApiError::Unsupported(it) if it.ends_with("Configs[0].Runtime")),
        "{error}"
    );
}

#[test]
fn a_task_has_a_bounded_content() {
    let mut bench = Bench::new(1);
    let id = bench
        .create_config("big", &vec![b'x'; 1_023_999])
        .to_string();
    let many = |count: usize| {
        let list = (0..count).map(|number| {
            json!({"ConfigID": id, "ConfigName": "big", "File": {"Name": format!("/c{number}")}})
        });
        with("web", json!([]), list.collect())
    };
    let error = refused(&mut bench, &create(many(17))).to_string();
    assert!(error.contains("at most 16777216"), "{error}");
    bench.create(&many(16));
}

#[test]
fn lists_filter_by_id_name_and_label() {
    let mut bench = Bench::new(1);
    let id = bench.create_secret("db", b"x");
    bench.create_secret("db2", b"x");
    let mut labelled = config("site", b"x");
    labelled.labels.insert("tier".to_owned(), "web".to_owned());
    bench
        .request(&ClusterRequest::ConfigCreate(Box::new(labelled)))
        .unwrap();
    let view = bench.view();
    let filter = |key: &str, value: &str| Filters::from([(key.to_owned(), vec![value.to_owned()])]);
    let secrets = |key, value| {
        query::list_secrets(&view, &filter(key, value))
            .unwrap()
            .len()
    };
    assert_eq!(secrets("name", "db"), 2);
    assert_eq!(secrets("names", "db"), 1);
    assert_eq!(secrets("id", &id.as_str()[..20]), 1);
    assert_eq!(secrets("label", "tier"), 0);
    let configs = |key, value| {
        query::list_configs(&view, &filter(key, value))
            .unwrap()
            .len()
    };
    assert_eq!(
        (configs("label", "tier=web"), configs("label", "tier=db")),
        (1, 0)
    );
    assert!(query::list_configs(&view, &filter("colour", "red")).is_err());
    for reference in ["db", "DB", id.as_str(), &id.as_str()[..20]] {
        assert_eq!(query::find_secret(&view, reference).unwrap().id, id);
    }
    assert_eq!(
        query::find_config(&view, "db").unwrap_err().to_string(),
        "config db not found"
    );
}

/// The ids of what a view gives a node.
fn given(view: &View, hostname: &str) -> Vec<DependencyId> {
    let node = query::find_node(view, hostname).unwrap().id.clone();
    let set = assignments(view, &node);
    let secrets = set.secrets.into_keys().map(DependencyId::Secret);
    secrets
        .chain(set.configs.into_keys().map(DependencyId::Config))
        .collect()
}

#[test]
fn only_nodes_with_a_living_task_get_what_it_uses() {
    let mut bench = Bench::new(3);
    let db = DependencyId::Secret(bench.create_secret("db", b"one"));
    bench.create_secret("unused", b"x");
    let spec = uses(&bench, "web");
    let web = bench.create(&spec);
    bench.settle();
    let task = bench.live(&web).remove(0);
    let node = bench
        .view()
        .node(task.node_id.as_ref().unwrap())
        .unwrap()
        .clone();
    let hostname = &node.description.as_ref().unwrap().hostname;
    let view = bench.view();
    for other in ["node1", "node2", "node3"] {
        let wanted = if other == hostname {
            vec![db.clone()]
        } else {
            Vec::new()
        };
        assert_eq!(given(&view, other), wanted, "{other}");
    }
    let before = assignments(&view, &node.id);
    let changes = crate::manager::dispatcher::AssignmentSet::default().diff(&before);
    let [
        AssignmentChange::UpdateSecret(secret),
        AssignmentChange::Update(_),
    ] = &changes[..]
    else {
        panic!("{changes:?}");
    };
    assert_eq!(secret.spec.data.bytes(), b"one");
    // New labels are no news for a node.
    let update = ClusterRequest::SecretUpdate {
        secret: "db".to_owned(),
        version: view.secret_named("db").unwrap().meta.version,
        spec: Box::new(crate::testing::bench::secret("db", b"")),
    };
    bench.request(&update).unwrap();
    assert_eq!(before.diff(&assignments(&bench.view(), &node.id)), []);
    bench.report(&task, TaskState::Failed);
    let after = assignments(&bench.view(), &node.id);
    let DependencyId::Secret(id) = db else {
        unreachable!()
    };
    assert_eq!(before.diff(&after), [AssignmentChange::RemoveSecret(id)]);
}

#[test]
fn a_rollback_to_what_is_gone_is_the_users_to_undo_and_stops_no_loop() {
    let mut bench = Bench::new(1);
    bench.create_secret("db", b"one");
    let spec = uses(&bench, "web");
    let web = bench.create(&spec);
    bench.obey();
    bench.update(&web, |spec| {
        spec.task_template
            .container_spec
            .as_mut()
            .unwrap()
            .secrets
            .clear();
    });
    bench.obey();
    bench
        .request(&ClusterRequest::SecretRemove("db".to_owned()))
        .unwrap();
    let service = Arc::clone(bench.view().service(&web).unwrap());
    let rollback = ClusterRequest::ServiceUpdate {
        service: "web".to_owned(),
        version: service.meta.version,
        spec: Box::new(service.spec.clone()),
        rollback: true,
    };
    let error = refused(&mut bench, &rollback).to_string();
    assert!(error.contains("secret not found: db"), "{error}");
    // What the leader decides by itself must not be refused for ever.
    let mut service = crate::api::Service::clone(&service);
    service.spec = service.previous_spec.clone().unwrap();
    bench.must([crate::store::Change::put_service(service)]);
}

#[test]
fn messages_are_bounded_and_tasks_come_when_they_must() {
    let mut bench = Bench::new(1);
    let ids: Vec<_> = (0..5)
        .map(|number| bench.create_config(&format!("c{number}"), &vec![b'x'; 1_000_000]))
        .collect();
    let list = ids.iter().enumerate().map(|(number, id)| {
        json!({"ConfigID": id, "ConfigName": format!("c{number}"), "File": {"Name": format!("/c{number}")}})
    });
    bench.create(&with("web", json!([]), list.collect()));
    bench.settle();
    let node = bench.node("node1").id;
    let set = assignments(&bench.view(), &node);
    let changes = crate::manager::dispatcher::AssignmentSet::default().diff(&set);
    let has_task = |message: &Vec<AssignmentChange>| {
        message
            .iter()
            .any(|change| matches!(change, AssignmentChange::Update(_)))
    };
    for complete in [true, false] {
        let messages = messages(changes.clone(), complete);
        let sizes: Vec<usize> = messages
            .iter()
            .map(|message| {
                message
                    .iter()
                    .filter(|it| matches!(it, AssignmentChange::UpdateConfig(_)))
                    .count()
            })
            .collect();
        assert_eq!(sizes, [2, 2, 1]);
        let tasks: Vec<bool> = messages.iter().map(has_task).collect();
        let wanted = if complete {
            [true, false, false]
        } else {
            [false, false, true]
        };
        assert_eq!(tasks, wanted);
    }
    assert_eq!(
        messages(Vec::new(), true),
        [Vec::new()],
        "a complete set may be empty"
    );
}

#[test]
fn requests_and_entries_say_nothing_of_a_secret_in_their_debug_form() {
    let mut bench = Bench::new(1);
    let spec = secret("db", b"canary-5e1f");
    let request = ClusterRequest::SecretCreate(Box::new(spec));
    let (proposal, _) = control::handle(&bench.view(), &request, &mut bench.ctx).unwrap();
    let encoded = data_encoding::BASE64.encode(b"canary-5e1f");
    let bytes = format!("{:?}", b"canary-5e1f");
    let shown = format!("{request:?} {proposal:?}");
    let _ = bench.commit(proposal);
    let shown = format!("{shown} {:?}", bench.view());
    for text in ["canary-5e1f", encoded.as_str(), bytes.as_str()] {
        assert!(!shown.contains(text), "{text} in {shown}");
    }
}

proptest! {
    #[test]
    fn any_secret_is_taken_or_refused(name in "\\PC{0,70}", data: Vec<u8>) {
        let mut bench = Bench::new(1);
        let spec = SecretSpec { name, data: data.into(), ..SecretSpec::default() };
        let _ = bench.request(&ClusterRequest::SecretCreate(Box::new(spec.clone())));
        let spec = ConfigSpec { name: spec.name, data: spec.data, ..ConfigSpec::default() };
        let _ = bench.request(&ClusterRequest::ConfigCreate(Box::new(spec)));
    }

    /// Whatever is asked, a node gets what its living tasks name and nothing else.
    #[test]
    fn no_node_gets_more_than_its_tasks_need(targets in prop::collection::vec("[a-z/.]{0,6}", 0..4), ended: bool) {
        let mut bench = Bench::new(3);
        let id = bench.create_secret("db", b"x").to_string();
        let list = targets.iter().map(|target| reference(&id, "db", target));
        let taken = bench.request(&create(with("web", list.collect(), json!([]))));
        bench.settle();
        let tasks: Vec<_> = bench.view().tasks().cloned().collect();
        if ended && let Some(task) = tasks.first() {
            bench.report(task, TaskState::Failed);
        }
        let view = bench.view();
        for node in ["node1", "node2", "node3"] {
            let own = query::find_node(&view, node).unwrap();
            let wanted: std::collections::BTreeSet<_> = view
                .tasks_on_node(&own.id)
                .filter(|task| task.status.state >= TaskState::Assigned)
                .flat_map(|task| needed(task).collect::<Vec<_>>())
                .collect();
            let got: std::collections::BTreeSet<_> = given(&view, node).into_iter().collect();
            prop_assert_eq!(&got, &wanted);
            prop_assert!(taken.is_ok() || got.is_empty());
        }
    }
}
