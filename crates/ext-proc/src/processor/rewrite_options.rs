//! How a rule is applied to a request, and what is told beside.

use http::HeaderValue;

/// How whoever comes behind learns whom a rule chose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RewriteMode {
    /// From the body: its `model` is replaced.
    #[default]
    Body,
    /// From a header, under both of its names; the body stays. For a picker behind, which puts it into the body.
    Header,
}

/// How a rule is applied and told.
#[derive(Debug, Clone, Default)]
pub struct RewriteOptions {
    /// How whoever comes behind learns whom a rule chose.
    pub mode: RewriteMode,
    /// Whether headers tell the model, for the gateway to choose a route by.
    pub routing_headers: bool,
    /// The base model of the pool's servers, which the routing headers tell too.
    pub base_model: Option<HeaderValue>,
    /// Whether answers get the client's name, where the filter shows their bodies.
    pub restore_model: bool,
}

impl RewriteOptions {
    /// Whether headers depend on the model.
    pub(crate) fn sets_model_headers(&self) -> bool {
        self.routing_headers || self.mode == RewriteMode::Header
    }
}
