//! Bad input: each gets an error that names the thing, retries stay bounded, and nothing is half-done or crashed.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

use crate::archive::{Archive, Run as ImageRun};
use crate::commands::READY_PATIENCE;
use crate::http::Client;
use crate::registry::Registry;
use crate::runner::{Run, Test};
use crate::swarm::{CONVERGENCE, Swarm, eventually, must_contain};
use crate::vm::{API_PORT, Vm};
use crate::{api, console};

const CONTROL_PORT: u16 = 2377;
/// How long whoever throws bytes looks at what comes back.
const GLANCE: Duration = Duration::from_millis(50);
/// How a client of HTTP/2 begins: its preface, and empty settings.
const HTTP2_BEGIN: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

pub(super) const TESTS: &[Test] = &[
    Test {
        id: "bad-image",
        shows: "an unknown image: the task says so and is retried with back-off, the service stays removable",
        slow: false,
        causes: &[],
        run: Run::Swarm(unknown_image),
    },
    Test {
        id: "bad-digest",
        shows: "a layer whose bytes do not have their digest is refused and never run",
        slow: false,
        causes: &[],
        run: Run::Swarm(digest_mismatch),
    },
    Test {
        id: "bad-registry",
        shows: "registry down: said in service ps; once it is back the task runs without help",
        slow: false,
        causes: &[],
        run: Run::Swarm(registry_down),
    },
    Test {
        id: "bad-api",
        shows: "malformed bodies to 2376 are 400s with a reason; the node goes on",
        slow: false,
        causes: &[],
        run: Run::Swarm(malformed_bodies),
    },
    Test {
        id: "bad-bytes",
        shows: "random and truncated bytes on 2377 and 2376, before and inside TLS, crash nothing",
        slow: false,
        causes: &[],
        run: Run::Swarm(random_bytes),
    },
    Test {
        id: "bad-token",
        shows: "a wrong token and a wrong CA digest are said on the console; the node comes up and the swarm is untouched",
        slow: false,
        causes: &[],
        run: Run::Spare(wrong_token),
    },
    Test {
        id: "bad-manager",
        shows: "an unreachable manager: retried with back-off, and joined once it can be reached",
        slow: false,
        causes: &[],
        run: Run::Spare(unreachable_manager),
    },
    Test {
        id: "bad-key",
        shows: "an unknown and a malformed skep. key are said on the console and in the journal, and the node still joins",
        slow: false,
        causes: &[],
        run: Run::Spare(unknown_keys),
    },
    Test {
        id: "same-name",
        shows: "two machines with one name, and one firmware UUID, are two nodes",
        slow: false,
        causes: &[],
        run: Run::Spare(same_name),
    },
    Test {
        id: "same-machine",
        shows: "a machine with the machine-id of a node that is there is refused: its console says so, the swarm is untouched",
        slow: false,
        causes: &[],
        run: Run::Spare(same_machine_id),
    },
];

fn unknown_image(swarm: &Swarm<'_>) -> Result<()> {
    swarm.docker(&[
        "service",
        "create",
        "--detach",
        "--name",
        "web",
        "no-such-image",
    ])?;
    eventually(CONVERGENCE, || {
        let tasks = swarm.tasks("web")?;
        let told = tasks
            .iter()
            .any(|task| task.state == "rejected" && task.error.contains("no-such-image"));
        ensure!(told, "no task says what is wrong: {tasks:?}");
        Ok(())
    })?;
    let mut tried = BTreeSet::new();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(20) {
        tried.extend(swarm.tasks("web")?.into_iter().map(|task| task.id));
        std::thread::sleep(Duration::from_millis(200));
    }
    // History is cut, so the number of tasks that are left says nothing: how many were seen in all does.
    ensure!(
        (2..=6).contains(&tried.len()),
        "{} tasks in about 20 s, which is not Docker's one in 5 s",
        tried.len()
    );
    swarm.docker(&["service", "update", "--detach", "--image", "whoami", "web"])?;
    swarm.wait_running("web", 1).map(drop)
}

