//! What a container is and may do.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use skep_core::worker::container::DebugRequest;
use skep_core::worker::container::exec::ExecRequest;
use skep_core::worker::dependencies::Contents;
use skep_host::container::{Limits, LogQuery, Phase, Session, Stream};
use tokio::io::AsyncWriteExt;

use crate::{Case, World, case, set_args, tool};

pub(crate) const CASES: &[Case] = &[
    case!(exit_codes_arrive),
    case!(output_goes_to_a_json_file),
    case!(only_three_descriptors_come_in),
    case!(devices_are_denied),
    case!(paths_are_masked),
    case!(capabilities_and_signals_are_dockers),
    case!(system_calls_are_filtered),
    case!(the_user_is_looked_up),
    case!(files_and_volumes_are_there),
    case!(stop_is_gentle_then_not),
    case!(exec_runs_another_process),
    case!(exec_that_fails_leaves_nothing),
    case!(exec_on_a_terminal),
    case!(attach_streams_without_loss),
    case!(a_terminal_is_a_terminal),
    case!(limits_hold),
    case!(failures_name_the_cause_and_leave_nothing),
    case!(links_for_mount_points_lead_nowhere),
    case!(an_operators_container_sees_the_node),
    case!(logs_are_rotated_and_followed),
    case!(a_shim_is_small),
];

async fn exit_codes_arrive(world: &World) {
    let (exit, _) = world.run(&world.plan(&["exit", "3"])).await;
    assert_eq!((exit.code, exit.signal), (3, None));
    assert!(exit.started_at > 0 && exit.finished_at >= exit.started_at);
    let (exit, _) = world.run(&world.plan(&["die"])).await;
    // Process 1 does not hear its own SIGABRT, so that abort() ends in a fault.
    assert_eq!((exit.code, exit.signal), (139, Some(11)));
    // The image's own command.
    let (_, log) = world
        .run(&world.task_plan(json!({"Image": "test"}), json!({})))
        .await;
    assert_eq!(log, "hello\n");
}

async fn output_goes_to_a_json_file(world: &World) {
    let plan = world.plan(&["both"]);
    world.create(&plan).await;
    world.containers.start(&plan.id).await.unwrap();
    world.containers.wait(&plan.id).await.unwrap();
    let path = world
        .dirs
        .state
        .join(plan.id.as_str())
        .join(format!("{}-json.log", plan.id));
    let text = std::fs::read_to_string(path).unwrap();
    let mut seen = Vec::new();
    for line in text.lines() {
        let entry: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(entry["time"].as_str().unwrap().ends_with('Z'));
        seen.push((
            entry["stream"].as_str().unwrap().to_owned(),
            entry["log"].as_str().unwrap().to_owned(),
        ));
    }
    seen.sort();
    let expected = [("stderr", "to stderr\n"), ("stdout", "to stdout\n")];
    assert_eq!(
        seen,
        expected.map(|(stream, line)| (stream.to_owned(), line.to_owned()))
    );
    world.containers.delete(&plan.id).await.unwrap();
}

async fn only_three_descriptors_come_in(world: &World) {
    assert_eq!(world.says(&["fds"]).await, "0 1 2\n");
}

/// The first disk of this machine, or the number of one.
fn a_disk() -> (String, String) {
    let partitions = std::fs::read_to_string("/proc/partitions").unwrap_or_default();
    let first = partitions.lines().nth(2).unwrap_or("7 0").to_owned();
    let mut words = first.split_whitespace().map(str::to_owned);
    (words.next().unwrap(), words.next().unwrap())
}

/// What opening a device says outside of any container.
fn node_opens(kind: &str, major: &str, minor: &str) -> i32 {
    let path = std::env::temp_dir().join(format!("skep-node-{}", std::process::id()));
    let name = path.to_str().unwrap();
    tool("mknod", &[name, kind, major, minor]);
    let opened =
        std::fs::File::open(&path).map_or_else(|error| error.raw_os_error().unwrap(), |_| 0);
    std::fs::remove_file(&path).unwrap();
    opened
}

