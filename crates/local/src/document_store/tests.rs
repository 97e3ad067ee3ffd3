use super::*;
use crate::snapshot::tests::ROLLOUT_FILE;
use proptest::prelude::*;
use rollora_api::rollout::{IntentKind, RolloutStatus, spec::AdaptersRef};
use rollora_operator::ports::{
    AdaptersWrite, DocumentStore, Precondition, ReadError, ResourceVersion, RolloutEvent, RolloutKey, Versioned,
};
use std::{fs, os::unix::fs::PermissionsExt};

const ADAPTERS_FILE: &str = "# ours
vLLMLoRAConfig:
  ensureExist:
    models:
    - id: alias-v1   # the first
      source: /a/v1
";

struct StoreFixture {
    folder: tempfile::TempDir,
}

impl StoreFixture {
    fn new() -> Self {
        let machine = Self { folder: tempfile::tempdir().unwrap() };
        machine.write_file("rollout.yaml", ROLLOUT_FILE);
        machine.write_file("adapters.yaml", ADAPTERS_FILE);
        machine
    }

    fn write_file(&self, file: &str, text: &str) {
        fs::write(self.folder.path().join(file), text).unwrap();
    }

    fn read_adapters_file(&self) -> String {
        fs::read_to_string(self.folder.path().join("adapters.yaml")).unwrap()
    }

    /// A store, as a process gets it at its start; the one before has to be gone.
    fn open(&self) -> Result<LocalDocumentStore, OpenError> {
        let folder = StateFolder::open(&self.folder.path().join("state"))?;
        let path = |file: &str| self.folder.path().join(file);
        LocalDocumentStore::open(folder, InputFiles { rollout: path("rollout.yaml"), adapters: path("adapters.yaml") })
    }

