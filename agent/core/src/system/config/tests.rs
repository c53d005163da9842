use proptest::prelude::*;

use super::*;
use crate::wire::token::JoinToken;

fn credentials(pairs: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
    let pairs = pairs.iter();
    pairs
        .map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec()))
        .collect()
}

fn line(cmdline: &str) -> (Config, Vec<Complaint>) {
    parse(cmdline, &BTreeMap::new())
}

fn token() -> String {
    JoinToken::new(b"pem", 7).to_string()
}

const PEM: &str = "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n";
const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMA==\n-----END PRIVATE KEY-----\n";

#[test]
fn a_worker_of_the_lab() {
    let (config, complaints) = line(&format!(
        "console=ttyS0 skep.name=swarm-worker1 skep.advertise=192.168.77.21 skep.join={}@192.168.77.11,m2.example:12377 \
         skep.registry.mirror=http://192.168.76.2:5000/ skep.registry.insecure=192.168.76.2:5000 skep.api.san=lab,10.0.0.1 ip=dhcp quiet\n",
        token()
    ));
    assert_eq!(complaints, []);
    assert_eq!(config.name.as_deref(), Some("swarm-worker1"));
    assert_eq!(config.advertise, Some(IpAddr::from([192, 168, 77, 21])));
    assert_eq!(config.registry_mirrors, ["http://192.168.76.2:5000"]);
    assert_eq!(config.insecure_registries, ["192.168.76.2:5000"]);
    assert_eq!(config.api_names, ["lab", "10.0.0.1"]);
    let Start::Join { managers, .. } = &config.start else {
        panic!("{config:?}");
    };
    assert_eq!(managers[..], ["192.168.77.11:2377", "m2.example:12377"]);
}

#[test]
fn the_first_manager_of_the_lab() {
    let tokens = serde_json::json!({
        "worker": JoinToken::new(b"pem", 1).to_string(),
        "manager": JoinToken::new(b"pem", 2).to_string(),
    });
    let given = credentials(&[
        ("skep.ca", &format!("{PEM}{KEY}")),
        ("skep.tokens", &tokens.to_string()),
        ("skep.operator-ca", PEM),
        ("network.dns", "1.1.1.1"),
    ]);
    let (config, complaints) = parse("skep.swarm=init", &given);
    assert_eq!(complaints, []);
    assert_eq!(config.start, Start::Init);
    assert!(config.ca.is_some() && config.tokens.is_some() && config.operator_ca.is_some());
}

#[test]
fn a_credential_goes_before_the_command_line() {
    let given = credentials(&[("skep.name", "b\n")]);
    let (config, complaints) = parse("skep.name=a", &given);
    assert_eq!((config.name.as_deref(), complaints), (Some("b"), vec![]));
}

#[test]
fn each_complaint_names_its_key_and_the_rest_goes_on() {
    let join = format!("skep.join={}", token());
    for (bad, key, says) in [
        ("skep.colour=blue", "skep.colour", "unknown key"),
        ("skep.name", "skep.name", "no value"),
        ("skep.name=", "skep.name", "no value"),
        ("skep.name=-x", "skep.name", "\"-x\" is not a host name"),
        ("skep.swarm=start", "skep.swarm", "give init"),
        (
            "skep.advertise=eth0",
            "skep.advertise",
            "give an IP address",
        ),
        (
            "skep.advertise=0.0.0.0",
            "skep.advertise",
            "give an IP address",
        ),
        ("skep.join=nonsense", "skep.join", "it has no @"),
        (
            "skep.join=SWMTKN-1-x-y@10.0.0.1",
            "skep.join",
            "invalid join token",
        ),
        (&format!("{join}@"), "skep.join", "empty item"),
        (
            &format!("{join}@10.0.0.1:0"),
            "skep.join",
            "\"10.0.0.1:0\" is not an address",
        ),
        (
            &format!("{join}@10.0.0.300"),
            "skep.join",
            "\"10.0.0.300\" is not an address",
        ),
        (
            "skep.registry.mirror=ftp://x",
            "skep.registry.mirror",
            "not a registry",
        ),
        (
            "skep.registry.insecure=a:b",
            "skep.registry.insecure",
            "not a registry",
        ),
        ("skep.api.san=!!", "skep.api.san", "neither a host name nor"),
        ("skep.ca=x", "skep.ca", "only be given as a credential"),
        (
            &format!("skep.swarm=init {join}@10.0.0.1"),
            "skep.swarm",
            "exclude each other",
        ),
    ] {
        let (config, complaints) = line(&format!("{bad} skep.registry.mirror=good:5000"));
        let complaint = complaints
            .first()
            .unwrap_or_else(|| panic!("{bad} was taken"));
        assert_eq!(complaint.key, key, "{complaint}");
        assert!(complaint.to_string().contains(says), "{complaint}");
        assert!(
            !complaint.to_string().contains(&token()),
            "a secret in {complaint}"
        );
        assert_eq!(config.registry_mirrors, ["good:5000"]);
        assert_eq!(config.start, Start::Wait);
    }
}

