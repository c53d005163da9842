//! Requests as clients send them, without a client.

use std::time::Duration;

use axum::{
    Router,
    body::Body,
    http::{Method, Request, StatusCode},
};
use http_body_util::BodyExt;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::{Peer, answer, router};
use crate::management::memory;

struct Api(Router);

impl Api {
    fn start() -> Self {
        Self(router(memory::management()))
    }

    async fn send(&self, method: Method, path: &str, body: impl Into<Body>) -> (StatusCode, Value) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .extension(Peer("test".to_owned()))
            .body(body.into())
            .unwrap();
        let response = answer(self.0.clone(), request).await;
        assert_eq!(response.headers()["api-version"], "1.45");
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let document = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| json!(String::from_utf8_lossy(&bytes)));
        (status, document)
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.send(Method::GET, path, Body::empty()).await
    }

    async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.send(Method::POST, path, body.to_string()).await
    }

    async fn init(&self) {
        let body = json!({ "ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": "192.168.77.11" });
        let (status, id) = self.post("/v1.41/swarm/init", body).await;
        assert_eq!(status, StatusCode::OK, "{id}");
        assert_eq!(id.as_str().unwrap().len(), 25);
    }

    /// Waits until a service has as many running tasks as it shall have.
    async fn converged(&self, service: &str) -> Value {
        for _ in 0..500 {
            let path = format!("/services?status=true&filters={{\"name\":{{\"{service}\":true}}}}");
            let (_, list) = self
                .get(
                    &path
                        .replace('{', "%7B")
                        .replace('}', "%7D")
                        .replace('"', "%22"),
                )
                .await;
            let status = &list[0]["ServiceStatus"];
            if status["RunningTasks"] == status["DesiredTasks"]
                && status["DesiredTasks"] != json!(0)
            {
                return list[0].clone();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("service {service} does not converge");
    }
}

fn whoami() -> Value {
    json!({
        "Name": "whoami",
        "Labels": {},
        "TaskTemplate": {
            "ContainerSpec": { "Image": "whoami:1", "DNSConfig": {}, "Isolation": "default" },
            "Resources": { "Limits": {}, "Reservations": {} },
            "Placement": {},
            "ForceUpdate": 0,
        },
        "Mode": { "Replicated": { "Replicas": 3 } },
        "EndpointSpec": {
            "Mode": "vip",
            "Ports": [{
                "Protocol": "tcp", "TargetPort": 8000, "PublishedPort": 8000, "PublishMode": "ingress",
            }],
        },
    })
}

#[tokio::test]
async fn a_node_without_a_swarm_says_so() {
    let api = Api::start();
    let (status, body) = api.get("/_ping").await;
    assert_eq!((status, body), (StatusCode::OK, json!("OK")));
    let (status, body) = api.get("/v1.45/nodes").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(
        body["message"]
            .as_str()
            .unwrap()
            .contains("docker swarm init")
    );
    let (_, info) = api.get("/info").await;
    assert_eq!(info["Swarm"]["LocalNodeState"], "inactive");
    let (_, networks) = api.get("/networks").await;
    let names: Vec<&str> = networks
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n["Name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["bridge", "docker_gwbridge", "host", "none"]);
}

#[tokio::test]
async fn a_service_lives_from_create_to_remove() {
    let api = Api::start();
    api.init().await;
    let (status, network) = api
        .post("/networks/create", json!({ "Name": "my-demo", "Driver": "overlay", "CheckDuplicate": true,
            "IPAM": { "Driver": "default", "Options": {}, "Config": [] }, "ConfigFrom": { "Network": "" } }))
        .await;
    assert_eq!(status, StatusCode::CREATED, "{network}");
    let mut spec = whoami();
    spec["TaskTemplate"]["Networks"] = json!([{ "Target": network["Id"] }]);
    let (status, created) = api.post("/services/create", spec.clone()).await;
    assert_eq!(status, StatusCode::CREATED, "{created}");
    let service = api.converged("whoami").await;
    assert_eq!(
        service["ServiceStatus"],
        json!({ "RunningTasks": 3, "DesiredTasks": 3, "CompletedTasks": 0 })
    );
    let vips = service["Endpoint"]["VirtualIPs"].as_array().unwrap();
    assert_eq!(vips.len(), 2, "{service}");
    assert!(vips[0]["Addr"].as_str().unwrap().starts_with("10.255."));
    assert!(vips[0]["Addr"].as_str().unwrap().ends_with("/16"));
    assert!(vips[1]["Addr"].as_str().unwrap().ends_with("/24"));

    let (_, tasks) = api.get("/tasks").await;
    let task = &tasks[0];
    assert_eq!(task["Status"]["State"], "running");
    assert_eq!(
        task["NetworksAttachments"][0]["Network"]["Spec"]["Name"],
        "ingress"
    );
    let (_, network) = api.get("/networks/my-demo?verbose=true").await;
    assert_eq!(
        network["Services"]["whoami"]["Tasks"]
            .as_array()
            .unwrap()
            .len(),
        3
    );

    spec["Mode"]["Replicated"]["Replicas"] = json!(2);
    let (status, body) = api
        .post("/services/whoami/update?version=1", spec.clone())
        .await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(body["message"], "update out of sequence");
    let (_, current) = api.get("/services/whoami").await;
    let path = format!(
        "/services/whoami/update?version={}",
        current["Version"]["Index"]
    );
    let (status, body) = api.post(&path, spec).await;
    assert_eq!(
        (status, body),
        (StatusCode::OK, json!({ "Warnings": null }))
    );
    assert_eq!(
        api.converged("whoami").await["ServiceStatus"]["DesiredTasks"],
        2
    );

    let (status, _) = api
        .send(Method::DELETE, "/services/whoami", Body::empty())
        .await;
    assert_eq!(status, StatusCode::OK);
    let (status, _) = api.get("/services/whoami").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

/// Path, body, the status that it gets and a word of the message.
type Mistake = (&'static str, Value, StatusCode, &'static str);

fn mistakes_with_services() -> Vec<Mistake> {
    let mut bad_port = whoami();
    bad_port["EndpointSpec"]["Ports"][0]["TargetPort"] = json!(80_000);
    let mut unknown = whoami();
    unknown["TaskTemplate"]["ContainerSpec"]["Colour"] = json!("red");
    let mut dangling = whoami();
    let secret = json!({ "SecretID": "x", "SecretName": "db", "File": { "Name": "db" } });
    dangling["TaskTemplate"]["ContainerSpec"]["Secrets"] = json!([secret]);
    vec![
        (
            "/services/create",
            bad_port,
            StatusCode::BAD_REQUEST,
            "EndpointSpec.Ports[0].TargetPort",
        ),
        (
            "/services/create",
            unknown,
            StatusCode::BAD_REQUEST,
            "Colour",
        ),
        (
            "/services/create",
            dangling,
            StatusCode::BAD_REQUEST,
            "Secrets[0]: secret not found: db",
        ),
        (
            "/services/create",
            json!([]),
            StatusCode::BAD_REQUEST,
            "invalid",
        ),
    ]
}

fn other_mistakes() -> Vec<Mistake> {
    vec![
        (
            "/networks/create",
            json!({ "Name": "host", "Driver": "overlay" }),
            StatusCode::FORBIDDEN,
            "host",
        ),
        (
            "/networks/create",
            json!({ "Name": "x", "Driver": "bridge" }),
            StatusCode::NOT_IMPLEMENTED,
            "bridge",
        ),
        (
            "/swarm/init",
            json!({ "AdvertiseAddr": "192.168.77.11" }),
            StatusCode::SERVICE_UNAVAILABLE,
            "already",
        ),
        (
            "/secrets/create",
            json!({ "Name": "x", "Data": "eA==", "Templating": { "Name": "golang" } }),
            StatusCode::NOT_IMPLEMENTED,
            "Templating",
        ),
        (
            "/secrets/create",
            json!({ "Name": "x", "Data": "hunter2!" }),
            StatusCode::BAD_REQUEST,
            "invalid Data: illegal base64",
        ),
        (
            "/configs/create",
            json!({ "Name": "x", "Data": "" }),
            StatusCode::BAD_REQUEST,
            "config data must be larger than 0",
        ),
        (
            "/containers/create",
            json!({}),
            StatusCode::NOT_IMPLEMENTED,
            "/containers/create",
        ),
        ("/v1.99/info", json!({}), StatusCode::BAD_REQUEST, "too new"),
        (
            "/nothing",
            json!({}),
            StatusCode::NOT_FOUND,
            "page not found",
        ),
    ]
}

/// Text to base64, and where neither may be.
const CANARY: (&str, &str) = ("canary-5e1f", "Y2FuYXJ5LTVlMWY=");

async fn is_shown_nowhere(api: &Api) {
    for path in [
        "/secrets",
        "/secrets/db",
        "/services",
        "/services/whoami",
        "/tasks",
        "/containers/json",
        "/info",
    ] {
        let (_, answer) = api.get(path).await;
        let answer = answer.to_string();
        assert!(
            !answer.contains(CANARY.0) && !answer.contains("Y2FuYXJ5"),
            "{path}: {answer}"
        );
    }
}

#[tokio::test]
async fn a_secret_lives_from_create_to_remove_and_is_never_shown() {
    let api = Api::start();
    let (status, _) = api.get("/secrets").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    api.init().await;
    let body = json!({ "Name": "db", "Labels": { "a": "b" }, "Data": CANARY.1 });
    let (status, created) = api.post("/v1.41/secrets/create", body.clone()).await;
    assert_eq!(status, StatusCode::CREATED, "{created}");
    let (status, again) = api.post("/secrets/create", body).await;
    assert_eq!(
        (status, again["message"].as_str()),
        (StatusCode::CONFLICT, Some("secret db already exists"))
    );
    let (_, secret) = api.get("/secrets/db").await;
    let spec = json!({ "Name": "db", "Labels": { "a": "b" } });
    assert_eq!((&secret["ID"], &secret["Spec"]), (&created["ID"], &spec));
    let filter = "%7B%22name%22:%7B%22db%22:true%7D%7D";
    let (_, list) = api.get(&format!("/secrets?filters={filter}")).await;
    assert_eq!(list, json!([secret]));

    let mut service = whoami();
    let file = json!({ "Name": "db", "UID": "0", "GID": "0", "Mode": 0o444 });
    let used = json!({ "File": file, "SecretID": created["ID"], "SecretName": "db" });
    service["TaskTemplate"]["ContainerSpec"]["Secrets"] = json!([used]);
    let (status, answer) = api.post("/services/create", service).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    let service = api.converged("whoami").await;
    assert_eq!(
        service["Spec"]["TaskTemplate"]["ContainerSpec"]["Secrets"],
        json!([used])
    );
    let (status, answer) = api.send(Method::DELETE, "/secrets/db", Body::empty()).await;
    let words = "secret 'db' is in use by the following service: whoami";
    assert_eq!(
        (status, answer["message"].as_str()),
        (StatusCode::BAD_REQUEST, Some(words))
    );

    let path = format!("/secrets/db/update?version={}", secret["Version"]["Index"]);
    let (status, _) = api
        .post(&path, json!({ "Name": "db", "Labels": null }))
        .await;
    assert_eq!(status, StatusCode::OK);
    let (status, answer) = api.post(&path, json!({ "Name": "db" })).await;
    assert_eq!(
        (status, answer["message"].as_str()),
        (
            StatusCode::INTERNAL_SERVER_ERROR,
            Some("update out of sequence")
        )
    );
    is_shown_nowhere(&api).await;
    api.send(Method::DELETE, "/services/whoami", Body::empty())
        .await;
    let (status, _) = api.send(Method::DELETE, "/secrets/db", Body::empty()).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let (status, answer) = api.get("/secrets/db").await;
    assert_eq!(
        (status, answer["message"].as_str()),
        (StatusCode::NOT_FOUND, Some("secret db not found"))
    );
}

#[tokio::test]
async fn a_config_is_shown_with_its_content_and_changes_its_labels_only() {
    let api = Api::start();
    api.init().await;
    let body = json!({ "Name": "site", "Labels": {}, "Data": CANARY.1 });
    let (status, created) = api.post("/configs/create", body.clone()).await;
    assert_eq!(status, StatusCode::CREATED, "{created}");
    let (_, config) = api
        .get(&format!("/configs/{}", created["ID"].as_str().unwrap()))
        .await;
    assert_eq!(config["Spec"], body);
    let path = format!(
        "/configs/site/update?version={}",
        config["Version"]["Index"]
    );
    let other = json!({ "Name": "site", "Data": "eA==" });
    let (status, answer) = api.post(&path, other).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let message = answer["message"].as_str().unwrap();
    assert!(
        message.contains("only updates to Labels are allowed"),
        "{message}"
    );
    let mut labelled = config["Spec"].clone();
    labelled["Labels"] = json!({ "a": "b" });
    let (status, answer) = api.post(&path, labelled.clone()).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!(api.get("/configs/site").await.1["Spec"], labelled);
    let (status, _) = api
        .send(Method::DELETE, "/configs/site", Body::empty())
        .await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(api.get("/configs").await.1, json!([]));
}

#[tokio::test]
async fn the_largest_config_fits() {
    let api = Api::start();
    api.init().await;
    let data = "AAAA".repeat(1_023_999 / 3);
    let body = json!({ "Name": "big", "Data": data });
    let (status, answer) = api.post("/configs/create", body).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
}

#[tokio::test]
async fn mistakes_are_named_with_dockers_statuses() {
    let api = Api::start();
    api.init().await;
    for (path, body, wanted, word) in mistakes_with_services().into_iter().chain(other_mistakes()) {
        let (status, answer) = api.post(path, body).await;
        assert_eq!(status, wanted, "{path}: {answer}");
        let message = answer["message"].as_str().unwrap();
        assert!(message.contains(word), "{path}: {message}");
        assert_eq!(message.lines().count(), 1, "{path}: {message}");
    }
}

#[tokio::test]
async fn the_probes_of_inspect_find_nothing_cleanly() {
    let api = Api::start();
    api.init().await;
    let paths = [
        "/containers/x/json",
        "/images/x/json",
        "/networks/x",
        "/volumes/x",
        "/services/x",
        "/tasks/x",
        "/nodes/x",
        "/plugins/x/json",
        "/secrets/x",
        "/configs/x",
        "/distribution/unknown/json",
    ];
    for path in paths {
        let (status, answer) = api.get(path).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}: {answer}");
        assert!(
            answer["message"].as_str().unwrap().contains("not found"),
            "{path}: {answer}"
        );
    }
}

#[tokio::test]
async fn tokens_rotate_and_stay_of_the_same_swarm() {
    let api = Api::start();
    api.init().await;
    let (_, before) = api.get("/swarm").await;
    let path = format!(
        "/swarm/update?version={}&rotateWorkerToken=true",
        before["Version"]["Index"]
    );
    let (status, answer) = api.post(&path, before["Spec"].clone()).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let (_, after) = api.get("/swarm").await;
    assert_ne!(
        after["JoinTokens"]["Worker"],
        before["JoinTokens"]["Worker"]
    );
    assert_eq!(
        after["JoinTokens"]["Manager"],
        before["JoinTokens"]["Manager"]
    );
    assert_eq!(after["Spec"], before["Spec"]);
    let (_, info) = api.get("/info").await;
    assert_eq!(info["Swarm"]["Cluster"].get("JoinTokens"), None);
}

#[tokio::test]
async fn a_body_that_is_too_long_is_refused() {
    let api = Api::start();
    let body = vec![b' '; 3 * 1024 * 1024];
    let (status, answer) = api.send(Method::POST, "/swarm/join", body).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(answer["message"].as_str().unwrap().contains("at most"));
}

#[tokio::test]
async fn logs_come_in_dockers_frames() {
    let api = Api::start();
    api.init().await;
    api.post("/services/create", whoami()).await;
    api.converged("whoami").await;
    let (_, list) = api.get("/containers/json").await;
    let id = list[0]["Id"].as_str().unwrap();
    let request = Request::get(format!(
        "/v1.41/containers/{}/logs?stdout=1&stderr=1&tail=2",
        &id[..12]
    ));
    let response = answer(api.0.clone(), request.body(Body::empty()).unwrap()).await;
    assert_eq!(
        response.headers()["content-type"],
        "application/vnd.docker.raw-stream"
    );
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(
        &bytes[..],
        b"\x02\0\0\0\0\0\0\x0aa warning\n\x01\0\0\0\0\0\0\x06GET /\n"
    );
    let (status, _) = api.get(&format!("/containers/{id}/logs")).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever comes, the answer is an error of the client's or «not here», never a panic or a 500.
    #[test]
    fn hostile_requests_get_an_answer(
        path in prop::sample::select(vec![
            "/services/create", "/networks/create", "/swarm/init", "/swarm/join", "/skep/debug",
            "/secrets/create", "/configs/create", "/secrets/x/update?version=1",
            "/services/x/update?version=1", "/nodes/x/update?version=x", "/swarm/update",
        ]),
        body in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let status = runtime.block_on(async {
            Api::start().send(Method::POST, path, body).await.0
        });
        prop_assert!(status.is_client_error() || status == StatusCode::SERVICE_UNAVAILABLE, "{path}: {status}");
    }

    #[test]
    fn hostile_queries_get_an_answer(query in "[ -~]{0,60}") {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let path = format!("/networks?filters={}", query.replace(|c: char| !c.is_ascii_alphanumeric(), "%22"));
        let status = runtime.block_on(async { Api::start().get(&path).await.0 });
        prop_assert!(status == StatusCode::OK || status.is_client_error());
    }
}
