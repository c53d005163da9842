//! Whole clusters in virtual time: seeded faults, invariants after each step, liveness after healing.
//!
//! Every seed replays exactly. A failure prints its seed; `SKEP_SIM_SEED=17 cargo test -p skep-core
//! --test sim` runs that one alone and prints what happened, `SKEP_SIM_SEEDS=1000` runs more of them.

mod chaos;
mod invariants;
mod world;

use world::World;

/// Seeds of an ordinary run.
const SEEDS: u64 = 200;
/// Faults and requests go on for so long, in virtual seconds.
const CHAOS_SECONDS: u64 = 90;
/// After the last fault the cluster must have come to rest within so many virtual seconds.
const HEAL_SECONDS: u64 = 400;

#[expect(
    clippy::disallowed_methods,
    reason = "which seeds to run is the caller's choice"
)]
fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn run(seed: u64, verbose: bool) {
    let mut world = World::new(seed, verbose);
    let steps = |seconds: u64| seconds * 1000 / world::STEP_MS;
    for _ in 0..steps(CHAOS_SECONDS) {
        chaos::act(&mut world);
        world.step();
    }
    chaos::heal(&mut world);
    let mut why = String::new();
    for _ in 0..steps(HEAL_SECONDS) {
        world.step();
        match invariants::convergence::check(&world) {
            Ok(()) => return,
            Err(reason) => why = reason,
        }
    }
    panic!("no convergence {HEAL_SECONDS} s after the last fault: {why}");
}

#[test]
fn clusters_survive_faults() {
    if let Some(seed) = number("SKEP_SIM_SEED") {
        return run(seed, true);
    }
    let seeds = number("SKEP_SIM_SEEDS").unwrap_or(SEEDS);
    let threads = 2;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                for seed in (thread..seeds).step_by(2) {
                    let guard = Replay(seed);
                    run(seed, false);
                    std::mem::forget(guard);
                }
            });
        }
    });
}

#[test]
fn a_seed_replays_exactly() {
    let trace = |seed| {
        let mut world = World::new(seed, false);
        for _ in 0..200 {
            chaos::act(&mut world);
            world.step();
        }
        world.log.view().to_snapshot().expect("a snapshot")
    };
    assert_eq!(trace(3), trace(3));
    assert_ne!(trace(3), trace(4));
}

/// Says how to replay a seed if it is dropped by a panic.
struct Replay(u64);

impl Drop for Replay {
    #[expect(clippy::print_stdout, reason = "the way to replay a failure")]
    fn drop(&mut self) {
        println!("replay with SKEP_SIM_SEED={}", self.0);
    }
}
