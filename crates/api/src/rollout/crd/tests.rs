use super::*;
use crate::rollout::{
    RolloutSpec, immutable_changes,
    validate::tests::{CASES, CHANGES, spec_before_change, valid_spec},
};
use kube::core::cel::Validator;
use serde_json::json;

/// The schema with its bounds also written as CEL rules, so that one evaluator checks both.
fn rules() -> Value {
    let definition = definition().unwrap();
    let schema = definition.spec.versions[0].schema.as_ref().unwrap();
    let mut schema = serde_json::to_value(schema.open_api_v3_schema.as_ref().unwrap()).unwrap();
    for_each_object(&mut schema, &mut |schema| {
        if schema.get("type").is_some_and(Value::is_string) {
            let bounds: Vec<Value> = bounds(schema).into_iter().map(|rule| json!({ "rule": rule })).collect();
            let rules = schema.entry("x-kubernetes-validations").or_insert_with(|| json!([]));
            rules.as_array_mut().unwrap().extend(bounds);
        }
    });
    schema
}

fn bounds(schema: &Map<String, Value>) -> Vec<String> {
    let forms = [
        ("minLength", "size(self) >= "),
        ("maxLength", "size(self) <= "),
        ("maxItems", "size(self) <= "),
        ("minimum", "self >= "),
        ("maximum", "self <= "),
    ];
    let number = |(keyword, form): (&str, &str)| {
        let bound = schema.get(keyword)?.as_f64()?;
        Some(format!("{form}{bound}"))
    };
    let pattern = schema.get("pattern").map(|pattern| format!("self.matches({pattern})"));
    forms.into_iter().filter_map(number).chain(pattern).collect()
}

fn object(spec: &RolloutSpec) -> Value {
    json!({
        "apiVersion": crate::names::API_VERSION,
        "kind": "Rollout",
        "metadata": { "name": "chat" },
        "spec": serde_json::to_value(spec).unwrap(),
    })
}

/// The errors that the API server would return.
fn validation_errors(rules: &Value, new: &RolloutSpec, old: Option<&RolloutSpec>) -> Vec<String> {
    match Validator::new().validate_with_defaults(rules, &object(new), old.map(object).as_ref()) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.into_vec().into_iter().map(|error| format!("{error:?}")).collect(),
    }
}

#[test]
fn cel_rules_compile_and_agree_with_validate() {
    let rules = rules();
    for (index, (change, _)) in CASES.iter().enumerate() {
        let mut spec = valid_spec();
        change(&mut spec);
        let (refusals, errors) = (validation_errors(&rules, &spec, None), spec.validate());
        assert!(refusals.iter().all(|refusal| !refusal.contains("Compil")), "case {index}: {refusals:?}");
        assert_eq!(refusals.is_empty(), errors.is_empty(), "case {index}: {refusals:?} {errors:?}");
    }
}

#[test]
fn cel_transition_rules_agree_with_immutable_changes() {
    let rules = rules();
    for (index, (change, _)) in CHANGES.iter().enumerate() {
        let (old, mut new) = (spec_before_change(), spec_before_change());
        change(&mut new);
        let (refusals, errors) = (validation_errors(&rules, &new, Some(&old)), immutable_changes(&old, &new));
        assert_eq!(refusals.is_empty(), errors.is_empty(), "case {index}: {refusals:?} {errors:?}");
    }
}

#[test]
fn names_are_limited_in_bytes_and_contain_no_commas() {
    let rules = rules();
    let accepted = |model: &str| {
        let mut object = object(&valid_spec());
        object["spec"]["model"] = model.into();
        Validator::new().validate_with_defaults(&rules, &object, None).is_ok()
    };
    for model in ["a", "a b", "é", &"x".repeat(253), &"é".repeat(126)] {
        assert!(accepted(model) && crate::names::ModelName::new(model).is_ok(), "{model}");
    }
    for model in ["", "a,b", "a\nb", "a\u{7f}", "a\u{85}", &"x".repeat(254), &"é".repeat(127)] {
        assert!(!accepted(model) && crate::names::ModelName::new(model).is_err(), "{model:?}");
    }
}

#[test]
fn every_string_and_array_has_a_bound() {
    let mut unbounded = Vec::new();
    let mut rules = rules();
    for_each_object(&mut rules, &mut |schema| {
        let bounded = |keyword: &str| schema.contains_key(keyword);
        // A duration is bounded by its pattern.
        let duration = schema.get("pattern") == Some(&json!(crate::duration::PATTERN));
        let is_bounded = match schema.get("type").and_then(Value::as_str) {
            Some("string") => duration || ["maxLength", "enum", "format"].into_iter().any(bounded),
            Some("array") => bounded("maxItems"),
            _ => true,
        };
        if !is_bounded {
            unbounded.push(format!("{schema:?}"));
        }
    });
    assert!(unbounded.is_empty(), "{unbounded:#?}");
}

#[test]
fn schema_is_structural_and_its_status_has_no_defaults() {
    let mut rules = rules();
    for_each_object(&mut rules, &mut |schema| {
        assert!(!schema.contains_key("nullable"), "{schema:?}");
        assert!(!schema.contains_key("additionalProperties"), "{schema:?}");
        assert!(!["oneOf", "anyOf", "allOf", "$ref"].into_iter().any(|key| schema.contains_key(key)), "{schema:?}");
    });
    assert_eq!(rules.pointer("/properties/spec/properties/strategy/properties/totalWeight/default"), Some(&json!(100)));
    let status = rules.pointer("/properties/status").unwrap().to_string();
    assert!(!status.contains("\"default\""), "the status must not have defaults");
}

#[test]
fn descriptions_list_the_values_of_open_ended_enums() {
    let rules = rules();
    let source = include_str!("../status.rs");
    for (name, field) in [
        ("Phase", "/properties/phase"),
        ("StepState", "/properties/step/properties/state"),
        ("RetirementState", "/properties/retired/items/properties/state"),
    ] {
        let description = rules.pointer(&format!("/properties/status{field}/description")).unwrap().as_str().unwrap();
        let body = source.split(&format!("pub enum {name} {{")).nth(1).unwrap().split("\n}").next().unwrap();
        let values: Vec<_> = body.lines().filter_map(|line| line.trim().strip_suffix(',')).collect();
        assert!(values.len() > 3, "found too few variants of {name}");
        for value in values {
            assert!(description.contains(value), "the description does not list {name}::{value}: {description}");
        }
    }
}

#[test]
fn committed_definition_is_up_to_date() {
    let committed = include_str!("../../../../../crds/rollouts.rollora.dev.yaml");
    assert_eq!(committed, yaml().unwrap(), "run `cargo xtask crds`");
}

#[test]
fn rollout_round_trips_through_the_custom_resource() {
    let spec = valid_spec();
    let resource: RolloutResource = serde_json::from_value(object(&spec)).unwrap();
    assert_eq!(resource.spec, spec);
    let rollout: crate::rollout::Rollout = serde_json::from_value(serde_json::to_value(&resource).unwrap()).unwrap();
    assert_eq!(rollout.spec, spec);
}
