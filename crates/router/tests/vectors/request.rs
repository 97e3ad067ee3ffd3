//! Format of the request vectors; also used by the test that sends them through Envoy.

use serde::Deserialize;

/// Name of a vector, the upstream test suite that it comes from, and what upstream does if Rollora differs.
#[derive(Debug, Deserialize)]
pub(crate) struct VectorOrigin {
    pub(crate) name: String,
    pub(crate) suite: String,
    pub(crate) upstream: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct RequestVector {
    #[serde(flatten)]
    pub(crate) origin: VectorOrigin,
    #[serde(default)]
    pub(crate) generic: Option<String>,
    #[serde(default)]
    pub(crate) headers: Vec<(String, String)>,
    /// `None` for a request without a body.
    pub(crate) chunks: Option<Vec<String>>,
    pub(crate) expected_body: Option<String>,
    pub(crate) refused_status: Option<u16>,
    pub(crate) requested_model: Option<String>,
    pub(crate) target: Option<String>,
}
