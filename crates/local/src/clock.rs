//! The only module of this crate that reads the clock; all other code takes the time as an argument.

#[expect(clippy::disallowed_methods, reason = "the shell's one clock function")]
pub(crate) fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}
