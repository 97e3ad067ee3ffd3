//! The headers that no client has to send, and what stands under their names in the end.

use super::{How, Rewrite};
use crate::protocol::{HeaderChange, HeaderMap, HeaderMutation};
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use rollora_router::{
    exchange::Exchange,
    headers::{BASE_MODEL_HEADER, INTERNAL, MODEL_HEADER, REWRITE_HEADERS, value_of},
};

/// What a client, or a filter before this one, sent under internal names; mostly nothing.
#[derive(Debug, Default)]
pub(super) struct Sent(Vec<(&'static str, Bytes)>);

impl Sent {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let internal = headers.headers.iter().filter(|line| line.key.starts_with(b"x-")).filter_map(|line| {
            let name = INTERNAL.into_iter().find(|name| name.as_bytes() == &line.key[..])?;
            Some((name, Bytes::copy_from_slice(line.value())))
        });
        Self(internal.collect())
    }

    /// All of it removed, where nothing is told instead yet.
    pub(super) fn removed(&self) -> Option<HeaderChange> {
        self.changed(Vec::new(), false)
    }

    /// What the request's headers become, the model being known as far as it will be.
    pub(super) fn change(&self, how: &How, exchange: &Exchange) -> Option<HeaderChange> {
        let told = told(how, exchange);
        let clear_route_cache = how.routing_headers && self.routes_anew(&told);
        self.changed(told, clear_route_cache)
    }

    /// The same, where what was sent has been [`Self::removed`].
    pub(super) fn told(&self, how: &How, exchange: &Exchange) -> Option<HeaderChange> {
        let change = how.tells_headers().then(|| self.change(how, exchange)).flatten();
        change.filter(|change| change.clear_route_cache || !change.headers.set.is_empty())
    }

    fn changed(&self, told: Vec<(&'static str, Bytes)>, clear_route_cache: bool) -> Option<HeaderChange> {
        let is_told = |name: &str| told.iter().any(|(other, _)| *other == name);
        let mut names: Vec<&str> = self.0.iter().map(|(name, _)| *name).filter(|name| !is_told(name)).collect();
        names.sort_unstable();
        names.dedup();
        if names.is_empty() && told.is_empty() {
            return None;
        }
        let set = HeaderMutation::setting(told.into_iter().map(|(name, value)| (HeaderName::from_static(name), value)));
        let headers = HeaderMutation { remove: HeaderMutation::removing(names).remove, ..set };
        Some(HeaderChange { headers, clear_route_cache })
    }

    /// Whether a header by which routes are chosen is another one than was sent.
    fn routes_anew(&self, told: &[(&'static str, Bytes)]) -> bool {
        [MODEL_HEADER, BASE_MODEL_HEADER].into_iter().any(|name| {
            let of = |lines: &[(&'static str, Bytes)]| -> Vec<Bytes> {
                lines.iter().filter(|(other, _)| *other == name).map(|(_, value)| value.clone()).collect()
            };
            of(&self.0) != of(told)
        })
    }
}

/// What is told in headers.
fn told(how: &How, exchange: &Exchange) -> Vec<(&'static str, Bytes)> {
    let mut told = Vec::new();
    let mut tell = |name, value: &HeaderValue| told.push((name, Bytes::copy_from_slice(value.as_bytes())));
    let asked = exchange.asked().or(exchange.model()).filter(|name| !name.is_empty()).map(value_of);
    if how.routing_headers
        && let Some(asked) = &asked
    {
        tell(MODEL_HEADER, asked);
        // Whoever a rule chooses is served by the pool. Of other names only one is known to be so.
        let is_ours = |base: &&HeaderValue| exchange.target().is_some() || asked == *base;
        if let Some(base) = how.base_model.as_ref().filter(is_ours) {
            tell(BASE_MODEL_HEADER, base);
        }
    }
    if how.rewrite == Rewrite::Header
        && let Some(target) = exchange.target()
    {
        for name in REWRITE_HEADERS {
            tell(name, target);
        }
    }
    told
}