/// Pushes an image and then changes a byte of its layer where the registry keeps it.
fn digest_mismatch(swarm: &Swarm<'_>) -> Result<()> {
    let registry = Registry::at(swarm.paths)?;
    let root = swarm.paths.folder("images/broken")?;
    // New content each time: a node must not have it already.
    fs::write(root.join("payload"), seconds_now()?.to_string())?;
    let run = ImageRun {
        entrypoint: &["/payload"],
        ..ImageRun::default()
    };
    let archive = Archive::of_folder(&root, &run)?;
    registry.push(&archive, "library/broken:latest")?;
    let layer = archive.blobs.last().context("an image without layers")?;
    let file = registry.blob_file(&layer.digest);
    let mut bytes = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    *bytes.last_mut().context("an empty layer")? ^= 1;
    fs::write(&file, bytes)?;
    swarm.docker(&["service", "create", "--detach", "--name", "web", "broken"])?;
    eventually(CONVERGENCE, || {
        let tasks = swarm.tasks("web")?;
        let told = tasks
            .iter()
            .any(|task| task.error.to_lowercase().contains("digest"));
        ensure!(told, "no task names the digest: {tasks:?}");
        Ok(())
    })?;
    ensure!(swarm.running("web")?.is_empty(), "the broken image runs");
    Ok(())
}

fn registry_down(swarm: &Swarm<'_>) -> Result<()> {
    let registry = Registry::at(swarm.paths)?;
    // A name that no node has seen, of an image that is there: it must be fetched.
    let name = format!("whoami:late-{}", seconds_now()?);
    registry.tag("library/whoami", "latest", &name)?;
    registry.stop()?;
    let told = (|| {
        swarm.docker(&["service", "create", "--detach", "--name", "web", &name])?;
        eventually(CONVERGENCE, || {
            let tasks = swarm.tasks("web")?;
            let address = registry.address_for_nodes();
            let told = tasks.iter().any(|task| task.error.contains(&address));
            ensure!(told, "no task says that {address} is down: {tasks:?}");
            Ok(())
        })
    })();
    registry.start(swarm.paths)?;
    told?;
    swarm.wait_running("web", 1).map(drop)
}

fn seconds_now() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

fn malformed_bodies(swarm: &Swarm<'_>) -> Result<()> {
    let client = swarm.cluster.api(swarm.manager())?;
    let json = [("Content-Type", "application/json")];
    let deep = format!("{}1{}", "[".repeat(50_000), "]".repeat(50_000));
    let bodies: [&[u8]; 7] = [
        b"",
        b"{",
        b"null",
        b"[1,2]",
        b"{\"Name\": 7}",
        b"\xff\xfe{}",
        deep.as_bytes(),
    ];
    for path in [
        "/services/create",
        "/networks/create",
        "/swarm/init",
        "/swarm/join",
    ] {
        for body in bodies {
            let answer = client.request("POST", path, &json, body)?;
            let shown = String::from_utf8_lossy(&body[..body.len().min(20)]).into_owned();
            // Some are no bad settings for init and join, and those a node that is in a swarm refuses.
            let expected: &[u16] = match path.ends_with("/create") {
                true => &[400, 413],
                false => &[400, 406, 413, 503],
            };
            ensure!(
                expected.contains(&answer.status),
                "POST {path} with {shown:?} answers {}: {}",
                answer.status,
                answer.text()
            );
            must_contain(&answer.text(), &["message"])?;
        }
    }
    for path in [
        "/nope",
        "/services/%00",
        "/v9.99/info",
        "/containers/../../etc/passwd",
    ] {
        let status = client.get(path)?.status;
        ensure!((400..600).contains(&status), "GET {path} answers {status}");
    }
    let unsupported = client.request("POST", "/volumes/create", &json, b"{}")?;
    ensure!(
        unsupported.status == 501,
        "what is not there yet answers {}",
        unsupported.status
    );
    Ok(())
}

