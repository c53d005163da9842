//! skep-hold: the one process of skep-containers.service.
//!
//! systemd keeps a unit's cgroup only while a process is in it, and the delegated cgroup of shims and containers must be
//! there before the first of them and stay when skepd goes. So this waits, in a leaf of its own, until it is stopped.

fn main() {
    loop {
        std::thread::park();
    }
}