    fn start(&self) -> LocalDocumentStore {
        self.open().unwrap()
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn reference() -> AdaptersRef {
    AdaptersRef { name: "adapters".to_owned(), key: "configmap.yaml".to_owned() }
}

fn rollout(store: &LocalDocumentStore) -> Versioned<Arc<Rollout>> {
    run(DocumentStore::rollout(store, &store.rollout_key())).unwrap().unwrap()
}

fn status(message: &str) -> RolloutStatus {
    RolloutStatus { message: message.to_owned(), ..RolloutStatus::default() }
}

fn write_status(store: &LocalDocumentStore, message: &str) -> WriteOutcome {
    run(store.write_status(&store.rollout_key(), &rollout(store).resource_version, &status(message)))
}

fn rewrite(target: &str) -> InferenceModelRewrite {
    serde_json::from_value(serde_json::json!({
        "apiVersion": "llm-d.ai/v1alpha2",
        "kind": "InferenceModelRewrite",
        "metadata": { "name": "alias" },
        "spec": { "poolRef": { "name": "pool" }, "rules": [{
            "matches": [{ "model": { "value": "alias" } }], "targets": [{ "modelRewrite": target }],
        }] },
    }))
    .unwrap()
}

fn write_rewrite(store: &LocalDocumentStore, target: &str) -> WriteOutcome {
    let present = run(store.rewrites(&store.rollout_key())).unwrap();
    let precondition = match present.first() {
        Some(present) => Precondition::Unchanged(present.resource_version.clone()),
        None => Precondition::Absent,
    };
    run(store.write_rewrite(&store.rollout_key(), &rewrite(target), &precondition))
}

fn write_adapters(
    store: &LocalDocumentStore,
    version: &ResourceVersion,
    user: Option<&str>,
    key: Option<&str>,
) -> WriteOutcome {
    let write = AdaptersWrite { user_text: user.map(str::to_owned), directives_text: key.map(str::to_owned) };
    run(store.write_adapters(&store.rollout_key(), &reference(), version, &write))
}

fn adapters(store: &LocalDocumentStore) -> Result<Versioned<rollora_operator::ports::AdaptersDocument>, ReadError> {
    run(DocumentStore::adapters(store, &store.rollout_key(), &reference(), None)).map(Option::unwrap)
}

fn active_target(store: &LocalDocumentStore) -> Option<String> {
    let report = store.rules().report(clock::now());
    Some(report.models.get("alias")?.targets.first()?.model_rewrite.clone())
}

#[test]
fn everything_is_there_again_after_a_restart() {
    let machine = StoreFixture::new();
    let store = machine.start();
    let uid = rollout(&store).value.metadata.uid.clone();
    assert!(matches!(write_status(&store, "far"), WriteOutcome::Done(_)));
    assert!(matches!(write_rewrite(&store, "alias-v1"), WriteOutcome::Done(_)));
    let version = adapters(&store).unwrap().resource_version;
    assert!(matches!(write_adapters(&store, &version, None, Some("managed: ['alias-v*']\n")), WriteOutcome::Done(_)));
    let event = RolloutEvent { warning: false, reason: "X".to_owned(), message: "happened".to_owned() };
    run(store.publish_event(&store.rollout_key(), &event));
    let intent = Intent { id: "1".to_owned(), verb: IntentKind::Promote, revision: 1, step: None, claimed_by: None };
    run(store.record_intent(intent)).unwrap();
    let before = (rollout(&store), adapters(&store).unwrap(), run(store.rewrites(&store.rollout_key())).unwrap());
    drop(store);

    let store = machine.start();
    let after = (rollout(&store), adapters(&store).unwrap(), run(store.rewrites(&store.rollout_key())).unwrap());
    assert_eq!(before, after);
    assert_eq!(
        (after.0.value.metadata.uid.clone(), after.0.value.status.clone().unwrap().message),
        (uid, "far".to_owned())
    );
    assert_eq!(active_target(&store).as_deref(), Some("alias-v1"), "the gateway routes before anybody decided");
    assert_eq!(store.snapshot().events[0].message, "happened");
    assert_eq!(store.snapshot().directives.parsed.as_ref().unwrap().managed, ["alias-v*"]);
}

#[test]
fn the_rules_change_in_the_write_of_the_rewrite() {
    let machine = StoreFixture::new();
    let store = machine.start();
    for target in ["alias-v1", "alias-v2"] {
        assert!(matches!(write_rewrite(&store, target), WriteOutcome::Done(_)));
        assert_eq!(active_target(&store).as_deref(), Some(target));
    }
}

#[test]
fn a_write_that_nobody_waits_for_any_more_is_not_half_done() {
    let machine = StoreFixture::new();
    let store = machine.start();
    run(async {
        let (key, rewrite) = (store.rollout_key(), rewrite("alias-v1"));
        let mut write = Box::pin(store.write_rewrite(&key, &rewrite, &Precondition::Absent));
        assert!(futures_util::poll!(write.as_mut()).is_pending());
        drop(write);
        while active_target(&store).is_none() {
            tokio::task::yield_now().await;
        }
    });
    drop(store);
    assert_eq!(active_target(&machine.start()).as_deref(), Some("alias-v1"));
}

#[test]
fn the_edit_of_the_adapters_file_keeps_every_other_byte_and_its_permissions() {
    let wrapped = "# note\nkind: ConfigMap\ndata:\n  configmap.yaml: |\n    # ours\n    vLLMLoRAConfig:\n      \
                   ensureExist:\n        models: []\n  other: 1\n";
    for (text, inner, edited, expected) in [
        (ADAPTERS_FILE, ADAPTERS_FILE, "# ours\nvLLMLoRAConfig: {}\n", "# ours\nvLLMLoRAConfig: {}\n".to_owned()),
        (
            wrapped,
            "# ours\nvLLMLoRAConfig:\n  ensureExist:\n    models: []\n",
            "# ours\nvLLMLoRAConfig:\n  ensureNotExist:\n    models: []\n",
            wrapped.replace("ensureExist", "ensureNotExist"),
        ),
    ] {
        let machine = StoreFixture::new();
        machine.write_file("adapters.yaml", text);
        let path = machine.folder.path().join("adapters.yaml");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o664)).unwrap();
        let store = machine.start();
        let read = adapters(&store).unwrap();
        assert_eq!(read.value.user_text, inner);
        let written = write_adapters(&store, &read.resource_version, Some(edited), None);
        assert_eq!(written, WriteOutcome::Done(adapters(&store).unwrap().resource_version));
        assert_eq!(machine.read_adapters_file(), expected);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o664);
        assert_eq!(adapters(&store).unwrap().value.user_text, edited);
    }
}