async fn devices_are_denied(world: &World) {
    let (major, minor) = a_disk();
    let said = world.says(&["device", "b", &major, &minor]).await;
    assert_eq!(said, format!("mknod 0\nopen {}\n", libc::EPERM));
    if std::env::var("SKEP_TEST_KERNEL").as_deref() == Ok("image") {
        // It is the container's rules that say no: the node itself may.
        assert_ne!(node_opens("c", "1", "11"), libc::EPERM);
        let said = world.says(&["device", "c", "1", "11"]).await;
        assert!(said.ends_with(&format!("open {}\n", libc::EPERM)), "{said}");
    }
    // Kernel memory, and a device that is allowed.
    let said = world.says(&["device", "c", "1", "1"]).await;
    assert!(said.ends_with(&format!("open {}\n", libc::EPERM)), "{said}");
    assert_eq!(
        world.says(&["device", "c", "1", "3"]).await,
        "mknod 0\nopen 0\n"
    );
}

async fn paths_are_masked(world: &World) {
    let said = world
        .says(&[
            "look",
            "/proc/cmdline",
            "/proc/kcore",
            "/proc/keys",
            "/sys/firmware",
            "/proc/acpi",
        ])
        .await;
    for line in said.lines() {
        let hidden = [" file \"\"", " directory 0", " error 2"]
            .iter()
            .any(|end| line.ends_with(end));
        assert!(hidden, "{line}");
    }
    assert!(said.starts_with("/proc/cmdline file \"\"\n"), "{said}");
    let said = world
        .says(&["write", "/proc/sys/kernel/domainname", "x"])
        .await;
    assert!(said.contains("Read-only file system"), "{said}");
    let said = world
        .says(&["write", "/sys/fs/cgroup/cgroup.procs", "1"])
        .await;
    assert!(said.contains("Read-only file system"), "{said}");
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}"))
        .trim()
}

async fn capabilities_and_signals_are_dockers(world: &World) {
    let status = world.says(&["status"]).await;
    // The well-known value of Docker's fourteen.
    for name in ["CapEff", "CapPrm", "CapBnd"] {
        assert_eq!(field(&status, name), "00000000a80425fb", "{name}");
    }
    for name in ["CapInh", "CapAmb", "SigBlk", "SigIgn"] {
        // Rust's runtime in the probe ignores SIGPIPE (bit 12).
        assert!(
            ["0000000000000000", "0000000000001000"].contains(&field(&status, name)),
            "{name} {}",
            field(&status, name)
        );
    }
    assert_eq!(field(&status, "NoNewPrivs"), "0");
    assert_eq!(field(&status, "Seccomp"), "2");
    assert_eq!(field(&status, "NSpid").split_whitespace().last(), Some("1"));
}

async fn system_calls_are_filtered(world: &World) {
    let said = world.says(&["calls"]).await;
    let expected =
        "fork true\nthread true\nunshare 1\nkeyctl 1\nclone3 38\nvsock 1\nclone-newuts 1\n";
    assert_eq!(said, expected);
}

async fn the_user_is_looked_up(world: &World) {
    let spec = json!({"Image": "test", "User": "www", "Dir": "/made/for/it", "Args": ["whoami"], "Env": ["A=b"], "Groups": ["77"]});
    let plan = world.task_plan(spec, json!({}));
    let (_, said) = world.run(&plan).await;
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], "33 34 [4, 77]");
    assert_eq!(lines[1], "/made/for/it");
    assert_eq!(lines[2], plan.id.short());
    let env = format!(
        "A=b,FROM=image,HOME=/var/www,HOSTNAME={},PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        plan.id.short()
    );
    assert_eq!(lines[3], env);
    let status = world.task_plan(
        json!({"Image": "test", "User": "1000:1000", "Args": ["status"]}),
        json!({}),
    );
    let (_, status) = world.run(&status).await;
    assert_eq!(field(&status, "CapEff"), "0000000000000000");
}