#[test]
fn credentials_are_checked_too() {
    for (key, value, says) in [
        ("skep.ca", PEM, "private key"),
        ("skep.tokens", "{}", "not JSON with the texts"),
        (
            "skep.tokens",
            r#"{"worker": "a", "manager": "b"}"#,
            "worker: invalid join token",
        ),
        ("skep.tokens", "[", "not JSON"),
        ("skep.operator-ca", KEY, "not PEM of a certificate"),
        (
            "skep.operator-ca",
            "-----BEGIN CERTIFICATE-----PRIVATE KEY-----",
            "no node may have",
        ),
        ("skep.secret", "x", "unknown key"),
    ] {
        let (_, complaints) = parse("skep.swarm=init", &credentials(&[(key, value)]));
        let said = complaints
            .iter()
            .map(ToString::to_string)
            .collect::<String>();
        assert!(
            said.contains(says) && said.contains("(credential)"),
            "{key}: {said}"
        );
    }
    let (config, complaints) = parse("", &credentials(&[("skep.ca", &format!("{PEM}{KEY}"))]));
    assert_eq!((config.ca, complaints.len()), (None, 1));
}

#[test]
fn quotes_and_repetition() {
    let (config, complaints) = line("skep.name=\"a\" skep.name=b skep.api.san=x skep.api.san=y,x");
    assert_eq!(config.name.as_deref(), Some("b"));
    assert_eq!(config.api_names, ["x", "y"]);
    assert_eq!(complaints.len(), 1);
    assert!(complaints[0].why.contains("more than once"));
    let (_, complaints) = line("skep.name=\"a b\" root=/dev/sda");
    assert_eq!(complaints.len(), 1);
}

#[test]
fn addresses_take_their_port() {
    let managers =
        |addresses: &str| match line(&format!("skep.join={}@{addresses}", token())).0.start {
            Start::Join { managers, .. } => managers,
            Start::Wait | Start::Init => Vec::new(),
        };
    assert_eq!(managers("fd00::1"), ["[fd00::1]:2377"]);
    assert_eq!(
        managers("[fd00::1]:77,[fd00::2]"),
        ["[fd00::1]:77", "[fd00::2]:2377"]
    );
    assert_eq!(managers("[fd00::1"), [""; 0]);
    assert_eq!(managers("a:99999"), [""; 0]);
}

#[test]
fn secrets_do_not_show() {
    let (config, _) = line(&format!("skep.join={}@10.0.0.1", token()));
    assert!(!format!("{config:?}").contains("SWMTKN"), "{config:?}");
}

proptest! {
    #[test]
    fn any_command_line_is_read(text in "\\PC{0,200}") {
        let _ = line(&text);
    }

    #[test]
    fn any_value_of_any_key_is_taken_or_named(key in 0..KEYS.len(), value in "\\PC{1,60}") {
        let name = KEYS[key].name;
        let given = credentials(&[(name, &value), ("skep.name", "kept")]);
        let (config, complaints) = parse("", &given);
        prop_assert!(complaints.iter().all(|it| it.key == name || it.key == "skep.tokens"));
        prop_assert_eq!(config.name.as_deref(), Some("kept"));
    }

    #[test]
    fn any_bytes_are_taken_or_named(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let given = BTreeMap::from([("skep.join".to_owned(), bytes)]);
        let (_, complaints) = parse("", &given);
        prop_assert!(complaints.len() <= 1);
    }
}