#[test]
fn an_edit_by_a_person_that_nobody_has_read_yet_is_not_overwritten() {
    let machine = StoreFixture::new();
    let store = machine.start();
    let version = adapters(&store).unwrap().resource_version;
    let theirs = ADAPTERS_FILE.replace("alias-v1", "alias-v7");
    for text in [theirs.as_str(), "broken: ["] {
        machine.write_file("adapters.yaml", text);
        assert_eq!(write_adapters(&store, &version, Some("vLLMLoRAConfig: {}\n"), None), WriteOutcome::Conflict);
        assert_eq!(machine.read_adapters_file(), text);
    }
}

#[test]
fn an_edit_that_could_not_be_read_again_is_refused() {
    let machine = StoreFixture::new();
    let store = machine.start();
    let version = adapters(&store).unwrap().resource_version;
    assert!(matches!(write_adapters(&store, &version, Some("nonsense: 1\n"), None), WriteOutcome::Refused(_)));
    assert!(matches!(write_adapters(&store, &version, None, Some("managed: 3\n")), WriteOutcome::Refused(_)));
    assert_eq!(machine.read_adapters_file(), ADAPTERS_FILE);
    assert_eq!(adapters(&store).unwrap().resource_version, version);
}

#[test]
fn a_file_that_is_broken_leaves_what_was_in_force_and_is_named() {
    let machine = StoreFixture::new();
    let store = machine.start();
    let generation = rollout(&store).value.metadata.generation;
    machine.write_file("rollout.yaml", &ROLLOUT_FILE.replace("model: alias", "model: alias\n  modle: 1"));
    machine.write_file(
        "adapters.yaml",
        "vLLMLoRAConfig:\n  ensureExist: {models: [{id: a, source: b}, {id: a, source: c}]}\n",
    );
    input::read_both(store.inputs()).map_or_else(
        |problems| {
            store.apply_rollout_file(Err(problems[0].clone()));
            store.apply_adapters_file(Err(problems[1].clone()));
        },
        |_| panic!("both are broken"),
    );
    let picture = store.snapshot();
    let problem = picture.problems.rollout.clone().unwrap();
    assert!(problem.contains("rollout.yaml: line 6") && problem.contains("modle"), "{problem}");
    let problem = picture.problems.adapters.clone().unwrap();
    assert!(problem.contains("adapters.yaml: line 2") && problem.contains("listed twice"), "{problem}");
    assert_eq!(rollout(&store).value.metadata.generation, generation);
    assert_eq!(picture.adapters.file.ensure_exist[0].id.as_str(), "alias-v1");
    assert!(matches!(adapters(&store), Err(ReadError::Invalid(said)) if said == problem));
}

#[test]
fn what_cannot_change_is_refused_with_its_line_at_a_start_and_later() {
    let machine = StoreFixture::new();
    drop(machine.start());
    let other = ROLLOUT_FILE.replace("model: alias", "model: another");
    machine.write_file("rollout.yaml", &other);
    let OpenError::Input(problems) = machine.open().err().unwrap() else { panic!("bad input") };
    assert!(problems[0].contains("rollout.yaml: line 5: spec.model"), "{problems:?}");

    machine.write_file("rollout.yaml", ROLLOUT_FILE);
    let store = machine.start();
    let path = &store.inputs().rollout;
    store.apply_rollout_file(input::parse_rollout(path, other));
    assert!(store.snapshot().problems.rollout.as_ref().unwrap().contains("line 5: spec.model"));
    assert_eq!(rollout(&store).value.spec.model.as_str(), "alias");
}

#[test]
fn a_changed_spec_is_taken_at_the_next_start() {
    let machine = StoreFixture::new();
    drop(machine.start());
    machine.write_file("rollout.yaml", &format!("{ROLLOUT_FILE}  paused: true\n"));
    let taken = rollout(&machine.start()).value;
    assert_eq!((taken.spec.paused, taken.metadata.generation), (true, Some(2)));
}

