//! The conditions of a rewrite, and their reasons. Upstream names the type `Accepted` with its reasons `Accepted` and
//! `Pending`, and writes none.

/// Its pool is there, and a rule of it is in force.
pub const ACCEPTED: &str = "Accepted";
/// A rule of it has no effect on a model, because another one is in force for that.
pub const CONFLICTED: &str = "Conflicted";

/// The reasons.
pub mod reason {
    /// It is in force.
    pub const ACCEPTED: &str = "Accepted";
    /// Its pool is not there.
    pub const PENDING: &str = "Pending";
    /// Another rule is in force.
    pub const SHADOWED_BY: &str = "ShadowedBy";
    /// All of its rules are in force.
    pub const NO_CONFLICT: &str = "NoConflict";
}
