//! Secrets and configs: delivered as files to the tasks that use them, and found nowhere else.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::docker::Release;
use crate::runner::{Run, Test};
use crate::swarm::{CONVERGENCE, Swarm, Task, eventually, must_contain};

/// What is looked for; nothing else in the lab has these words.
const CANARY: &str = "canary-5e1f-of-the-lab";
/// The same as a shell takes it and as no log has it.
const QUOTED: &str = "canary-5e''1f-of-the-lab";
/// The beginning of it in base64, quoted likewise.
const ENCODED: &str = "Y2FuYXJ5LTVl''MWYtb2YtdGhlLWxhY";
/// Has the task.
const HOLDER: &str = "swarm-worker1";
/// Has none that uses the secret.
const OTHER: &str = "swarm-worker2";

pub(super) const TESTS: &[Test] = &[
    Test {
        id: "secrets",
        shows: "a service gets a secret and a config as files with owner and mode, read-only, and rotates them",
        slow: false,
        causes: &[],
        run: Run::Swarm(files_of_a_service),
    },
    Test {
        id: "secrets-unseen",
        shows: "a secret is on no node's disk, in no journal, in no answer of the API, and not on a node without a task that uses it",
        slow: false,
        causes: &[],
        run: Run::Swarm(nowhere_else),
    },
    Test {
        id: "secrets-cli",
        shows: "both docker clients and skep create, list, inspect and remove secrets and configs",
        slow: false,
        causes: &[],
        run: Run::Swarm(clients),
    },
];

/// A file on this machine with this content.
fn file(swarm: &Swarm<'_>, name: &str, content: &str) -> Result<String> {
    let path = swarm.paths.folder("secrets")?.join(name);
    fs::write(&path, content)?;
    Ok(path.display().to_string())
}

/// Makes the secret `db-1`, the config `site` and a service on [`HOLDER`] that uses both.
fn vault(swarm: &Swarm<'_>) -> Result<Task> {
    let secret = file(swarm, "secret", CANARY)?;
    let config = file(swarm, "config", "server {}\n")?;
    swarm.docker(&["secret", "create", "--label", "tier=data", "db-1", &secret])?;
    swarm.docker(&["config", "create", "site", &config])?;
    let place = format!("node.hostname=={HOLDER}");
    let arguments = [
        "--constraint",
        &place,
        "--secret",
        "source=db-1,target=db,uid=33,gid=34,mode=0400",
        "--secret",
        "source=db-1,target=/etc/keys/db",
        "--config",
        "source=site,target=/etc/site.conf,uid=7,gid=8,mode=0440",
        "--config",
        "site",
        "whoami",
    ];
    let tasks = swarm.create("vault", 1, &arguments)?;
    let task = tasks.into_iter().next().context("no task")?;
    ensure!(task.node == HOLDER, "the task runs on {}", task.node);
    Ok(task)
}

/// Runs a script on the task's node with `$root`, the root of its container.
fn inside(swarm: &Swarm<'_>, task: &Task, script: &str) -> Result<String> {
    let find = format!(
        "for p in $(pgrep -x whoami); do [ \"$(nsenter -t $p -u uname -n)\" = {} ] && pid=$p; done; root=/proc/$pid/root",
        task.hostname()
    );
    swarm.debug(&task.node, &format!("{find}; {script}"))
}