async fn files_and_volumes_are_there(world: &World) {
    let id_of = |path: &str, said: &str| {
        let line = said
            .lines()
            .find_map(|line| line.strip_prefix(path))
            .map(str::to_owned);
        line.unwrap_or_else(|| panic!("{path} in {said}"))
    };
    let paths = [
        "look",
        "/etc/hostname",
        "/etc/hosts",
        "/etc/resolv.conf",
        "/etc/second",
        "/data/from-image",
        "/tmpfs",
    ];
    let spec = json!({
        "Image": "test", "Args": paths, "Hosts": ["9.9.9.9 nine"],
        "Mounts": [{"Type": "tmpfs", "Target": "/tmpfs"}, {"Type": "volume", "Source": "kept", "Target": "/vol"}],
    });
    let plan = world.task_plan(spec, json!({}));
    let (exit, said) = world.run(&plan).await;
    assert_eq!(exit.code, 0, "{said}");
    assert_eq!(
        id_of("/etc/hostname ", &said),
        format!("file \"{}\\n\"", plan.id.short())
    );
    assert!(id_of("/etc/hosts ", &said).contains("9.9.9.9\\tnine\\n"));
    assert_eq!(
        id_of("/etc/resolv.conf ", &said),
        "file \"nameserver 127.0.0.11\\noptions ndots:0\\n\""
    );
    assert_eq!(id_of("/etc/second ", &said), "file \"layer\"");
    assert_eq!(id_of("/data/from-image ", &said), "file \"image content\"");
    assert_eq!(id_of("/tmpfs ", &said), "directory 0");
    // The volume with a name stays, and keeps what is written; the one without has gone with its container.
    let write = json!({"Image": "test", "Args": ["write", "/vol/x", "kept"], "Mounts": [{"Type": "volume", "Source": "kept", "Target": "/vol"}]});
    world.run(&world.task_plan(write, json!({}))).await;
    assert_eq!(
        std::fs::read_to_string(world.dirs.volumes.join("kept/_data/x")).unwrap(),
        "kept"
    );
    assert_eq!(std::fs::read_dir(&world.dirs.volumes).unwrap().count(), 1);
    // Nothing of the image can be changed in a read-only root, and nothing a container writes reaches the image.
    let read_only =
        json!({"Image": "test", "ReadOnly": true, "Args": ["write", "/etc/second", "x"]});
    let (_, said) = world.run(&world.task_plan(read_only, json!({}))).await;
    assert!(said.contains("Read-only file system"), "{said}");
    world.says(&["write", "/etc/second", "changed"]).await;
    assert_eq!(
        world.says(&["look", "/etc/second"]).await,
        "/etc/second file \"layer\"\n"
    );
}

async fn stop_is_gentle_then_not(world: &World) {
    let plan = world.plan(&["wait"]);
    world.create(&plan).await;
    world.containers.start(&plan.id).await.unwrap();
    world.until_log(&plan.id, "ready").await;
    let status = world.containers.status(&plan.id).await.unwrap().unwrap();
    assert_eq!(status.phase, Phase::Running);
    let exit = world.containers.stop(&plan.id, None, None).await.unwrap();
    assert_eq!(exit.code, 7);
    assert_eq!(world.log(&plan.id).await, "ready\nbye\n");
    // Twice is as good as once, and a signal now does nothing.
    assert_eq!(world.containers.wait(&plan.id).await.unwrap(), exit);
    world.containers.signal(&plan.id, 9).await.unwrap();
    world.containers.delete(&plan.id).await.unwrap();
    world.containers.delete(&plan.id).await.unwrap();
    assert!(world.containers.status(&plan.id).await.unwrap().is_none());

    let mut plan = world.plan(&["wait"]);
    // Process 1 of a namespace does not hear a signal that it has no handler for.
    plan.stop_signal = libc::SIGUSR1;
    world.create(&plan).await;
    world.containers.start(&plan.id).await.unwrap();
    world.until_log(&plan.id, "ready").await;
    let grace = Some(Duration::from_millis(300));
    let exit = world.containers.stop(&plan.id, None, grace).await.unwrap();
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    world.containers.delete(&plan.id).await.unwrap();

    // One that was never started.
    let plan = world.plan(&["wait"]);
    world.create(&plan).await;
    let exit = world.containers.stop(&plan.id, None, None).await.unwrap();
    assert_eq!((exit.code, exit.started_at), (137, 0));
    world.containers.delete(&plan.id).await.unwrap();
}

/// All output of a session, and its exit code.
async fn drain(mut session: Session) -> (i32, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    while let Some((stream, data)) = session.output.recv().await {
        match stream {
            Stream::Stdout => out.extend_from_slice(&data),
            Stream::Stderr => err.extend_from_slice(&data),
        }
    }
    let exit = session
        .exit
        .await
        .unwrap_or_else(|error| panic!("{}", error.chain()));
    (
        exit.code,
        String::from_utf8(out).unwrap(),
        String::from_utf8(err).unwrap(),
    )
}

