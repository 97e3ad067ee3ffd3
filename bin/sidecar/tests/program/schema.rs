//! Tests that `/status` conforms to `docs/sidecar-status.schema.json`. `cargo xtask crds` checks the file against the
//! types.

use crate::{
    fake::{FakeVllm, FakeVllmConfig},
    testbed::{ConfigMapMount, ProgramTestbed, SidecarProgram, adapters_file},
};
use boon::{Compiler, SchemaIndex, Schemas};
use rollora_api::sidecar_status::AdapterState;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// The documented schema, made strict: unknown properties, which readers must accept from later versions, are errors.
struct StatusSchema {
    schemas: Schemas,
    index: SchemaIndex,
    /// The paths of all properties in the answers so far.
    seen_paths: BTreeSet<String>,
}

impl StatusSchema {
    fn read() -> Self {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/sidecar-status.schema.json");
        let mut schema = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        forbid_additional_properties(&mut schema);
        let (mut compiler, mut schemas) = (Compiler::new(), Schemas::new());
        compiler.enable_format_assertions();
        compiler.add_resource("http://schema/status", schema).unwrap();
        let index = compiler.compile("http://schema/status", &mut schemas).unwrap();
        Self { schemas, index, seen_paths: BTreeSet::new() }
    }

    fn validation_error(&self, answer: &Value) -> Option<String> {
        self.schemas.validate(answer, self.index).err().map(|error| format!("{error:#}\n{answer:#}"))
    }

    fn assert_valid_status(&mut self, sidecar: &SidecarProgram) {
        let (code, body) = sidecar.get("/status");
        let answer = serde_json::from_str(&body).unwrap();
        assert_eq!((code, self.validation_error(&answer)), (200, None));
        record_paths(&answer, "", &mut self.seen_paths);
    }
}

fn forbid_additional_properties(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            object.values_mut().for_each(forbid_additional_properties);
            if object.get("properties").is_some_and(Value::is_object) {
                object.insert("additionalProperties".to_owned(), json!(false));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(forbid_additional_properties),
        _ => {}
    }
}

fn record_paths(answer: &Value, path: &str, paths: &mut BTreeSet<String>) {
    match answer {
        Value::Object(object) => {
            object.iter().for_each(|(name, value)| record_paths(value, &format!("{path}.{name}"), paths));
        }
        Value::Array(items) => items.iter().for_each(|item| record_paths(item, path, paths)),
        Value::Null => {}
        _ => drop(paths.insert(path.to_owned())),
    }
}

#[test]
fn every_answer_conforms_to_the_schema() {
    let mut schema = StatusSchema::read();
    // Neither a file nor a server.
    let mount = ConfigMapMount::new();
    let mut sidecar = SidecarProgram::start_with_mount(&mount);
    schema.assert_valid_status(&sidecar);
    sidecar.wait_for("the file error", |sidecar| sidecar.status().config.error);
    schema.assert_valid_status(&sidecar);
    drop(sidecar);

    // Adapters that are verified, failed, held, and governed by no Rollout.
    let mut testbed = ProgramTestbed::with_verified(&["v1"]);
    schema.assert_valid_status(&testbed.sidecar);
    testbed.vllm.configure(|config| {
        config.failing.insert("bad".to_owned(), (404, "Loading lora bad failed: No adapter found for /x".to_owned()));
    });
    testbed.update_file(&["bad", "v2", "other"], &["v1"], Some("managed: [\"v*\"]\nadmitted: [v1]\nserving: [v1]\n"));
    testbed.sidecar.wait_for_state("v1", AdapterState::UnloadHeld);
    testbed.sidecar.wait_for_state("bad", AdapterState::Failed);
    testbed.sidecar.wait_for_state("other", AdapterState::Verified);
    testbed.vllm.mark_used("v1");
    testbed
        .sidecar
        .wait_for("the last use", |sidecar| sidecar.status().adapters.iter().find_map(|adapter| adapter.last_used));
    schema.assert_valid_status(&testbed.sidecar);
    testbed.vllm.kill();
    testbed.sidecar.wait_for("the outage", |sidecar| sidecar.status().problem);
    schema.assert_valid_status(&testbed.sidecar);

    for path in [
        ".server.endpoint",
        ".server.start",
        ".readiness.message",
        ".config.hash",
        ".config.error",
        ".baseModels",
        ".adapters.state",
        ".adapters.lastError.reason",
        ".adapters.nextTry",
        ".adapters.lastUsed",
        ".problem.reason",
        ".maxLoras",
        ".usageReadAt",
    ] {
        assert!(schema.seen_paths.contains(path), "{path} was in no answer: {:?}", schema.seen_paths);
    }
}

#[test]
fn schema_rejects_invalid_answers() {
    let schema = StatusSchema::read();
    let (vllm, mut mount) = (FakeVllm::start(FakeVllmConfig::default()), ConfigMapMount::new());
    mount.update(&adapters_file(vllm.port(), &["v1"], &[]), None);
    let mut sidecar = SidecarProgram::start_with_mount(&mount);
    sidecar.wait_for_state("v1", AdapterState::Verified);
    let valid: Value = serde_json::from_str(&sidecar.get("/status").1).unwrap();
    assert_eq!(schema.validation_error(&valid), None);
    let changes: [fn(&mut Value); 6] = [
        |answer| answer["adapters"][0]["state"] = json!("Perhaps"),
        |answer| answer["adapters"][0]["attempts"] = json!(-1),
        |answer| answer["adapters"][0]["nextTry"] = json!("soon"),
        |answer| answer["readiness"]["ready"] = json!("yes"),
        |answer| answer["secret"] = json!("an unknown property"),
        |answer| drop(answer.as_object_mut().unwrap().remove("config")),
    ];
    for (number, change) in changes.iter().enumerate() {
        let mut answer = valid.clone();
        change(&mut answer);
        assert!(schema.validation_error(&answer).is_some(), "change {number}: {answer:#}");
    }
}
