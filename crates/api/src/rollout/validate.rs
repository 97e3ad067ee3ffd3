//! Validation of a Rollout beyond its types. On a cluster the API server enforces the same rules through the custom
//! resource's schema; a test checks that the two agree.

use super::{
    Rollout,
    spec::{AdapterChoice, RolloutSpec, Step, Strategy},
};
use crate::{names::API_VERSION, operator_directives::matches_pattern, rewrite::WEIGHT_RANGE};

/// Maximum number of steps of a strategy.
pub const MAX_STEPS: usize = 50;
/// Maximum length of the name of a Kubernetes object, in characters.
pub const MAX_NAME: usize = 253;
/// Maximum length of an adapter's source, in characters.
pub const MAX_SOURCE: usize = 1024;
/// Maximum length of a header name, in bytes.
pub const MAX_HEADER: usize = 128;

/// Error of one field that is not valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Path of the field, for example `spec.strategy.steps[0]`.
    pub path: String,
    /// What is wrong with the value, and what to write instead.
    pub message: String,
}

struct FieldErrors(Vec<FieldError>);

impl FieldErrors {
    fn require(&mut self, valid: bool, path: impl Into<String>, message: impl Into<String>) {
        if !valid {
            self.0.push(FieldError { path: path.into(), message: message.into() });
        }
    }
}

impl Rollout {
    /// Validates the whole object. Returns all errors; none if it is valid.
    pub fn validate(&self) -> Vec<FieldError> {
        let mut errors = FieldErrors(Vec::new());
        errors.require(self.api_version == API_VERSION, "apiVersion", format!("write `{API_VERSION}`"));
        errors.require(self.kind == "Rollout", "kind", "write `Rollout`");
        let name = &self.metadata.name;
        errors.require(
            is_object_name(name),
            "metadata.name",
            "use 1 to 253 lower case letters, digits, `-` and `.`, with a letter or digit at both ends",
        );
        errors.0.extend(self.spec.validate());
        errors.0
    }
}

impl RolloutSpec {
    /// Validates the spec. Returns all errors; none if it is valid.
    pub fn validate(&self) -> Vec<FieldError> {
        let mut errors = FieldErrors(Vec::new());
        check_references(self, &mut errors);
        check_adapter(self, &mut errors);
        check_strategy(&self.strategy, &mut errors);
        errors.0
    }
}

fn check_references(spec: &RolloutSpec, errors: &mut FieldErrors) {
    let message = format!("write a name of 1 to {MAX_NAME} characters");
    let mut name = |name: &str, path: &str| errors.require((1..=MAX_NAME).contains(&length(name)), path, &message);
    name(&spec.pool_ref.name, "spec.poolRef.name");
    name(&spec.adapters_ref.name, "spec.adaptersRef.name");
    name(&spec.adapters_ref.key, "spec.adaptersRef.key");
    if let Some(reference) = &spec.rewrite_ref {
        name(&reference.name, "spec.rewriteRef.name");
    }
    let pool = &spec.pool_ref;
    let group = format!("write at most {MAX_NAME} characters");
    errors.require(length(&pool.group) <= MAX_NAME, "spec.poolRef.group", group);
    let kind = pool.kind.as_deref().is_none_or(|kind| (1..=63).contains(&length(kind)));
    errors.require(kind, "spec.poolRef.kind", "write 1 to 63 characters");
    let key = spec.adapters_ref.key != crate::names::DIRECTIVES_KEY;
    errors.require(
        key,
        "spec.adaptersRef.key",
        "`rollora.yaml` is reserved for Rollora: name the key of your adapters file",
    );
}

