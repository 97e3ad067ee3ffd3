//! The headers that no client has to send, and what stands under their names in the end.

use super::{RewriteMode, RewriteOptions};
use crate::proto::{HeaderMap, HeaderMutation, RequestHeaderMutation};
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use rollora_router::{
    exchange::Exchange,
    headers::{BASE_MODEL_HEADER, INTERNAL_HEADERS, MODEL_HEADER, REWRITE_HEADERS, encode_header_value},
};

/// What a client, or a filter before this one, sent under internal names; mostly nothing.
#[derive(Debug, Default)]
pub(super) struct InternalHeaders(Vec<(&'static str, Bytes)>);

impl InternalHeaders {
    pub(super) fn from_headers(headers: &HeaderMap) -> Self {
        let internal = headers.headers.iter().filter(|line| line.key.starts_with(b"x-")).filter_map(|line| {
            let name = INTERNAL_HEADERS.into_iter().find(|name| name.as_bytes() == &line.key[..])?;
            Some((name, Bytes::copy_from_slice(line.value())))
        });
        Self(internal.collect())
    }

    /// All of it removed, where nothing is told instead yet.
    pub(super) fn removal(&self) -> Option<RequestHeaderMutation> {
        self.build_mutation(Vec::new(), false)
    }

    /// What the request's headers become, the model being known as far as it will be.
    pub(super) fn mutation(&self, how: &RewriteOptions, exchange: &Exchange) -> Option<RequestHeaderMutation> {
        let told = model_headers(how, exchange);
        let clear_route_cache = how.routing_headers && self.changes_route(&told);
        self.build_mutation(told, clear_route_cache)
    }

    /// The same, where what was sent has been [`Self::removed`].
    pub(super) fn late_mutation(&self, how: &RewriteOptions, exchange: &Exchange) -> Option<RequestHeaderMutation> {
        let change = how.sets_model_headers().then(|| self.mutation(how, exchange)).flatten();
        change.filter(|change| change.clear_route_cache || !change.mutation.set_headers.is_empty())
    }

    fn build_mutation(
        &self,
        told: Vec<(&'static str, Bytes)>,
        clear_route_cache: bool,
    ) -> Option<RequestHeaderMutation> {
        let is_told = |name: &str| told.iter().any(|(other, _)| *other == name);
        let mut names: Vec<&str> = self.0.iter().map(|(name, _)| *name).filter(|name| !is_told(name)).collect();
        names.sort_unstable();
        names.dedup();
        if names.is_empty() && told.is_empty() {
            return None;
        }
        let set =
            HeaderMutation::overwrite(told.into_iter().map(|(name, value)| (HeaderName::from_static(name), value)));
        let headers = HeaderMutation { remove_headers: HeaderMutation::remove(names).remove_headers, ..set };
        Some(RequestHeaderMutation { mutation: headers, clear_route_cache })
    }

    /// Whether a header by which routes are chosen is another one than was sent.
    fn changes_route(&self, told: &[(&'static str, Bytes)]) -> bool {
        [MODEL_HEADER, BASE_MODEL_HEADER].into_iter().any(|name| {
            let of = |lines: &[(&'static str, Bytes)]| -> Vec<Bytes> {
                lines.iter().filter(|(other, _)| *other == name).map(|(_, value)| value.clone()).collect()
            };
            of(&self.0) != of(told)
        })
    }
}

/// What is told in headers.
fn model_headers(how: &RewriteOptions, exchange: &Exchange) -> Vec<(&'static str, Bytes)> {
    let mut told = Vec::new();
    let mut tell = |name, value: &HeaderValue| told.push((name, Bytes::copy_from_slice(value.as_bytes())));
    let asked =
        exchange.requested_model().or(exchange.served_model()).filter(|name| !name.is_empty()).map(encode_header_value);
    if how.routing_headers
        && let Some(asked) = &asked
    {
        tell(MODEL_HEADER, asked);
        // Whoever a rule chooses is served by the pool. Of other names only one is known to be so.
        let is_ours = |base: &&HeaderValue| exchange.target_header().is_some() || asked == *base;
        if let Some(base) = how.base_model.as_ref().filter(is_ours) {
            tell(BASE_MODEL_HEADER, base);
        }
    }
    if how.mode == RewriteMode::Header
        && let Some(target) = exchange.target_header()
    {
        for name in REWRITE_HEADERS {
            tell(name, target);
        }
    }
    told
}
