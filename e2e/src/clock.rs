//! The one place where the test bed reads the clock.

use std::time::Instant;

/// Now.
#[expect(clippy::disallowed_methods, reason = "the test bed is a shell: what it records carries the time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