fn files_of_a_service(swarm: &Swarm<'_>) -> Result<()> {
    let task = vault(swarm)?;
    let owners = inside(
        swarm,
        &task,
        "for f in run/secrets/db etc/keys/db etc/site.conf site; do stat -c '%u %g %a %s' $root/$f; done",
    )?;
    let length = CANARY.len();
    let wanted = [
        format!("33 34 400 {length}"),
        format!("0 0 444 {length}"),
        "7 8 440 10".to_owned(),
        "0 0 444 10".to_owned(),
    ];
    ensure!(owners.lines().eq(wanted.iter()), "the files are {owners:?}");
    let content = inside(swarm, &task, "cat $root/run/secrets/db $root/etc/site.conf")?;
    ensure!(content == format!("{CANARY}server {{}}\n"), "{content:?}");
    let mounts = inside(
        swarm,
        &task,
        "grep -E ' (/run/secrets/db|/site) ' /proc/$pid/mountinfo",
    )?;
    ensure!(mounts.lines().count() == 2, "{mounts}");
    for line in mounts.lines() {
        must_contain(
            line,
            &[" ro,", "nosuid", "nodev", "noexec", " tmpfs ", "size="],
        )?;
    }
    let written = inside(swarm, &task, "echo x > $root/run/secrets/db; true");
    let after = inside(swarm, &task, "cat $root/run/secrets/db")?;
    ensure!(after == CANARY, "it was written: {after:?} {written:?}");
    for (kind, name) in [("secret", "db-1"), ("config", "site")] {
        let said = swarm.refused(&[kind, "rm", name])?;
        let words = format!("{kind} '{name}' is in use by the following service: vault");
        must_contain(&said, &[&words])?;
    }
    rotate(swarm, &task)
}

/// Another secret under the same target, as operators rotate them.
fn rotate(swarm: &Swarm<'_>, old: &Task) -> Result<()> {
    let second = file(swarm, "second", "the next one")?;
    swarm.docker(&["secret", "create", "db-2", &second])?;
    swarm.docker(&[
        "service",
        "update",
        "--secret-rm",
        "db-1",
        "--secret-add",
        "source=db-2,target=db",
        "vault",
    ])?;
    let task = eventually(CONVERGENCE, || {
        let running = swarm.running("vault")?;
        match running.into_iter().find(|task| task.id != old.id) {
            Some(task) => Ok(task),
            None => bail!("the task of before still runs"),
        }
    })?;
    let content = inside(
        swarm,
        &task,
        "cat $root/run/secrets/db; ls $root/etc/keys 2>&1; true",
    )?;
    ensure!(content.starts_with("the next one"), "{content:?}");
    swarm.docker(&["secret", "rm", "db-1"])?;
    swarm.docker(&["service", "rm", "vault"])?;
    eventually(CONVERGENCE, || {
        swarm.docker(&["secret", "rm", "db-2"]).map(drop)
    })?;
    swarm.docker(&["config", "rm", "site"]).map(drop)
}

fn nowhere_else(swarm: &Swarm<'_>) -> Result<()> {
    let task = vault(swarm)?;
    let seen = inside(swarm, &task, "cat $root/run/secrets/db")?;
    ensure!(seen == CANARY, "the task has {seen:?}");
    for node in [swarm.manager(), HOLDER, OTHER] {
        on_disk(swarm, node)?;
        in_journal(swarm, node)?;
    }
    in_the_api(swarm)?;
    in_memory(swarm)?;
    swarm.docker(&["service", "rm", "vault"])?;
    eventually(CONVERGENCE, || {
        swarm.docker(&["secret", "rm", "db-1"]).map(drop)
    })?;
    swarm.docker(&["config", "rm", "site"]).map(drop)
}

/// The state partition, the managers' sealed log included, and what skepd keeps in `/run`.
fn on_disk(swarm: &Swarm<'_>, node: &str) -> Result<()> {
    let places = "/proc/1/root/var/lib/skep /proc/1/root/run/skep";
    let find = |words: &str| {
        let script = format!("grep -rslF -D skip --exclude-dir=netns {words} {places}; true");
        swarm.debug(node, &script)
    };
    let known = find("-e sha256")?;
    ensure!(
        !known.trim().is_empty(),
        "nothing at all is found on {node}"
    );
    let found = find(&format!("-e {QUOTED} -e {ENCODED}"))?;
    ensure!(found.trim().is_empty(), "on {node}: {found}");
    Ok(())
}

fn in_journal(swarm: &Swarm<'_>, node: &str) -> Result<()> {
    let read = "for d in /proc/1/root/var/log/journal /proc/1/root/run/log/journal; do \
                journalctl --no-pager --quiet --boot --all --output=export --directory $d 2>/dev/null; done";
    let known = swarm.debug(node, &format!("{read} | grep -c skepd; true"))?;
    ensure!(known.trim() != "0", "the journal of {node} cannot be read");
    let found = swarm.debug(
        node,
        &format!("{read} | grep -aF -e {QUOTED} -e {ENCODED}; true"),
    )?;
    ensure!(found.trim().is_empty(), "the journal of {node}: {found}");
    Ok(())
}

