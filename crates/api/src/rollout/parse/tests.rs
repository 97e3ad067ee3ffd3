use super::*;

/// A Rollout that sets every field.
const EXAMPLE: &str = r#"apiVersion: rollora.dev/v1alpha1
kind: Rollout
metadata: { name: small-segment-lora }
spec:
  model: small-segment-lora
  poolRef: { name: vllm-qwen3-32b }
  adapter:
    follow: { pattern: "small-segment-lora-v*" }
  adaptersRef: { name: vllm-qwen3-32b-adapters, key: configmap.yaml }
  rewriteRef: { name: small-segment-lora-rewrite }
  router: ExtProc
  strategy:
    steps:
    - setWeight: 10
    - pause: { duration: 10m }
    - setWeight: 50
    - pause: {}
    - setWeight: 100
    totalWeight: 100
    progressDeadline: 30m
    onFailure: Rollback
    stickyHeader: x-session-id
  cleanup: { policy: Unload, delay: 5m, quietFor: 2m }
  paused: false
"#;

#[test]
fn rollout_with_every_field_is_parsed() {
    let rollout = Rollout::from_yaml(EXAMPLE).unwrap();
    assert_eq!(rollout.metadata.name, "small-segment-lora");
    assert_eq!(rollout.spec.strategy.steps.len(), 5);
    assert_eq!(rollout.spec.strategy.steps[1].pause.as_ref().unwrap().duration.unwrap().to_string(), "10m");
    assert_eq!(rollout.spec.pool_ref.group, "inference.networking.k8s.io");
    let with_bom = format!("\u{feff}{}", EXAMPLE.replace('\n', "\r\n"));
    assert_eq!(Rollout::from_yaml(&with_bom).unwrap(), rollout);
}

#[test]
fn errors_name_line_field_and_fix() {
    let cases = [
        (
            "- setWeight: 10\n",
            "- setweight: 10\n",
            "line 14: spec.strategy.steps[0].setweight: unknown field `setweight`: did you mean `setWeight`?",
        ),
        ("  paused: false", "  puased: false", "line 24: spec.puased: unknown field `puased`: did you mean `paused`?"),
        (
            "  router:",
            "  whatever: 1\n  router:",
            "line 11: spec.whatever: unknown field `whatever`: expected one of model, poolRef, adapter, adaptersRef, rewriteRef, router, residency, strategy, cleanup, paused",
        ),
        (
            "setWeight: 50",
            "setWeight: fifty",
            "line 16: spec.strategy.steps[2].setWeight: a whole number is expected here",
        ),
        (
            "setWeight: 50",
            "setWeight: 101",
            "line 16: spec.strategy.steps[2].setWeight: 101 is not a weight: write 0 to 100 (`totalWeight`)",
        ),
        (
            "setWeight: 50",
            "setWeight: -1",
            "line 16: spec.strategy.steps[2].setWeight: -1 is not a weight: write 0 to 100 (`totalWeight`)",
        ),
        (
            "duration: 10m",
            "duration: 10 min",
            "line 15: spec.strategy.steps[1].pause.duration: `10 min` is not a duration: write one to four numbers with h, m, s or ms, for example 10m or 1h30m",
        ),
        (
            "kind: Rollout",
            "kind: Deployment",
            "line 2: kind: `Deployment` is not a Rollout of this version: write `kind: Rollout`",
        ),
        (
            "rollora.dev/v1alpha1",
            "argoproj.io/v1alpha1",
            "line 1: apiVersion: `argoproj.io/v1alpha1` is not a Rollout of this version: write `apiVersion: rollora.dev/v1alpha1`",
        ),
        ("kind: Rollout\n", "", "line 1: kind: `kind` is missing: add it"),
        ("  model: small-segment-lora\n", "", "line 5: spec.model: `model` is missing: add it"),
        ("model: small-segment-lora\n", "model: \"\"\n", "line 5: spec.model: the model name is empty: write the name"),
        (
            "follow: { pattern: \"small-segment-lora-v*\" }",
            "id: small-segment-lora",
            "line 8: spec.adapter.id: an adapter id cannot equal the model name that clients send: give the version another id",
        ),
        (
            "onFailure: Rollback",
            "onFailure: Rolback",
            "line 21: spec.strategy.onFailure: unknown value `Rolback`: did you mean `Rollback`?",
        ),
        ("paused: false", "paused: maybe", "line 24: spec.paused: `true` or `false` is expected here"),
        (
            "    - pause: {}\n",
            "    - {}\n",
            "line 17: spec.strategy.steps[3]: write exactly one of `setWeight` and `pause`",
        ),
        (
            "metadata: { name: small-segment-lora }",
            "metadata: { name: Small }",
            "line 3: metadata.name: use 1 to 253 lower case letters, digits, `-` and `.`, with a letter or digit at both ends",
        ),
        (
            "  router: ExtProc",
            "  router: ExtProc\n  router: ExtProc",
            "line 12: spec.router: the key `router` is written twice: remove one of the two",
        ),
        (
            "  paused: false\n",
            "---\nkind: Rollout\n",
            "line 25: a second YAML document begins here: keep one document in the file",
        ),
    ];
    for (from, to, expected) in cases {
        assert!(EXAMPLE.contains(from), "{from}");
        let error = Rollout::from_yaml(&EXAMPLE.replacen(from, to, 1)).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert!(error.line().is_some());
    }
}

#[test]
fn all_validation_errors_are_reported_together() {
    let text = EXAMPLE.replace("setWeight: 50", "setWeight: 500").replace("setWeight: 100", "setWeight: 1000");
    let error = Rollout::from_yaml(&text).unwrap_err();
    let lines: Vec<_> = error.diagnostics.iter().map(|diagnostic| diagnostic.line).collect();
    assert_eq!(lines, [Some(16), Some(18)]);
}

#[test]
fn error_of_invalid_yaml_names_the_line() {
    for (text, line) in [("kind: Rollout\nspec: [\n", 2), ("kind: Rollout\n\tspec: x\n", 1), ("kind: \"Rollout\n", 1)] {
        let error = Rollout::from_yaml(text).unwrap_err();
        assert_eq!(error.line(), Some(line), "{text:?}: {error}");
    }
    assert!(Rollout::from_yaml("").is_err());
}
