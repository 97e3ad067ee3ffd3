//! Internal headers of a request: those that the client sent are removed, and those for downstream components are set.

use super::{RewriteMode, RewriteOptions};
use crate::proto::{self, RequestHeaderMutation};
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use rollora_router::{
    exchange::Exchange,
    headers::{BASE_MODEL_HEADER, INTERNAL_HEADERS, MODEL_HEADER, REWRITE_HEADERS, encode_header_value},
};

/// Internal headers that the client, or an earlier filter, sent; usually none.
#[derive(Debug, Default)]
pub(super) struct InternalHeaders(Vec<(&'static str, Bytes)>);

impl InternalHeaders {
    pub(super) fn from_headers(headers: &proto::HeaderMap) -> Self {
        let internal = headers.headers.iter().filter(|line| line.key.starts_with(b"x-")).filter_map(|line| {
            let name = INTERNAL_HEADERS.into_iter().find(|name| name.as_bytes() == &line.key[..])?;
            Some((name, Bytes::copy_from_slice(line.value())))
        });
        Self(internal.collect())
    }

    /// Returns a mutation that removes all of them, for when no header can be set yet. `None` if there are none.
    pub(super) fn removal(&self) -> Option<RequestHeaderMutation> {
        self.build_mutation(Vec::new(), false)
    }

    /// Returns the mutation for the state of the exchange, which sets the model headers and removes all other internal
    /// ones. `None` if nothing changes.
    pub(super) fn mutation(&self, options: &RewriteOptions, exchange: &Exchange) -> Option<RequestHeaderMutation> {
        let set = model_headers(options, exchange);
        let clear_route_cache = options.routing_headers && self.changes_route(&set);
        self.build_mutation(set, clear_route_cache)
    }

    /// Like [`Self::mutation`], if [`Self::removal`] was applied before.
    pub(super) fn late_mutation(&self, options: &RewriteOptions, exchange: &Exchange) -> Option<RequestHeaderMutation> {
        let change = options.sets_model_headers().then(|| self.mutation(options, exchange)).flatten();
        change.filter(|change| change.clear_route_cache || !change.mutation.set_headers.is_empty())
    }

    fn build_mutation(
        &self,
        set: Vec<(&'static str, Bytes)>,
        clear_route_cache: bool,
    ) -> Option<RequestHeaderMutation> {
        let is_set = |name: &str| set.iter().any(|(other, _)| *other == name);
        let mut removed: Vec<&str> = self.0.iter().map(|(name, _)| *name).filter(|name| !is_set(name)).collect();
        removed.sort_unstable();
        removed.dedup();
        if removed.is_empty() && set.is_empty() {
            return None;
        }
        let set = proto::HeaderMutation::overwrite(
            set.into_iter().map(|(name, value)| (HeaderName::from_static(name), value)),
        );
        let mutation =
            proto::HeaderMutation { remove_headers: proto::HeaderMutation::remove(removed).remove_headers, ..set };
        Some(RequestHeaderMutation { mutation, clear_route_cache })
    }

    /// Returns whether a header by which gateways choose routes differs from what the client sent.
    fn changes_route(&self, set: &[(&'static str, Bytes)]) -> bool {
        [MODEL_HEADER, BASE_MODEL_HEADER].into_iter().any(|name| {
            let values = |headers: &[(&'static str, Bytes)]| -> Vec<Bytes> {
                headers.iter().filter(|(other, _)| *other == name).map(|(_, value)| value.clone()).collect()
            };
            values(&self.0) != values(set)
        })
    }
}

/// Returns the headers that pass the model to downstream components.
fn model_headers(options: &RewriteOptions, exchange: &Exchange) -> Vec<(&'static str, Bytes)> {
    let mut headers = Vec::new();
    let mut set = |name, value: &HeaderValue| headers.push((name, Bytes::copy_from_slice(value.as_bytes())));
    let requested =
        exchange.requested_model().or(exchange.served_model()).filter(|name| !name.is_empty()).map(encode_header_value);
    if options.routing_headers
        && let Some(requested) = &requested
    {
        set(MODEL_HEADER, requested);
        // The pool serves every target of a rule. Of all other names only the base model is known to be served by it.
        let is_ours = |base: &&HeaderValue| exchange.target_header().is_some() || requested == *base;
        if let Some(base) = options.base_model.as_ref().filter(is_ours) {
            set(BASE_MODEL_HEADER, base);
        }
    }
    if options.mode == RewriteMode::Header
        && let Some(target) = exchange.target_header()
    {
        for name in REWRITE_HEADERS {
            set(name, target);
        }
    }
    headers
}
