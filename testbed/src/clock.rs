//! The only module of the testbed that reads the clock.

use std::time::Instant;

/// Returns the current monotonic time.
#[expect(clippy::disallowed_methods, reason = "the testbed is a shell: what it records carries the time")]
pub fn now() -> Instant {
    Instant::now()
}

/// Returns the current wall-clock time, as written into Kubernetes objects.
#[expect(clippy::disallowed_methods, reason = "the testbed is a shell: what it writes carries the time")]
pub fn timestamp() -> jiff::Timestamp {
    jiff::Timestamp::now()
}
