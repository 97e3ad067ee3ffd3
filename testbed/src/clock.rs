//! The one place where the test bed reads the clock.

use std::time::Instant;

/// Now.
#[expect(clippy::disallowed_methods, reason = "the test bed is a shell: what it records carries the time")]
pub fn now() -> Instant {
    Instant::now()
}

/// Now, as it is written into objects.
#[expect(clippy::disallowed_methods, reason = "the test bed is a shell: what it writes carries the time")]
pub fn timestamp() -> jiff::Timestamp {
    jiff::Timestamp::now()
}
