//! Every answer of `/status` is as `docs/sidecar-status.schema.json` says. That the file is what the types say is
//! compared by `cargo xtask crds`.

use crate::{
    fake::{FakeVllm, FakeVllmConfig},
    testbed::{ConfigMapMount, ProgramTestbed, SidecarProgram, adapters_file},
};
use boon::{Compiler, SchemaIndex, Schemas};
use rollora_api::sidecar_status::AdapterState;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// The page's schema; and that it may not say more, which readers must expect of later versions, and tests not of this.
struct StatusSchema {
    schemas: Schemas,
    index: SchemaIndex,
    /// Every property that an answer had, as a path.
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

fn record_paths(answer: &Value, path: &str, seen: &mut BTreeSet<String>) {
    match answer {
        Value::Object(object) => {
            object.iter().for_each(|(name, value)| record_paths(value, &format!("{path}.{name}"), seen))
        }
        Value::Array(items) => items.iter().for_each(|item| record_paths(item, path, seen)),
        Value::Null => {}
        _ => drop(seen.insert(path.to_owned())),
    }
}

#[test]
fn every_answer_is_as_the_schema_says_from_the_first_to_the_last() {
    let mut schema = StatusSchema::read();
    // Nothing is known: no file, no server.
    let mount = ConfigMapMount::new();
    let mut sidecar = SidecarProgram::start_with_mount(&mount);
    schema.assert_valid_status(&sidecar);
    sidecar.wait_for("why", |sidecar| sidecar.status().config.error);
    schema.assert_valid_status(&sidecar);
    drop(sidecar);

    // One that works, one that fails, one that is held, one that nobody listed.
    let mut bed = ProgramTestbed::with_verified(&["v1"]);
    schema.assert_valid_status(&bed.sidecar);
    bed.vllm.configure(|knobs| {
        knobs.failing.insert("bad".to_owned(), (404, "Loading lora bad failed: No adapter found for /x".to_owned()));
    });
    bed.update_file(&["bad", "v2", "other"], &["v1"], Some("managed: [\"v*\"]\nadmitted: [v1]\nserving: [v1]\n"));
    bed.sidecar.wait_for_state("v1", AdapterState::UnloadHeld);
    bed.sidecar.wait_for_state("bad", AdapterState::Failed);
    bed.sidecar.wait_for_state("other", AdapterState::Verified);
    bed.vllm.mark_used("v1");
    bed.sidecar.wait_for("its use", |sidecar| sidecar.status().adapters.iter().find_map(|adapter| adapter.last_used));
    schema.assert_valid_status(&bed.sidecar);
    bed.vllm.kill();
    bed.sidecar.wait_for("it is away", |sidecar| sidecar.status().problem);
    schema.assert_valid_status(&bed.sidecar);

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
fn the_schema_refuses_what_no_sidecar_answers() {
    let schema = StatusSchema::read();
    let (vllm, mut mount) = (FakeVllm::start(FakeVllmConfig::default()), ConfigMapMount::new());
    mount.update(&adapters_file(vllm.port(), &["v1"], &[]), None);
    let mut sidecar = SidecarProgram::start_with_mount(&mount);
    sidecar.wait_for_state("v1", AdapterState::Verified);
    let good: Value = serde_json::from_str(&sidecar.get("/status").1).unwrap();
    assert_eq!(schema.validation_error(&good), None);
    let changes: [fn(&mut Value); 6] = [
        |answer| answer["adapters"][0]["state"] = json!("Perhaps"),
        |answer| answer["adapters"][0]["attempts"] = json!(-1),
        |answer| answer["adapters"][0]["nextTry"] = json!("soon"),
        |answer| answer["readiness"]["ready"] = json!("yes"),
        |answer| answer["secret"] = json!("more than there is"),
        |answer| drop(answer.as_object_mut().unwrap().remove("config")),
    ];
    for (number, change) in changes.iter().enumerate() {
        let mut answer = good.clone();
        change(&mut answer);
        assert!(schema.validation_error(&answer).is_some(), "change {number}: {answer:#}");
    }
}