fn exec(words: &[&str]) -> ExecRequest {
    let args = ["/probe"]
        .iter()
        .chain(words)
        .map(|word| (*word).to_owned());
    ExecRequest {
        args: args.collect(),
        ..ExecRequest::default()
    }
}

async fn running(world: &World) -> skep_core::worker::container::plan::ContainerId {
    let plan = world.plan(&["wait"]);
    world.create(&plan).await;
    world.containers.start(&plan.id).await.unwrap();
    world.until_log(&plan.id, "ready").await;
    plan.id
}

async fn exec_runs_another_process(world: &World) {
    let id = running(world).await;
    let run = async |request| {
        drain(
            world
                .containers
                .exec(&id, request)
                .await
                .unwrap_or_else(|error| panic!("{}", error.chain())),
        )
        .await
    };
    assert_eq!(run(exec(&["exit", "5"])).await.0, 5);
    let (_, out, err) = run(exec(&["both"])).await;
    assert_eq!((out.as_str(), err.as_str()), ("to stdout\n", "to stderr\n"));
    assert_eq!(run(exec(&["fds"])).await.1, "0 1 2\n");
    let (_, status, _) = run(exec(&["status"])).await;
    assert_eq!(field(&status, "CapEff"), "00000000a80425fb");
    assert_eq!(field(&status, "CapInh"), "0000000000000000");
    assert_eq!(field(&status, "Seccomp"), "2");
    let (_, out, _) = run(ExecRequest {
        user: Some("www".into()),
        env: vec!["FROM=exec".into()],
        ..exec(&["whoami"])
    })
    .await;
    assert!(out.starts_with("33 34 [4]\n/\n"), "{out}");
    assert!(
        out.contains("FROM=exec") && out.contains("HOME=/var/www"),
        "{out}"
    );
    let (_, status, _) = run(ExecRequest {
        privileged: true,
        ..exec(&["status"])
    })
    .await;
    assert_eq!(field(&status, "Seccomp"), "0");
    // Input, to its end.
    let mut session = world
        .containers
        .exec(
            &id,
            ExecRequest {
                stdin: true,
                ..exec(&["shout"])
            },
        )
        .await
        .unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"one\ntwo\n").await.unwrap();
    drop(stdin);
    assert_eq!(drain(session).await.1, "one!\ntwo!\nend of input\n");
    // It ends with its container.
    let session = world.containers.exec(&id, exec(&["wait"])).await.unwrap();
    world.containers.signal(&id, 9).await.unwrap();
    assert_eq!(drain(session).await.0, 137);
    world.containers.delete(&id).await.unwrap();
}

fn shim_of(pid: i32) -> i32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    field(&status, "PPid").parse().unwrap()
}

fn open_files(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count()
}

async fn exec_that_fails_leaves_nothing(world: &World) {
    let id = running(world).await;
    let pid = world.containers.status(&id).await.unwrap().unwrap().pid;
    let shim = shim_of(pid);
    let before = open_files(shim);
    for _ in 0..5 {
        let mut request = exec(&[]);
        request.args = vec!["/not/there".into()];
        let error = world
            .containers
            .exec(&id, request)
            .await
            .err()
            .unwrap()
            .chain();
        assert!(
            error.contains("\"/not/there\": no such file or directory"),
            "{error}"
        );
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(open_files(shim) <= before);
    let children = tool(
        "ps",
        &["--no-headers", "-o", "pid", "--ppid", &shim.to_string()],
    );
    assert_eq!(children.split_whitespace().count(), 1, "{children}");
    let left: Vec<_> = std::fs::read_dir(
        world
            .dirs
            .run
            .join(id.as_str())
            .join("oci")
            .join(id.as_str()),
    )
    .unwrap()
    .flatten()
    .filter(|entry| entry.file_name().to_string_lossy().starts_with("tenant-"))
    .collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(
        world.containers.stop(&id, None, None).await.unwrap().code,
        7
    );
    world.containers.delete(&id).await.unwrap();
}

async fn exec_on_a_terminal(world: &World) {
    let id = running(world).await;
    let mut session = world
        .containers
        .exec(
            &id,
            ExecRequest {
                tty: true,
                stdin: true,
                ..exec(&["tty"])
            },
        )
        .await
        .unwrap();
    session.terminal.resize(33, 101).await.unwrap();
    session
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"x\n")
        .await
        .unwrap();
    let (code, out, _) = drain(session).await;
    assert_eq!(code, 0);
    assert!(
        out.contains("tty 0") && out.contains("size 33 101"),
        "{out:?}"
    );
    world.containers.delete(&id).await.unwrap();
}

