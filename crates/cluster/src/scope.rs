//! Which namespaces are looked at.

/// One namespace, or all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Only this one: a Role suffices.
    Namespace(String),
    /// All of them.
    All,
}

impl Scope {
    /// The namespace, where it is one.
    pub fn namespace(&self) -> Option<&str> {
        match self {
            Self::Namespace(namespace) => Some(namespace),
            Self::All => None,
        }
    }
}