fn check_adapter(spec: &RolloutSpec, errors: &mut FieldErrors) {
    let AdapterChoice { follow, id, source } = &spec.adapter;
    let path = "spec.adapter";
    errors.require(follow.is_some() != id.is_some(), path, "write exactly one of `follow` and `id`");
    let needed = source.is_none() || id.is_some();
    errors.require(needed, "spec.adapter.source", "`source` requires `id`: add `id`, or remove `source`");
    let fits = source.as_ref().is_none_or(|source| (1..=MAX_SOURCE).contains(&length(source)));
    errors.require(fits, "spec.adapter.source", format!("write 1 to {MAX_SOURCE} characters"));
    let model = spec.model.as_str();
    if let Some(id) = id {
        let message = "an adapter id cannot equal the model name that clients send: give the version another id";
        errors.require(id.as_str() != model, "spec.adapter.id", message);
    }
    if let Some(follow) = follow {
        let (path, pattern) = ("spec.adapter.follow.pattern", follow.pattern.as_str());
        let one_star = pattern.matches('*').count() == 1;
        errors.require(one_star, path, "write `*` exactly once, in place of the version");
        errors.require(length(pattern) <= MAX_NAME, path, format!("write at most {MAX_NAME} characters"));
        let message = format!("it matches the model `{model}` itself: write a pattern that only versions match");
        errors.require(!one_star || !matches_pattern(pattern, model), path, message);
    }
}

fn check_strategy(strategy: &Strategy, errors: &mut FieldErrors) {
    let total = strategy.total_weight;
    let range = format!("write {} to {}", WEIGHT_RANGE.start(), WEIGHT_RANGE.end());
    errors.require(WEIGHT_RANGE.contains(&total), "spec.strategy.totalWeight", range);
    let steps = &strategy.steps;
    errors.require(steps.len() <= MAX_STEPS, "spec.strategy.steps", format!("write at most {MAX_STEPS} steps"));
    for (index, step) in steps.iter().enumerate() {
        check_step(step, total, &format!("spec.strategy.steps[{index}]"), errors);
    }
    let header = strategy.sticky_header.as_deref().is_none_or(is_header_name);
    let message = format!("write the name of a header: 1 to {MAX_HEADER} letters, digits and !#$%&'*+-.^_`|~");
    errors.require(header, "spec.strategy.stickyHeader", message);
}

fn check_step(step: &Step, total: i32, path: &str, errors: &mut FieldErrors) {
    let one = step.set_weight.is_some() != step.pause.is_some();
    errors.require(one, path, "write exactly one of `setWeight` and `pause`");
    if let Some(weight) = step.set_weight {
        let message = format!("{weight} is not a weight: write 0 to {total} (`totalWeight`)");
        errors.require((0..=total).contains(&weight), format!("{path}.setWeight"), message);
    }
}

/// Returns an error for each immutable field that differs between `old` and `new`.
pub fn immutable_changes(old: &RolloutSpec, new: &RolloutSpec) -> Vec<FieldError> {
    let mut errors = FieldErrors(Vec::new());
    let message = "cannot be changed: create another Rollout";
    errors.require(old.model == new.model, "spec.model", message);
    errors.require(old.pool_ref == new.pool_ref, "spec.poolRef", message);
    errors.require(old.rewrite_ref == new.rewrite_ref, "spec.rewriteRef", message);
    let (before, after) = (&old.adapter, &new.adapter);
    let changed = before.id.is_some() && before.id == after.id && before.source != after.source;
    // Adding or removing the source does not change the weights of the id.
    let replaced = changed && before.source.is_some() && after.source.is_some();
    let message = "new weights need a new id: servers keep their cache of the old weights under the old id";
    errors.require(!replaced, "spec.adapter.source", message);
    errors.0
}

/// Counts characters, as Kubernetes does.
fn length(text: &str) -> usize {
    text.chars().count()
}

/// Returns whether `name` is a DNS subdomain name, which Kubernetes requires for most objects.
fn is_object_name(name: &str) -> bool {
    let part = |part: &str| {
        let alphanumeric = |byte: Option<u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        part.bytes().all(|byte| byte == b'-' || alphanumeric(Some(byte)))
            && alphanumeric(part.bytes().next())
            && alphanumeric(part.bytes().last())
    };
    name.len() <= MAX_NAME && name.split('.').all(part)
}

/// Returns whether `name` is a token of RFC 9110.
fn is_header_name(name: &str) -> bool {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    (1..=MAX_HEADER).contains(&name.len()) && name.bytes().all(token)
}

#[cfg(test)]
pub(crate) mod tests;