async fn attach_streams_without_loss(world: &World) {
    let mut plan = world.plan(&["flood", "3000000"]);
    plan.log.max_files = 0;
    world.create(&plan).await;
    let session = world
        .containers
        .attach(&plan.id, false, true)
        .await
        .unwrap();
    world.containers.start(&plan.id).await.unwrap();
    // A reader that is slow at first holds the container up and loses nothing.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (code, out, _) = drain(session).await;
    assert_eq!((code, out.len()), (0, 3_000_000 / 1024 * 1024));
    world.containers.delete(&plan.id).await.unwrap();

    let mut plan = world.plan(&["shout"]);
    plan.stdio.open_stdin = true;
    world.create(&plan).await;
    let mut session = world.containers.attach(&plan.id, true, true).await.unwrap();
    world.containers.start(&plan.id).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"hello\n").await.unwrap();
    let (_, first) = session.output.recv().await.unwrap();
    assert_eq!(&first[..], b"hello!\n");
    drop(stdin);
    assert_eq!(drain(session).await.1, "end of input\n");
    world.containers.delete(&plan.id).await.unwrap();
}

async fn a_terminal_is_a_terminal(world: &World) {
    let mut plan = world.task_plan(
        json!({"Image": "test", "TTY": true, "OpenStdin": true}),
        json!({}),
    );
    set_args(&mut plan, &["tty"]);
    world.create(&plan).await;
    let mut session = world.containers.attach(&plan.id, true, true).await.unwrap();
    session.terminal.resize(40, 120).await.unwrap();
    world.containers.start(&plan.id).await.unwrap();
    session
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"x\n")
        .await
        .unwrap();
    let (code, out, _) = drain(session).await;
    assert_eq!(code, 0);
    assert!(
        out.contains("tty 0\r\n") && out.contains("size 40 120\r\n"),
        "{out:?}"
    );
    assert!(world.log(&plan.id).await.contains("size 40 120"));
    world.containers.delete(&plan.id).await.unwrap();
}

async fn limits_hold(world: &World) {
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap();
    if !controllers.contains("memory") {
        assert_ne!(
            std::env::var("SKEP_TEST_KERNEL").as_deref(),
            Ok("image"),
            "the image's kernel must have them"
        );
        crate::say(
            "limits_hold: this host gives cgroup v2 no memory controller; the guest's kernel does",
        );
        return;
    }
    let mut plan = world.task_plan(json!({"Image": "test"}), json!({"MemoryBytes": 50 << 20}));
    set_args(&mut plan, &["hog", "200"]);
    let (exit, log) = world.run(&plan).await;
    assert!(exit.oom_killed && exit.code == 137, "{exit:?} {log}");

    let mut plan = world.task_plan(
        json!({"Image": "test"}),
        json!({"Pids": 10, "NanoCPUs": 250_000_000}),
    );
    set_args(&mut plan, &["forks", "30"]);
    let (_, log) = world.run(&plan).await;
    // Its children speak too.
    let said = log.lines().find_map(|line| line.strip_prefix("forked "));
    let forked: usize = said.unwrap().parse().unwrap();
    assert!((1..10).contains(&forked), "{log}");

    let plan = world.task_plan(
        json!({"Image": "test", "Args": ["wait"]}),
        json!({"MemoryBytes": 64 << 20, "NanoCPUs": 250_000_000}),
    );
    world.create(&plan).await;
    world.containers.start(&plan.id).await.unwrap();
    let file = |name: &str| {
        let leaf = world
            .dirs
            .cgroup
            .strip_prefix("/")
            .unwrap()
            .join(format!("ctr-{}", plan.id))
            .join(name);
        std::fs::read_to_string(Path::new("/sys/fs/cgroup").join(leaf)).unwrap()
    };
    assert_eq!(file("cpu.max").trim(), "25000 100000");
    let stats = world.containers.stats(&plan.id).await.unwrap();
    assert_eq!((stats.memory_limit, stats.pids), (64 << 20, 1));
    assert!(stats.memory_usage > 0 && stats.cpu_total > 0);
    let limits = Limits {
        nano_cpus: Some(0),
        memory: Some(96 << 20),
        pids: Some(5),
    };
    world.containers.update(&plan.id, limits).await.unwrap();
    assert_eq!(
        (
            file("cpu.max").trim(),
            file("memory.max").trim(),
            file("pids.max").trim()
        ),
        ("max 100000", "100663296", "5")
    );
    world.containers.delete(&plan.id).await.unwrap();
}

