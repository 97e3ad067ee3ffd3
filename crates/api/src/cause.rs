//! Root causes of errors.

use std::error::Error;

/// Returns the text of the innermost source of `error`, for example `Connection refused` instead of the less helpful
/// `error sending request`.
pub fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
