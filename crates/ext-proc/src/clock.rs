//! The one place of this crate that reads the clock; everything else is told the time.

/// Now.
#[expect(clippy::disallowed_methods, reason = "the shell's one clock function")]
pub(crate) fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}