async fn failures_name_the_cause_and_leave_nothing(world: &World) {
    let cases = [
        (
            json!({"Command": ["/nothing/here"]}),
            "exec: \"/nothing/here\": no such file or directory",
        ),
        (
            json!({"Command": ["nothing"]}),
            "cannot create container SHORT: exec: \"nothing\": executable file not found in $PATH",
        ),
        (
            json!({"Command": ["/etc/second"]}),
            "exec: \"/etc/second\": permission denied",
        ),
        (
            json!({"User": "nobody-here"}),
            "unable to find user nobody-here",
        ),
        (
            json!({"Mounts": [{"Type": "bind", "Source": "/not/there", "Target": "/x"}]}),
            "bind source path does not exist: /not/there",
        ),
        (json!({"Dir": "/etc/second/below"}), "/etc/second/below"),
    ];
    for (spec, words) in cases {
        let plan = world.task_plan(spec.clone(), json!({}));
        let error = world
            .containers
            .create(&plan, &Contents::new())
            .await
            .unwrap_err()
            .chain();
        assert!(
            error.contains(&words.replace("SHORT", plan.id.short())),
            "{spec}: {error}"
        );
        assert!(!error.contains('\n'), "{error}");
        assert!(!world.dirs.run.join(plan.id.as_str()).exists(), "{spec}");
        assert!(!world.dirs.state.join(plan.id.as_str()).exists(), "{spec}");
        assert!(world.containers.start(&plan.id).await.is_err());
    }
    // An id that is taken, and what has it is not touched.
    let id = running(world).await;
    let mut twin = world.plan(&["exit", "0"]);
    twin.id = id.clone();
    assert!(
        world
            .containers
            .create(&twin, &Contents::new())
            .await
            .is_err()
    );
    assert_eq!(
        world.containers.status(&id).await.unwrap().unwrap().phase,
        Phase::Running
    );
    world.containers.delete(&id).await.unwrap();
}

/// An image whose /proc, /sys and /dev are links (CVE-2025-54867 of libcontainer and its kin in runc), or only its /dev: it is
/// refused by name, and nothing is mounted or made on the node.
async fn links_for_mount_points_lead_nowhere(world: &World) {
    let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    for image in [&world.hostile, &world.dev_link] {
        let mut plan = world.plan(&["exit", "0"]);
        plan.image_id = image.id.clone();
        let error = world
            .containers
            .create(&plan, &Contents::new())
            .await
            .unwrap_err();
        let said = error.chain();
        assert!(
            said.contains("/dev of the image is not an ordinary directory"),
            "{said}"
        );
        assert!(world.containers.status(&plan.id).await.unwrap().is_none());
    }
    assert_eq!(
        std::fs::read_to_string("/proc/self/mountinfo").unwrap(),
        before
    );
    for name in [
        "null", "fd", "stdin", "stdout", "stderr", "kcore", "ptmx", "pts",
    ] {
        let made = Path::new("/tmp").join(name);
        assert!(
            made.symlink_metadata().is_err(),
            "{} was made on the node",
            made.display()
        );
    }
}