#[test]
fn everything_that_is_wrong_with_the_files_is_said_at_once() {
    let machine = StoreFixture::new();
    machine.write_file("rollout.yaml", "kind: Rollout\n");
    fs::remove_file(machine.folder.path().join("adapters.yaml")).unwrap();
    let OpenError::Input(problems) = machine.open().err().unwrap() else { panic!("bad input") };
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[1].contains("adapters.yaml: there is no such file"), "{problems:?}");
}

#[test]
fn a_damaged_document_of_the_state_is_named() {
    let machine = StoreFixture::new();
    drop(machine.start());
    machine.write_file("state/rollout.json", "{\n");
    let said = machine.open().err().unwrap().to_string();
    assert!(said.contains("state/rollout.json line 2") && said.contains("move the file away"), "{said}");
}

#[test]
fn changes_begin_with_the_rollout_and_go_on_with_what_the_operator_should_look_at() {
    use futures_util::StreamExt;
    let machine = StoreFixture::new();
    let store = machine.start();
    run(async {
        let mut changes = std::pin::pin!(store.changes());
        let key = RolloutKey { namespace: None, name: "alias".to_owned() };
        assert_eq!(changes.next().await.as_ref(), Some(&key));
        assert!(futures_util::poll!(changes.next()).is_pending());
        store.apply_adapters_file(input::parse_adapters(
            &store.inputs().adapters,
            "vLLMLoRAConfig: {}\n",
            "configmap.yaml",
        ));
        assert_eq!(changes.next().await.as_ref(), Some(&key));
    });
}

/// One write of the operator or of a person.
#[derive(Debug, Clone)]
enum StoreOp {
    Status(u8),
    Rewrite(u8),
    Directives(u8),
    Restart,
    /// A process that is killed in the middle of its next write: what it leaves is a temporary file, cut anywhere.
    Killed(&'static str, u8),
}

fn store_op() -> impl Strategy<Value = StoreOp> {
    prop_oneof![
        any::<u8>().prop_map(StoreOp::Status),
        (0..4_u8).prop_map(StoreOp::Rewrite),
        (0..4_u8).prop_map(StoreOp::Directives),
        Just(StoreOp::Restart),
        (prop::sample::select(vec![ROLLOUT_JSON, REWRITES_JSON, DIRECTIVES_YAML, EVENTS_JSON]), any::<u8>())
            .prop_map(|(file, cut)| StoreOp::Killed(file, cut)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn what_was_done_is_there_whenever_the_process_is_killed(steps in proptest::collection::vec(store_op(), 1..12)) {
        let machine = StoreFixture::new();
        let mut store = machine.start();
        let (mut message, mut target, mut admitted) = (None, None, None);
        for step in steps {
            match step {
                StoreOp::Status(number) => {
                    prop_assert!(matches!(write_status(&store, &number.to_string()), WriteOutcome::Done(_)));
                    message = Some(number.to_string());
                }
                StoreOp::Rewrite(number) => {
                    let name = format!("v{number}");
                    prop_assert!(matches!(write_rewrite(&store, &name), WriteOutcome::Done(_)));
                    target = Some(name);
                }
                StoreOp::Directives(number) => {
                    let version = adapters(&store).unwrap().resource_version;
                    let text = format!("admitted: [v{number}]\n");
                    prop_assert!(matches!(write_adapters(&store, &version, None, Some(&text)), WriteOutcome::Done(_)));
                    admitted = Some(text);
                }
                StoreOp::Restart => {
                    drop(store);
                    store = machine.start();
                }
                StoreOp::Killed(file, cut) => {
                    let whole = fs::read(store.0.folder.document_path(file)).unwrap_or_default();
                    let cut = whole.len() * usize::from(cut) / 255;
                    fs::write(store.0.folder.document_path(&format!(".{file}.writing")), &whole[..cut]).unwrap();
                    drop(store);
                    store = machine.start();
                }
            }
            prop_assert_eq!(rollout(&store).value.status.clone().map(|status| status.message), message.clone());
            prop_assert_eq!(active_target(&store), target.clone());
            prop_assert_eq!(adapters(&store).unwrap().value.directives_text, admitted.clone());
        }
    }
}
