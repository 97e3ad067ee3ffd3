//! Every answer of `/status` is as `docs/sidecar-status.schema.json` says. That the file is what the types say is
//! compared by `cargo xtask crds`.

use crate::{
    bed::{Bed, Mount, Program, adapters},
    fake::{Fake, Knobs},
};
use boon::{Compiler, SchemaIndex, Schemas};
use rollora_api::sidecar_status::AdapterState;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// The page's schema; and that it may not say more, which readers must expect of later versions, and tests not of this.
struct Schema {
    schemas: Schemas,
    index: SchemaIndex,
    /// Every property that an answer had, as a path.
    seen: BTreeSet<String>,
}

impl Schema {
    fn read() -> Self {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/sidecar-status.schema.json");
        let mut schema = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        close(&mut schema);
        let (mut compiler, mut schemas) = (Compiler::new(), Schemas::new());
        compiler.enable_format_assertions();
        compiler.add_resource("http://schema/status", schema).unwrap();
        let index = compiler.compile("http://schema/status", &mut schemas).unwrap();
        Self { schemas, index, seen: BTreeSet::new() }
    }

    fn refusal(&self, answer: &Value) -> Option<String> {
        self.schemas.validate(answer, self.index).err().map(|error| format!("{error:#}\n{answer:#}"))
    }

    fn holds(&mut self, sidecar: &Program) {
        let (code, body) = sidecar.get("/status");
        let answer = serde_json::from_str(&body).unwrap();
        assert_eq!((code, self.refusal(&answer)), (200, None));
        note(&answer, "", &mut self.seen);
    }
}

fn close(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            object.values_mut().for_each(close);
            if object.get("properties").is_some_and(Value::is_object) {
                object.insert("additionalProperties".to_owned(), json!(false));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

fn note(answer: &Value, path: &str, seen: &mut BTreeSet<String>) {
    match answer {
        Value::Object(object) => object.iter().for_each(|(name, value)| note(value, &format!("{path}.{name}"), seen)),
        Value::Array(items) => items.iter().for_each(|item| note(item, path, seen)),
        Value::Null => {}
        _ => drop(seen.insert(path.to_owned())),
    }
}

#[test]
fn every_answer_is_as_the_schema_says_from_the_first_to_the_last() {
    let mut schema = Schema::read();
    // Nothing is known: no file, no server.
    let mount = Mount::new();
    let mut sidecar = Program::beside(&mount);
    schema.holds(&sidecar);
    sidecar.until("why", |sidecar| sidecar.status().config.error);
    schema.holds(&sidecar);
    drop(sidecar);

    // One that works, one that fails, one that is held, one that nobody listed.
    let mut bed = Bed::settled(&["v1"]);
    schema.holds(&bed.sidecar);
    bed.vllm.set(|knobs| {
        knobs.failing.insert("bad".to_owned(), (404, "Loading lora bad failed: No adapter found for /x".to_owned()));
    });
    bed.swap(&["bad", "v2", "other"], &["v1"], Some("managed: [\"v*\"]\nadmitted: [v1]\nserving: [v1]\n"));
    bed.sidecar.until_state("v1", AdapterState::UnloadHeld);
    bed.sidecar.until_state("bad", AdapterState::Failed);
    bed.sidecar.until_state("other", AdapterState::Verified);
    bed.vllm.use_now("v1");
    bed.sidecar.until("its use", |sidecar| sidecar.status().adapters.iter().find_map(|adapter| adapter.last_used));
    schema.holds(&bed.sidecar);
    bed.vllm.end();
    bed.sidecar.until("it is away", |sidecar| sidecar.status().problem);
    schema.holds(&bed.sidecar);

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
        ".usesReadAt",
    ] {
        assert!(schema.seen.contains(path), "{path} was in no answer: {:?}", schema.seen);
    }
}

#[test]
fn the_schema_refuses_what_no_sidecar_answers() {
    let schema = Schema::read();
    let (vllm, mut mount) = (Fake::start(Knobs::default()), Mount::new());
    mount.swap(&adapters(vllm.port(), &["v1"], &[]), None);
    let mut sidecar = Program::beside(&mount);
    sidecar.until_state("v1", AdapterState::Verified);
    let good: Value = serde_json::from_str(&sidecar.get("/status").1).unwrap();
    assert_eq!(schema.refusal(&good), None);
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
        assert!(schema.refusal(&answer).is_some(), "change {number}: {answer:#}");
    }
}