fn in_the_api(swarm: &Swarm<'_>) -> Result<()> {
    let encoded = ENCODED.replace('\'', "");
    let unseen = |place: &str, text: &str| {
        ensure!(
            !text.contains(CANARY) && !text.contains(&encoded),
            "{place}: {text}"
        );
        Ok(())
    };
    for path in [
        "/secrets",
        "/secrets/db-1",
        "/services/vault",
        "/tasks",
        "/info",
    ] {
        unseen(path, &swarm.api(path)?.to_string())?;
    }
    for release in [Release::Bookworm, Release::Trixie] {
        let arguments = ["secret", "inspect", "db-1"];
        let said = swarm.docker_on(release, swarm.manager(), &arguments)?;
        unseen(
            "docker secret inspect",
            &said.good("docker secret inspect")?,
        )?;
    }
    let config: Value = swarm.api("/configs/site")?;
    ensure!(
        config.pointer("/Spec/Data") == Some(&Value::from("c2VydmVyIHt9Cg==")),
        "the config is shown as {config}"
    );
    Ok(())
}

/// The memory of skepd: it has the secret where a task uses it, and nowhere else among the workers.
fn in_memory(swarm: &Swarm<'_>) -> Result<()> {
    let count = |node: &str| {
        let script = format!(
            "p=$(pgrep -x skepd | head -n 1); grep ' rw-p ' /proc/$p/maps | while read range rest; do \
             from=$((0x${{range%-*}} / 4096)); to=$((0x${{range#*-}} / 4096)); \
             dd if=/proc/$p/mem bs=4096 skip=$from count=$((to - from)) 2>/dev/null; done | \
             grep -acF {QUOTED}; true"
        );
        swarm.debug(node, &script)
    };
    let there = count(HOLDER)?;
    ensure!(there.trim() != "0", "the memory of {HOLDER} cannot be read");
    let elsewhere = count(OTHER)?;
    ensure!(
        elsewhere.trim() == "0",
        "{OTHER} has it in its memory: {elsewhere}"
    );
    Ok(())
}

fn clients(swarm: &Swarm<'_>) -> Result<()> {
    let content = file(swarm, "cli", "of the clients")?;
    for kind in ["secret", "config"] {
        for release in [Release::Bookworm, Release::Trixie] {
            let run = |arguments: &[&str]| {
                let arguments = [&[kind], arguments].concat();
                swarm
                    .docker_on(release, swarm.manager(), &arguments)?
                    .good(&format!("docker {}", arguments.join(" ")))
            };
            run(&["create", "of-docker", &content])?;
            must_contain(&run(&["ls"])?, &["ID", "NAME", "CREATED", "of-docker"])?;
            must_contain(&run(&["inspect", "of-docker"])?, &["\"of-docker\""])?;
            must_contain(&run(&["rm", "of-docker"])?, &["of-docker"])?;
        }
        let run = |arguments: &[&str]| {
            let arguments = [&[kind], arguments].concat();
            swarm
                .skep(swarm.manager(), &arguments)?
                .good(&format!("skep {}", arguments.join(" ")))
        };
        run(&["create", "--label", "a=b", "of-skep", &content])?;
        must_contain(&run(&["ls"])?, &["ID", "NAME", "CREATED", "of-skep"])?;
        must_contain(
            &run(&["ls", "--filter", "label=a", "--format", "json"])?,
            &["of-skep"],
        )?;
        must_contain(&run(&["inspect", "of-skep"])?, &["\"of-skep\""])?;
        must_contain(&run(&["rm", "of-skep"])?, &["of-skep"])?;
        let said =
            swarm.refused(&[kind, "create", "--template-driver", "golang", "x", &content])?;
        must_contain(&said, &["Templating", "not supported"])?;
    }
    let bus = "nsenter --mount=/proc/1/ns/mnt /usr/bin/skep";
    let script = format!(
        "printf x | {bus} secret create of-bus - && {bus} secret ls && {bus} secret rm of-bus"
    );
    must_contain(&swarm.debug(swarm.manager(), &script)?, &["of-bus"])
}