fn random_bytes(swarm: &Swarm<'_>) -> Result<()> {
    let node = swarm.manager();
    let before = swarm.debug(node, "pgrep -x skepd")?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    for port in [CONTROL_PORT, API_PORT] {
        let host = swarm.cluster.vm(node)?.forward(false, port)?;
        let plain = Client::plain(SocketAddr::from(([127, 0, 0, 1], host)), GLANCE);
        // Inside TLS: on 2377 as a node that joins, without a certificate; on 2376 as an operator.
        let (inside, begin): (Client, &[u8]) = match port {
            CONTROL_PORT => (api::stranger(host, &["h2"])?.0, HTTP2_BEGIN),
            _ => (
                swarm.cluster.api(node)?,
                b"POST /services/create HTTP/1.1\r\nHost: x\r\n",
            ),
        };
        let inside = inside.patient(Duration::from_secs(5));
        for round in 0..60_usize {
            let mut bytes: Vec<u8> = (0..1 + round * 20).flat_map(|_| random()).collect();
            // Some begin as a TLS handshake does, and are cut off.
            if round % 2 == 0 {
                bytes.splice(0..5, [0x16, 3, 1, 2, 0]);
            }
            plain.throw(&bytes)?;
            if round % 5 == 0 {
                inside.throw(&bytes)?;
                inside.throw(&[begin, &bytes].concat())?;
            }
        }
    }
    let after = swarm.debug(node, "pgrep -x skepd")?;
    ensure!(
        before == after,
        "skepd was restarted: process {} became {}",
        before.trim(),
        after.trim()
    );
    swarm.docker(&["node", "ls"]).map(drop)
}

fn console_says(vm: &Vm, parts: &[&str]) -> Result<()> {
    eventually(READY_PATIENCE, || {
        must_contain(&console::read(&vm.folder), parts)
    })
    .with_context(|| {
        format!(
            "the console of {} ends with:\n{}",
            vm.name,
            vm.console_tail(10)
        )
    })
}

fn wrong_token(swarm: &Swarm<'_>, spare: &str) -> Result<()> {
    let good = swarm.worker_token()?;
    let parts: Vec<&str> = good.split('-').collect();
    ensure!(parts.len() == 4, "the token has {} parts", parts.len());
    let flipped = |text: &str| -> String {
        let last = if text.ends_with('0') { '1' } else { '0' };
        format!("{}{last}", &text[..text.len() - 1])
    };
    let wrong_secret = format!("SWMTKN-1-{}-{}", parts[2], flipped(parts[3]));
    let wrong_digest = format!("SWMTKN-1-{}-{}", flipped(parts[2]), parts[3]);
    for (token, said) in [(wrong_secret, "token"), (wrong_digest, "digest")] {
        let vm = stays_out(swarm, spare, &token, said)?;
        let text = console::read(&vm.folder);
        ensure!(
            !text.contains(parts[3]),
            "the token's secret stands on the console"
        );
    }
    Ok(())
}

/// Boots the spare node with a token that is no good: it says so, stays up, and is not let in.
///
/// Names prove nothing: a spare node that joined and left in an earlier test is still listed under this one.
pub(super) fn stays_out(swarm: &Swarm<'_>, spare: &str, token: &str, said: &str) -> Result<Vm> {
    let before = node_ids(swarm)?;
    let vm = swarm.boot_changed(spare, |vm| {
        vm.set_credential("skep.join", &swarm.join_with(token));
        // A reboot would turn it off, and so be seen.
        vm.once = true;
        Ok(())
    })?;
    console_says(&vm, &[said])?;
    std::thread::sleep(Duration::from_secs(10));
    ensure!(vm.running(), "{spare} turned off or rebooted");
    no_new_node(swarm, &before).with_context(|| format!("{spare} was let in"))?;
    vm.power_cut()?;
    Ok(vm)
}

/// Every node that the swarm knows of, also those that are Down.
fn node_ids(swarm: &Swarm<'_>) -> Result<BTreeSet<String>> {
    let listed = swarm.docker(&["node", "ls", "--quiet"])?;
    Ok(listed.split_whitespace().map(str::to_owned).collect())
}

/// The ids of the nodes that are Ready and were not there `before`.
fn new_and_ready(swarm: &Swarm<'_>, before: &BTreeSet<String>) -> Result<Vec<String>> {
    let listed = swarm.docker(&["node", "ls", "--format", "{{.ID}} {{.Status}}"])?;
    let ready = listed
        .lines()
        .filter_map(|line| line.trim().strip_suffix(" Ready"));
    let new = ready.filter(|id| !before.contains(*id));
    Ok(new.map(str::to_owned).collect())
}

fn no_new_node(swarm: &Swarm<'_>, before: &BTreeSet<String>) -> Result<()> {
    let now = node_ids(swarm)?;
    match now.difference(before).next() {
        None => Ok(()),
        Some(id) => bail!("node {id} is new"),
    }
}

