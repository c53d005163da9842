//! When to try again what failed for a passing reason.

use std::time::Duration;

use crate::time::Now;

/// Pause after the first failure; it doubles with each further one.
const FIRST: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(30);

/// Counts the failures of one thing in a row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Retry {
    failures: u32,
    not_before: Option<Now>,
}

impl Retry {
    /// Notes one more failure.
    pub(crate) fn failed(&mut self, now: Now) {
        let doubled = FIRST.saturating_mul(1 << self.failures.min(10));
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(now + doubled.min(LONGEST));
    }

    /// Notes a success.
    pub(crate) fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// How often it has failed in a row.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// Until when to wait; none when it may be tried now.
    pub(crate) fn wait(&self, now: Now) -> Option<Now> {
        self.not_before.filter(|at| *at > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_start_again_after_a_success() {
        let mut retry = Retry::default();
        let now = Now(0);
        assert_eq!(retry.wait(now), None);
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            retry.failed(now);
            assert_eq!(retry.wait(now), Some(now + Duration::from_secs(seconds)));
        }
        assert_eq!(retry.failures(), 7);
        assert_eq!(retry.wait(now + Duration::from_secs(30)), None);
        retry.succeeded();
        assert_eq!((retry.failures(), retry.wait(now)), (0, None));
    }
}
