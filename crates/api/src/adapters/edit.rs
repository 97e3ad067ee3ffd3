//! The edit of the adapters file: one entry moves, every other byte stays.

/// Why a file was not edited. Nothing is written then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// The user's text is not a literal block of its ConfigMap.
    #[error(
        "line {line}: `{key}` cannot be edited in the form in which it is written: write it as a block (`{key}: |`)"
    )]
    NotABlock {
        /// The key.
        key: String,
        /// Its line.
        line: usize,
    },
    /// The edited text does not say what it should.
    #[error("{detail} would not read back as intended: move the entry by hand")]
    NotReadBack {
        /// What.
        detail: String,
    },
}
