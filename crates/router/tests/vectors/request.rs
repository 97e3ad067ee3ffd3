//! How a request stands among the vectors; also for the test that sends them through Envoy.

use serde::Deserialize;

/// What it is called, where it comes from, and what upstream does where we do something else.
#[derive(Debug, Deserialize)]
pub(crate) struct Origin {
    pub(crate) name: String,
    pub(crate) of: String,
    pub(crate) upstream: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct RequestVector {
    #[serde(flatten)]
    pub(crate) origin: Origin,
    #[serde(default)]
    pub(crate) generic: Option<String>,
    #[serde(default)]
    pub(crate) headers: Vec<(String, String)>,
    /// None where there is no body.
    pub(crate) pieces: Option<Vec<String>>,
    pub(crate) goes_on: Option<String>,
    pub(crate) refused: Option<u16>,
    pub(crate) asked: Option<String>,
    pub(crate) target: Option<String>,
}
