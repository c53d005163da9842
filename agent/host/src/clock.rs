//! The clocks, read once per turn of a loop.

use std::time::{SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use skep_core::time::{Now, Timestamp};

/// The moment on the clock for deadlines.
#[must_use]
pub fn now() -> Now {
    // The call fails only for clocks that the kernel does not have; this one is in every Linux.
    let moment =
        clock_gettime(ClockId::CLOCK_BOOTTIME).map_or((0, 0), |it| (it.tv_sec(), it.tv_nsec()));
    let seconds = u64::try_from(moment.0).unwrap_or(0);
    let nanos = u64::try_from(moment.1).unwrap_or(0);
    Now(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

/// The wall clock.
#[must_use]
pub fn timestamp() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Timestamp(since.map_or(0, |since| {
        i128::try_from(since.as_nanos()).unwrap_or(i128::MAX)
    }))
}
