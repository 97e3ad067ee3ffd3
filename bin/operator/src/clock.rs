//! The only place in this program that reads the wall clock.

use jiff::Timestamp;

#[expect(clippy::disallowed_methods, reason = "the only place in this program that reads the wall clock")]
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}
