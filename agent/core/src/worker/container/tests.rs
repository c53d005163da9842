//! Cases of [`super`]: what Docker makes of a specification.

use std::time::Duration;

use oci_spec::runtime::Capability;
use serde_json::json;

use super::*;
use crate::api::{Mount as ApiMount, MountType};

fn id() -> ContainerId {
    ContainerId::from_entropy([0xab; 32])
}

fn image() -> ImageConfig {
    ImageConfig {
        user: "www".into(),
        env: vec!["A=image".into(), "PATH=/image".into()],
        entrypoint: vec!["/entry".into()],
        cmd: vec!["default".into()],
        working_dir: "/srv/../app".into(),
        stop_signal: "SIGQUIT".into(),
        ..ImageConfig::default()
    }
}

fn plan_of(spec: ContainerSpec, image: &ImageConfig) -> Result<ContainerPlan, ApiError> {
    let layout = Layout::default();
    let around = Surroundings {
        id: id(),
        now: Timestamp(5),
        layout: &layout,
        image_id: "sha256:x",
        image,
        network: Some(Path::new("/run/skep/netns/abababababab")),
        addresses: &["10.0.1.3".parse().unwrap()],
    };
    plan(&spec, None, None, &around)
}

fn process_of(spec: ContainerSpec, image: &ImageConfig) -> Process {
    plan_of(spec, image)
        .unwrap()
        .spec
        .process()
        .clone()
        .unwrap()
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn entrypoint_and_command_merge_as_docker_merges_them() {
    let cases = [
        ("", "", "/entry default"),
        ("", "other", "/entry other"),
        ("/mine", "", "/mine"),
        ("/mine", "x y", "/mine x y"),
    ];
    for (command, args, expected) in cases {
        let spec = ContainerSpec {
            command: words(command),
            args: words(args),
            ..ContainerSpec::default()
        };
        let args = process_of(spec, &image()).args().clone().unwrap();
        assert_eq!(args, words(expected), "{command:?} {args:?}");
    }
    let error = plan_of(ContainerSpec::default(), &ImageConfig::default()).unwrap_err();
    assert!(
        error.to_string().contains("no command specified"),
        "{error}"
    );
}

#[test]
fn the_environment_is_the_images_with_the_services_over_it() {
    let spec = ContainerSpec {
        env: vec!["A=service".into(), "B=".into(), "HOSTNAME".into()],
        ..ContainerSpec::default()
    };
    let env = process_of(spec, &image()).env().clone().unwrap();
    assert_eq!(env, ["PATH=/image", "A=service", "B="]);
    let env = process_of(
        ContainerSpec {
            tty: true,
            ..ContainerSpec::default()
        },
        &image(),
    )
    .env()
    .clone()
    .unwrap();
    assert_eq!(
        env,
        [
            "PATH=/image",
            "HOSTNAME=abababababab",
            "TERM=xterm",
            "A=image"
        ]
    );
}

#[test]
fn the_image_says_what_the_service_does_not() {
    let plan = plan_of(ContainerSpec::default(), &image()).unwrap();
    assert_eq!(plan.user, "www");
    assert_eq!(plan.stop_signal, 3);
    assert_eq!(plan.stop_grace, 10_000_000_000);
    assert_eq!(plan.spec.hostname().as_deref(), Some("abababababab"));
    assert_eq!(
        plan.spec.process().as_ref().unwrap().cwd(),
        Path::new("/app")
    );
    assert!(
        plan.files
            .hosts
            .unwrap()
            .ends_with("ff02::2\tip6-allrouters\n10.0.1.3\tabababababab\n")
    );
    assert_eq!(
        plan.files.resolv_conf.unwrap(),
        "nameserver 127.0.0.11\noptions ndots:0\n"
    );

    let spec = ContainerSpec {
        user: "7:8".into(),
        hostname: "me".into(),
        dir: "/else".into(),
        stop_signal: "USR1".into(),
        stop_grace_period: Some(Duration::from_millis(1)),
        hosts: vec!["1.2.3.4 a b".into()],
        ..ContainerSpec::default()
    };
    let plan = plan_of(spec, &image()).unwrap();
    assert_eq!(
        (plan.user.as_str(), plan.stop_signal, plan.stop_grace),
        ("7:8", 10, 1_000_000)
    );
    assert_eq!(plan.files.hostname.unwrap(), "me\n");
    assert!(plan.files.hosts.unwrap().contains("1.2.3.4\ta b\n"));
}

#[test]
fn isolation_is_dockers_default() {
    let plan = plan_of(ContainerSpec::default(), &image()).unwrap();
    let linux = plan.spec.linux().clone().unwrap();
    let kinds: Vec<_> = linux
        .namespaces()
        .iter()
        .flatten()
        .map(|ns| ns.typ())
        .collect();
    assert_eq!(kinds.len(), 6);
    assert!(!kinds.contains(&LinuxNamespaceType::User));
    assert!(linux.seccomp().is_some());
    assert!(
        linux
            .masked_paths()
            .iter()
            .flatten()
            .any(|path| path == "/proc/cmdline")
    );
    assert_eq!(
        linux.cgroups_path().as_deref(),
        Some(Path::new(&format!(
            "/skep.slice/skep-containers.service/ctr-{}",
            id()
        )))
    );
    let process = plan.spec.process().clone().unwrap();
    assert_eq!(process.no_new_privileges(), None);
    let capabilities = process.capabilities().clone().unwrap();
    assert_eq!(capabilities.effective().as_ref().unwrap().len(), 14);
    assert_eq!(capabilities.inheritable(), &None);
    assert_eq!(capabilities.ambient(), &None);
}

#[test]
fn capabilities_are_added_and_dropped_in_dockers_order() {
    let of = |add: &[&str], drop: &[&str]| {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        limits::capabilities(&ContainerSpec {
            capability_add: owned(add),
            capability_drop: owned(drop),
            ..ContainerSpec::default()
        })
    };
    assert_eq!(of(&[], &[]).unwrap().len(), 14);
    assert_eq!(of(&["NET_ADMIN"], &["CAP_MKNOD"]).unwrap().len(), 14);
    assert_eq!(
        of(&["net_raw"], &["ALL"]).unwrap(),
        [Capability::NetRaw].into()
    );
    assert_eq!(of(&["ALL"], &["SYS_ADMIN"]).unwrap().len(), 40);
    assert!(
        of(&["NONSENSE"], &[])
            .unwrap_err()
            .to_string()
            .contains("NONSENSE")
    );
}

fn mount(kind: MountType, source: &str, target: &str) -> ApiMount {
    ApiMount {
        kind,
        source: source.into(),
        target: target.into(),
        ..ApiMount::default()
    }
}

fn with_mounts(mounts: Vec<ApiMount>) -> Result<ContainerPlan, ApiError> {
    let mut image = image();
    image.volumes.insert("/data".into(), json!({}));
    plan_of(
        ContainerSpec {
            mounts,
            ..ContainerSpec::default()
        },
        &image,
    )
}

#[test]
fn mounts_come_parents_first_and_the_users_win() {
    let plan = with_mounts(vec![
        mount(MountType::Tmpfs, "", "/dev/shm"),
        mount(MountType::Bind, "/host/x", "/a/b/../c"),
        mount(MountType::Volume, "vol", "/a"),
    ])
    .unwrap();
    let all = plan.spec.mounts().clone().unwrap();
    let places = destinations(&all);
    let at = |path: &str| places.iter().position(|place| place == path).unwrap();
    assert!(at("/a") < at("/a/c"));
    assert!(at("/dev") < at("/dev/shm"));
    assert_eq!(
        places.iter().filter(|place| *place == "/dev/shm").count(),
        1
    );
    assert!(
        all[at("/dev/shm")]
            .options()
            .iter()
            .flatten()
            .any(|option| option == "mode=1777")
    );
    assert_eq!(
        all[at("/a")].source().as_deref(),
        Some(Path::new("/var/lib/skep/volumes/vol/_data"))
    );
    let names: Vec<_> = plan
        .volumes
        .iter()
        .map(|volume| (volume.anonymous, volume.copy))
        .collect();
    assert_eq!(names, [(false, true), (true, true)]);
    assert_eq!(plan.volumes[1].name.len(), 64);
}

#[test]
fn mounts_that_cannot_be_are_refused_by_name() {
    let cases = [
        (mount(MountType::Bind, "relative", "/a"), "Mounts[0].Source"),
        (mount(MountType::Bind, "/x", "a"), "Mounts[0].Target"),
        (mount(MountType::Bind, "/x", "/a/.."), "Mounts[0].Target"),
        (mount(MountType::Volume, "../etc", "/a"), "Mounts[0].Source"),
        (mount(MountType::Volume, "a/b", "/a"), "Mounts[0].Source"),
        (mount(MountType::Cluster, "x", "/a"), "Mounts[0].Type"),
    ];
    for (mount, field) in cases {
        let error = with_mounts(vec![mount]).unwrap_err().to_string();
        assert!(error.contains(field), "{error}");
    }
    let mut driver = mount(MountType::Volume, "v", "/a");
    driver.volume_options = Some(json!({"DriverConfig": {"Name": "nfs"}}));
    let error = with_mounts(vec![driver]).unwrap_err().to_string();
    assert!(error.contains("VolumeOptions.DriverConfig"), "{error}");
    let twice = vec![
        mount(MountType::Tmpfs, "", "/a"),
        mount(MountType::Tmpfs, "", "/a/"),
    ];
    assert!(
        with_mounts(twice)
            .unwrap_err()
            .to_string()
            .contains("duplicate mount point: /a")
    );
}

#[test]
fn limits_become_what_the_kernel_counts() {
    let limits = Resources {
        nano_cpus: 500_000_000,
        memory_bytes: 64 << 20,
        pids: 10,
        generic_resources: Vec::new(),
    };
    let resources = limits::resources(Some(&limits)).unwrap();
    let cpu = resources.cpu().clone().unwrap();
    assert_eq!((cpu.quota(), cpu.period()), (Some(50_000), Some(100_000)));
    assert_eq!(resources.memory().as_ref().unwrap().limit(), Some(64 << 20));
    assert_eq!(resources.pids().as_ref().unwrap().limit(), 10);
    let negative = Resources {
        memory_bytes: -1,
        ..Resources::default()
    };
    assert!(limits::resources(Some(&negative)).is_err());
}

#[test]
fn signals_have_names_and_numbers() {
    let cases = [
        ("", 15),
        ("SIGTERM", 15),
        ("int", 2),
        ("9", 9),
        ("SIGRTMIN+3", 37),
        ("RTMAX-1", 63),
        ("RTMIN", 34),
    ];
    for (text, number) in cases {
        assert_eq!(stop_signal(text).unwrap(), number, "{text}");
    }
    for text in ["0", "65", "SIGNOTHING", "RTMIN+99", "RTMIN+x", "-1"] {
        assert!(stop_signal(text).is_err(), "{text}");
    }
}

#[test]
fn logs_are_bounded_and_other_drivers_refused() {
    assert_eq!(log_limits(None).unwrap(), LogLimits::default());
    let driver = |name: &str, options: &[(&str, &str)]| LogDriver {
        name: name.into(),
        options: options
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
    };
    let limits = log_limits(Some(&driver(
        "json-file",
        &[("max-size", "1m"), ("max-file", "5")],
    )));
    assert_eq!(
        limits.unwrap(),
        LogLimits {
            max_size: 1 << 20,
            max_files: 5
        }
    );
    assert_eq!(log_limits(Some(&driver("none", &[]))).unwrap().max_files, 0);
    assert!(log_limits(Some(&driver("syslog", &[]))).is_err());
    assert!(log_limits(Some(&driver("", &[("max-size", "-1")]))).is_err());
    assert!(log_limits(Some(&driver("", &[("labels", "x")]))).is_err());
}

fn secret(name: &str) -> serde_json::Value {
    json!({"SecretID": "0000000000000000000000007", "SecretName": "db",
        "File": {"Name": name, "UID": "33", "GID": "34", "Mode": 0o400}})
}

#[test]
fn secrets_and_configs_are_bound_read_only_from_the_containers_own_memory() {
    let spec = json!({
        "Args": ["x"],
        "Secrets": [secret("db")],
        "Configs": [{"ConfigID": "0000000000000000000000008", "ConfigName": "hosts", "File": {"Name": "/etc/hosts"}}],
    });
    let plan = plan_of(serde_json::from_value(spec).unwrap(), &image()).unwrap();
    let provided: Vec<_> = plan
        .provided
        .iter()
        .map(|it| (it.name.as_str(), it.uid, it.gid, it.mode))
        .collect();
    assert_eq!(provided, [("0", 33, 34, 0o400), ("1", 0, 0, 0o444)]);
    let mounts = plan.spec.mounts().clone().unwrap();
    let dir = format!("/run/skep/containers/{}/provided", id());
    for (target, name) in [("/run/secrets/db", "0"), ("/etc/hosts", "1")] {
        let mut there = mounts
            .iter()
            .filter(|it| it.destination() == Path::new(target));
        let mount = there.next().unwrap();
        assert!(there.next().is_none(), "ours makes way: {target}");
        let source = Path::new(&dir).join(name);
        assert_eq!(mount.source().as_ref().unwrap(), &source);
        let options = mount.options().clone().unwrap();
        for option in ["bind", "ro", "nosuid", "nodev", "noexec"] {
            assert!(options.iter().any(|it| it == option), "{option}");
        }
    }
}

#[test]
fn a_target_that_no_manager_lets_through_is_refused_here_too() {
    for secrets in [
        json!([secret("../../etc/passwd")]),
        json!([secret("/proc/1/mem")]),
        json!([secret("a"), secret("a")]),
        json!([{"SecretID": "x", "SecretName": "db", "File": {"Name": "a"}}]),
        json!([{"SecretID": "0000000000000000000000007", "File": {"Name": "a", "UID": "root"}}]),
    ] {
        let spec = serde_json::from_value(json!({"Args": ["x"], "Secrets": secrets})).unwrap();
        let error = plan_of(spec, &image()).unwrap_err().to_string();
        assert!(error.contains("ContainerSpec.Secrets"), "{error}");
    }
}

#[test]
fn what_is_not_done_is_refused() {
    let specs = [
        ("Init", json!({"Init": true})),
        (
            "Healthcheck",
            json!({"Healthcheck": {"Test": ["CMD", "x"]}}),
        ),
        (
            "Hostname (template)",
            json!({"Hostname": "{{.Node.Hostname}}"}),
        ),
        ("Env (template)", json!({"Env": ["SLOT={{.Task.Slot}}"]})),
        ("Secrets", json!({"Secrets": [{}]})),
        ("Configs (Runtime)", json!({"Configs": [{"Runtime": {}}]})),
        ("Sysctls", json!({"Sysctls": {"kernel.hostname": "x"}})),
        (
            "Ulimits",
            json!({"Ulimits": [{"Name": "nonsense", "Hard": 1, "Soft": 1}]}),
        ),
        ("Hosts", json!({"Hosts": ["name 1.2.3.4"]})),
    ];
    for (field, spec) in specs {
        let spec = serde_json::from_value(spec).unwrap();
        let error = plan_of(spec, &image()).unwrap_err().to_string();
        assert!(error.contains(&format!("ContainerSpec.{field}")), "{error}");
    }
}

#[test]
fn an_operators_container_is_the_node_with_another_root() {
    let layout = Layout::default();
    let image = image();
    let around = Surroundings {
        id: id(),
        now: Timestamp(0),
        layout: &layout,
        image_id: "sha256:x",
        image: &image,
        network: None,
        addresses: &[],
    };
    let request = DebugRequest {
        image: "tools".into(),
        command: words("sh -c id"),
        ..DebugRequest::default()
    };
    let plan = debug(&request, &around).unwrap();
    let process = plan.spec.process().clone().unwrap();
    assert_eq!(process.args().clone().unwrap(), words("sh -c id"));
    assert_eq!(
        process
            .capabilities()
            .clone()
            .unwrap()
            .bounding()
            .clone()
            .unwrap()
            .len(),
        41
    );
    let linux = plan.spec.linux().clone().unwrap();
    let namespaces: Vec<_> = linux
        .namespaces()
        .iter()
        .flatten()
        .map(|ns| ns.typ())
        .collect();
    assert_eq!(namespaces, [LinuxNamespaceType::Mount]);
    assert!(linux.seccomp().is_none() && linux.masked_paths().is_none());
    let places = destinations(plan.spec.mounts().as_ref().unwrap());
    for place in ["/sys", "/run/skep", "/run/dbus"] {
        assert_eq!(
            places.iter().filter(|there| *there == place).count(),
            1,
            "{place}"
        );
    }
    assert_eq!(plan.log.max_files, 0);
    assert_eq!(plan.user, "0:0");
}