fn unreachable_manager(swarm: &Swarm<'_>, spare: &str) -> Result<()> {
    let before = node_ids(swarm)?;
    let vm = swarm.boot_changed(spare, |_| swarm.cluster.set_link(spare, false))?;
    console_says(&vm, &["192.168.77.11"])?;
    std::thread::sleep(Duration::from_secs(20));
    let tries = console::read(&vm.folder)
        .matches("192.168.77.11:2377")
        .count();
    ensure!(
        tries < 60,
        "{tries} lines about the manager in about 20 s: no back-off"
    );
    swarm.cluster.set_link(spare, true)?;
    joins(swarm, spare, &before)
}

/// Waits until a node that was not there `before` is Ready: one of an earlier test may not yet be seen to be off.
fn joins(swarm: &Swarm<'_>, name: &str, before: &BTreeSet<String>) -> Result<()> {
    eventually(READY_PATIENCE, || {
        match new_and_ready(swarm, before)?.is_empty() {
            false => Ok(()),
            true => bail!("{name} is not Ready"),
        }
    })?;
    swarm.cluster.vm(name)?.power_cut()
}

fn unknown_keys(swarm: &Swarm<'_>, spare: &str) -> Result<()> {
    let before = node_ids(swarm)?;
    let vm = swarm.boot_changed(spare, |vm| {
        vm.boot
            .cmdline
            .push_str(" skep.colour=blue skep.api.san=!!");
        Ok(())
    })?;
    console_says(&vm, &["skep.colour", "skep.api.san"])?;
    eventually(READY_PATIENCE, || {
        match new_and_ready(swarm, &before)?.is_empty() {
            false => Ok(()),
            true => bail!("{spare} is not Ready"),
        }
    })?;
    let journal = swarm.journal(spare, "--unit skepd.service")?;
    must_contain(&journal, &["skep.colour", "skep.api.san"])?;
    vm.power_cut()
}

fn same_name(swarm: &Swarm<'_>, spare: &str) -> Result<()> {
    let twin = swarm.cluster.vm("swarm-worker1")?;
    let rows = || -> Result<usize> {
        let listed = swarm.docker(&["node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?;
        Ok(listed
            .lines()
            .filter(|line| *line == "swarm-worker1 Ready")
            .count())
    };
    let vm = swarm.boot_changed(spare, |vm| {
        vm.uuid_of = twin.number;
        vm.boot.cmdline = vm
            .boot
            .cmdline
            .replace(&format!("skep.name={spare}"), "skep.name=swarm-worker1");
        Ok(())
    })?;
    eventually(READY_PATIENCE, || match rows()? {
        2 => Ok(()),
        other => bail!("{other} nodes called swarm-worker1 are Ready"),
    })?;
    let said = swarm.refused(&["node", "inspect", "swarm-worker1"])?;
    must_contain(&said, &["swarm-worker1", "ambiguous"])?;
    vm.power_cut()?;
    eventually(CONVERGENCE, || match rows()? {
        1 => Ok(()),
        other => bail!("{other} nodes called swarm-worker1 are Ready after one was turned off"),
    })
}

fn same_machine_id(swarm: &Swarm<'_>, spare: &str) -> Result<()> {
    let twin = "swarm-worker1";
    let id = swarm.debug(twin, "cat /proc/1/root/etc/machine-id")?;
    let id = id.trim();
    ensure!(id.len() == 32, "{twin} has the machine-id {id:?}");
    let before = node_ids(swarm)?;
    let vm = swarm.boot_changed(spare, |vm| {
        let word = format!(" systemd.machine_id={id}");
        vm.boot.cmdline.push_str(&word);
        Ok(())
    })?;
    console_says(&vm, &[&format!("machine id {id} belongs to node"), twin])?;
    std::thread::sleep(Duration::from_secs(10));
    ensure!(vm.running(), "{spare} turned off");
    // It has a certificate and so is listed, but no manager takes it for a node that is there.
    let new = new_and_ready(swarm, &before)?;
    ensure!(new.is_empty(), "{spare} was let in as {new:?}");
    let ready = swarm.cluster.ready_nodes()?;
    ensure!(
        ready.iter().any(|name| name == twin),
        "{twin} is not Ready any more; Ready are {ready:?}"
    );
    vm.power_cut()
}