async fn an_operators_container_sees_the_node(world: &World) {
    let run = async |words: &[&str]| {
        let command = ["/probe"]
            .iter()
            .chain(words)
            .map(|word| (*word).to_owned())
            .collect();
        let plan = world.debug_plan(&DebugRequest {
            image: "test".into(),
            command,
            resolv_conf: Some("nameserver 1.1.1.1\n".into()),
            ..DebugRequest::default()
        });
        world.create(&plan).await;
        let session = world
            .containers
            .attach(&plan.id, false, true)
            .await
            .unwrap();
        world.containers.start(&plan.id).await.unwrap();
        let (code, out, err) = drain(session).await;
        world.containers.delete(&plan.id).await.unwrap();
        assert_eq!(code, 0, "{err}");
        out
    };
    let status = run(&["status"]).await;
    let ours = std::fs::read_to_string("/proc/self/status").unwrap();
    assert_eq!(field(&status, "CapEff"), field(&ours, "CapBnd"));
    assert_eq!(field(&status, "Seccomp"), "0");
    assert_eq!(
        field(&status, "NSpid").split_whitespace().count(),
        field(
            &std::fs::read_to_string("/proc/self/status").unwrap(),
            "NSpid"
        )
        .split_whitespace()
        .count()
    );
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(run(&["whoami"]).await.lines().nth(2), Some(host.trim()));
    std::fs::write("/run/skep/sign", "of the node").unwrap();
    let said = run(&[
        "look",
        "/run/skep/sign",
        "/etc/resolv.conf",
        "/proc/cmdline",
        "/sys/kernel",
    ])
    .await;
    assert!(
        said.contains("/run/skep/sign file \"of the node\"") && said.contains("nameserver 1.1.1.1"),
        "{said}"
    );
    assert!(
        !said.contains("/proc/cmdline file \"\"") && !said.contains("/sys/kernel directory 0"),
        "{said}"
    );
    // Every device that the node itself may open: kernel memory and the disk.
    for (kind, (major, minor)) in [("b", a_disk()), ("c", ("1".into(), "11".into()))] {
        let said = run(&["device", kind, &major, &minor]).await;
        let ours = node_opens(kind, &major, &minor);
        assert_eq!(
            said,
            format!("mknod 0\nopen {ours}\n"),
            "{kind} {major}:{minor}"
        );
    }
}

async fn logs_are_rotated_and_followed(world: &World) {
    let mut plan = world.plan(&["lines", "2000"]);
    plan.log.max_size = 64 * 1024;
    plan.log.max_files = 2;
    world.create(&plan).await;
    let query = LogQuery {
        follow: true,
        ..LogQuery::default()
    };
    let mut followed = world.containers.logs(&plan.id, query).await.unwrap();
    world.containers.start(&plan.id).await.unwrap();
    let mut last = String::new();
    while let Some(entry) = followed.recv().await {
        last = String::from_utf8(entry.line.to_vec()).unwrap();
    }
    assert_eq!(last, "line 1999\n");
    let tail = LogQuery {
        tail: Some(3),
        ..LogQuery::default()
    };
    let mut entries = world.containers.logs(&plan.id, tail).await.unwrap();
    let mut lines = Vec::new();
    while let Some(entry) = entries.recv().await {
        lines.push(String::from_utf8(entry.line.to_vec()).unwrap());
    }
    assert_eq!(lines, ["line 1997\n", "line 1998\n", "line 1999\n"]);
    let files = std::fs::read_dir(world.dirs.state.join(plan.id.as_str()))
        .unwrap()
        .flatten();
    let logs: Vec<u64> = files
        .filter(|entry| entry.file_name().to_string_lossy().contains("json.log"))
        .map(|entry| entry.metadata().unwrap().len())
        .collect();
    assert_eq!(logs.len(), 2);
    assert!(logs.iter().all(|size| *size <= 64 * 1024), "{logs:?}");
    world.containers.delete(&plan.id).await.unwrap();
}

async fn a_shim_is_small(world: &World) {
    let id = running(world).await;
    let pid = world.containers.status(&id).await.unwrap().unwrap().pid;
    let shim = shim_of(pid);
    assert_eq!(
        std::fs::read_to_string(format!("/proc/{shim}/comm")).unwrap(),
        "skep-shim\n"
    );
    let status = std::fs::read_to_string(format!("/proc/{shim}/status")).unwrap();
    assert_eq!(field(&status, "Threads"), "1");
    assert_ne!(
        std::fs::read_to_string(format!("/proc/{shim}/cgroup")).unwrap(),
        std::fs::read_to_string("/proc/self/cgroup").unwrap()
    );
    let anonymous: u64 = field(&status, "RssAnon")
        .trim_end_matches(" kB")
        .trim()
        .parse()
        .unwrap();
    crate::say(&format!(
        "a_shim_is_small: {anonymous} KiB of private memory"
    ));
    assert!(
        anonymous <= 1024 || cfg!(debug_assertions),
        "{anonymous} KiB"
    );
    world.containers.delete(&id).await.unwrap();
}
