//! Rows E1-E3: names.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};

use crate::runner::{Run, Test};
use crate::swarm::{CONVERGENCE, Swarm, Task, eventually, must_contain};

pub(super) const TESTS: &[Test] = &[
    Test {
        id: "E1",
        shows: "a service's name is its VIP, with a TTL of one second; VIP traffic is balanced",
        slow: false,
        causes: &[],
        run: Run::Swarm(vip),
    },
    Test {
        id: "E2",
        shows: "tasks.NAME is every task's address",
        slow: false,
        causes: &[],
        run: Run::Swarm(tasks),
    },
    Test {
        id: "E3",
        shows: "endpoint mode dnsrr resolves to the tasks; together with a published port it is refused",
        slow: false,
        causes: &[],
        run: Run::Swarm(dnsrr),
    },
    Test {
        id: "E-unknown",
        shows: "an unknown name gets NXDOMAIN, quickly",
        slow: false,
        causes: &[],
        run: Run::Swarm(unknown),
    },
];

fn client(swarm: &Swarm<'_>) -> Result<Task> {
    swarm
        .running("client")?
        .into_iter()
        .next()
        .context("the client does not run")
}

fn resolve(swarm: &Swarm<'_>, name: &str) -> Result<BTreeSet<String>> {
    let said = swarm.inside(
        &client(swarm)?,
        &format!("dig +short +time=2 +tries=2 @127.0.0.11 {name}"),
    )?;
    Ok(said.lines().map(|line| line.trim().to_owned()).collect())
}

fn vip(swarm: &Swarm<'_>) -> Result<()> {
    let expected = BTreeSet::from([swarm.vip("whoami", "my-demo")?]);
    let found = resolve(swarm, "whoami")?;
    ensure!(
        found == expected,
        "whoami resolves to {found:?}, its VIP is {expected:?}"
    );
    let whole = swarm.inside(
        &client(swarm)?,
        "dig +noall +answer @127.0.0.11 whoami; dig +tcp +short @127.0.0.11 whoami",
    )?;
    let row: Vec<&str> = whole
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    ensure!(
        row.get(1) == Some(&"1"),
        "the answer's TTL is {:?}",
        row.get(1)
    );
    ensure!(whole.lines().count() == 2, "no answer over TCP: {whole}");
    let asked = "for i in 1 2 3 4 5 6; do curl -sS -m 5 http://$(dig +short @127.0.0.11 whoami):8000/; done";
    let said = swarm.inside(&client(swarm)?, asked)?;
    let who: BTreeSet<&str> = said.lines().collect();
    ensure!(
        who.len() == 3,
        "six requests to the VIP are answered by {who:?}"
    );
    let by_nslookup = swarm.debug(
        &client(swarm)?.node,
        &format!(
            "nsenter --net={} nslookup whoami 127.0.0.11",
            client(swarm)?.namespace()
        ),
    )?;
    must_contain(
        &by_nslookup,
        &[
            "Server:",
            "127.0.0.11",
            expected.iter().next().context("one")?,
        ],
    )
}

fn tasks(swarm: &Swarm<'_>) -> Result<()> {
    eventually(CONVERGENCE, || {
        let addresses = swarm
            .running("whoami")?
            .iter()
            .map(|t| t.address("my-demo").map(str::to_owned))
            .collect::<Result<BTreeSet<_>>>()?;
        let found = resolve(swarm, "tasks.whoami")?;
        ensure!(
            found == addresses,
            "tasks.whoami resolves to {found:?}, the tasks have {addresses:?}"
        );
        Ok(())
    })
}

fn dnsrr(swarm: &Swarm<'_>) -> Result<()> {
    let tasks = swarm.create(
        "rr",
        3,
        &["--network", "my-demo", "--endpoint-mode", "dnsrr", "whoami"],
    )?;
    let addresses: BTreeSet<String> = tasks
        .iter()
        .map(|t| t.address("my-demo").map(str::to_owned))
        .collect::<Result<_>>()?;
    eventually(CONVERGENCE, || {
        let found = resolve(swarm, "rr")?;
        ensure!(
            found == addresses,
            "rr resolves to {found:?}, its tasks have {addresses:?}"
        );
        Ok(())
    })?;
    let script =
        "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do dig +short @127.0.0.11 rr | head -1; done";
    let said = swarm.inside(&client(swarm)?, script)?;
    let firsts: BTreeSet<&str> = said.lines().collect();
    ensure!(firsts.len() > 1, "twelve answers all begin with {firsts:?}");
    let both = [
        "service",
        "create",
        "--detach",
        "--name",
        "late",
        "--endpoint-mode",
        "dnsrr",
        "--publish",
        "8077:8000",
        "whoami",
    ];
    must_contain(&swarm.refused(&both)?, &["dnsrr", "ingress"])
}

fn unknown(swarm: &Swarm<'_>) -> Result<()> {
    let said = swarm.inside(
        &client(swarm)?,
        "dig +time=3 +tries=1 @127.0.0.11 no-such-name",
    )?;
    must_contain(&said, &["status: NXDOMAIN"])
}
