//! Why something went wrong, at the bottom of it.

use std::error::Error;

/// The cause of all causes: `Connection refused` rather than `error sending request`, which helps nobody.
pub fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
