//! The only place of this crate that reads the clock; all other code takes the time as an argument.

#[expect(clippy::disallowed_methods, reason = "the only clock access of this crate")]
pub(crate) fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}
