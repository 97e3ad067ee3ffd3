//! How the selected target is passed on: in the body or in headers.

use http::HeaderValue;

/// Where downstream components find the selected target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RewriteMode {
    /// In the body: its `model` is replaced.
    #[default]
    Body,
    /// In a header, under both of its names, for an endpoint picker that runs later and rewrites the body. The body
    /// stays.
    Header,
}

/// How the selected target is passed on: in the body or in headers.
#[derive(Debug, Clone, Default)]
pub struct RewriteOptions {
    /// Where downstream components find the selected target.
    pub mode: RewriteMode,
    /// Whether to set the model in headers by which the gateway chooses a route.
    pub routing_headers: bool,
    /// Base model of the pool's servers, for the routing headers. `None` sets no base model header.
    pub base_model: Option<HeaderValue>,
    /// Whether to restore the requested model name in responses, if the filter shows their bodies.
    pub restore_model: bool,
}

impl RewriteOptions {
    /// Returns whether headers depend on the model.
    pub(crate) fn sets_model_headers(&self) -> bool {
        self.routing_headers || self.mode == RewriteMode::Header
    }
}
