//! The one place of this program that reads the clock.

use jiff::Timestamp;

#[expect(clippy::disallowed_methods, reason = "the one place of this program that reads the clock")]
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}
