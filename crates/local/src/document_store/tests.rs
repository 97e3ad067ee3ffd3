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
        let fixture = Self { folder: tempfile::tempdir().unwrap() };
        fixture.write_file("rollout.yaml", ROLLOUT_FILE);
        fixture.write_file("adapters.yaml", ADAPTERS_FILE);
        fixture
    }

    fn write_file(&self, file: &str, text: &str) {
        fs::write(self.folder.path().join(file), text).unwrap();
    }

    fn read_adapters_file(&self) -> String {
        fs::read_to_string(self.folder.path().join("adapters.yaml")).unwrap()
    }

    /// Opens the store as a process does at its start; an earlier store must be dropped before.
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
fn all_documents_survive_a_restart() {
    let fixture = StoreFixture::new();
    let store = fixture.start();
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

    let store = fixture.start();
    let after = (rollout(&store), adapters(&store).unwrap(), run(store.rewrites(&store.rollout_key())).unwrap());
    assert_eq!(before, after);
    assert_eq!(
        (after.0.value.metadata.uid.clone(), after.0.value.status.clone().unwrap().message),
        (uid, "far".to_owned())
    );
    assert_eq!(active_target(&store).as_deref(), Some("alias-v1"), "the gateway routes before the first decision");
    assert_eq!(store.snapshot().events[0].message, "happened");
    assert_eq!(store.snapshot().directives.parsed.as_ref().unwrap().managed, ["alias-v*"]);
}

#[test]
fn rules_change_within_the_write_of_a_rewrite() {
    let fixture = StoreFixture::new();
    let store = fixture.start();
    for target in ["alias-v1", "alias-v2"] {
        assert!(matches!(write_rewrite(&store, target), WriteOutcome::Done(_)));
        assert_eq!(active_target(&store).as_deref(), Some(target));
    }
}

#[test]
fn canceled_write_is_completed() {
    let fixture = StoreFixture::new();
    let store = fixture.start();
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
    assert_eq!(active_target(&fixture.start()).as_deref(), Some("alias-v1"));
}

#[test]
fn edit_of_the_adapters_file_keeps_other_bytes_and_permissions() {
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
        let fixture = StoreFixture::new();
        fixture.write_file("adapters.yaml", text);
        let path = fixture.folder.path().join("adapters.yaml");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o664)).unwrap();
        let store = fixture.start();
        let read = adapters(&store).unwrap();
        assert_eq!(read.value.user_text, inner);
        let written = write_adapters(&store, &read.resource_version, Some(edited), None);
        assert_eq!(written, WriteOutcome::Done(adapters(&store).unwrap().resource_version));
        assert_eq!(fixture.read_adapters_file(), expected);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o664);
        assert_eq!(adapters(&store).unwrap().value.user_text, edited);
    }
}

#[test]
fn unread_edit_by_a_person_is_not_overwritten() {
    let fixture = StoreFixture::new();
    let store = fixture.start();
    let version = adapters(&store).unwrap().resource_version;
    let edited = ADAPTERS_FILE.replace("alias-v1", "alias-v7");
    for text in [edited.as_str(), "broken: ["] {
        fixture.write_file("adapters.yaml", text);
        assert_eq!(write_adapters(&store, &version, Some("vLLMLoRAConfig: {}\n"), None), WriteOutcome::Conflict);
        assert_eq!(fixture.read_adapters_file(), text);
    }
}

#[test]
fn write_of_an_invalid_text_is_refused() {
    let fixture = StoreFixture::new();
    let store = fixture.start();
    let version = adapters(&store).unwrap().resource_version;
    assert!(matches!(write_adapters(&store, &version, Some("nonsense: 1\n"), None), WriteOutcome::Refused(_)));
    assert!(matches!(write_adapters(&store, &version, None, Some("managed: 3\n")), WriteOutcome::Refused(_)));
    assert_eq!(fixture.read_adapters_file(), ADAPTERS_FILE);
    assert_eq!(adapters(&store).unwrap().resource_version, version);
}

#[test]
fn invalid_files_are_reported_and_keep_the_last_valid_content() {
    let fixture = StoreFixture::new();
    let store = fixture.start();
    let generation = rollout(&store).value.metadata.generation;
    fixture.write_file("rollout.yaml", &ROLLOUT_FILE.replace("model: alias", "model: alias\n  modle: 1"));
    fixture.write_file(
        "adapters.yaml",
        "vLLMLoRAConfig:\n  ensureExist: {models: [{id: a, source: b}, {id: a, source: c}]}\n",
    );
    input::read_both(store.inputs()).map_or_else(
        |problems| {
            store.apply_rollout_file(Err(problems[0].clone()));
            store.apply_adapters_file(Err(problems[1].clone()));
        },
        |_| panic!("both files are invalid"),
    );
    let snapshot = store.snapshot();
    let problem = snapshot.problems.rollout.clone().unwrap();
    assert!(problem.contains("rollout.yaml: line 6") && problem.contains("modle"), "{problem}");
    let problem = snapshot.problems.adapters.clone().unwrap();
    assert!(problem.contains("adapters.yaml: line 2") && problem.contains("listed twice"), "{problem}");
    assert_eq!(rollout(&store).value.metadata.generation, generation);
    assert_eq!(snapshot.adapters.file.ensure_exist[0].id.as_str(), "alias-v1");
    assert!(matches!(adapters(&store), Err(ReadError::Invalid(error)) if error == problem));
}

#[test]
fn change_of_an_immutable_field_is_refused_with_its_line() {
    let fixture = StoreFixture::new();
    drop(fixture.start());
    let other = ROLLOUT_FILE.replace("model: alias", "model: another");
    fixture.write_file("rollout.yaml", &other);
    let OpenError::Input(problems) = fixture.open().err().unwrap() else { panic!("bad input") };
    assert!(problems[0].contains("rollout.yaml: line 5: spec.model"), "{problems:?}");

    fixture.write_file("rollout.yaml", ROLLOUT_FILE);
    let store = fixture.start();
    let path = &store.inputs().rollout;
    store.apply_rollout_file(input::parse_rollout(path, other));
    assert!(store.snapshot().problems.rollout.as_ref().unwrap().contains("line 5: spec.model"));
    assert_eq!(rollout(&store).value.spec.model.as_str(), "alias");
}

#[test]
fn spec_changed_while_stopped_is_applied_at_the_next_start() {
    let fixture = StoreFixture::new();
    drop(fixture.start());
    fixture.write_file("rollout.yaml", &format!("{ROLLOUT_FILE}  paused: true\n"));
    let applied = rollout(&fixture.start()).value;
    assert_eq!((applied.spec.paused, applied.metadata.generation), (true, Some(2)));
}

#[test]
fn problems_of_both_files_are_reported_together() {
    let fixture = StoreFixture::new();
    fixture.write_file("rollout.yaml", "kind: Rollout\n");
    fs::remove_file(fixture.folder.path().join("adapters.yaml")).unwrap();
    let OpenError::Input(problems) = fixture.open().err().unwrap() else { panic!("bad input") };
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[1].contains("adapters.yaml: there is no such file"), "{problems:?}");
}

#[test]
fn damaged_state_document_is_reported_with_its_line() {
    let fixture = StoreFixture::new();
    drop(fixture.start());
    fixture.write_file("state/rollout.json", "{\n");
    let error = fixture.open().err().unwrap().to_string();
    assert!(error.contains("state/rollout.json line 2") && error.contains("move the file away"), "{error}");
}

#[test]
fn changes_start_with_the_rollout_and_follow_every_write() {
    use futures_util::StreamExt;
    let fixture = StoreFixture::new();
    let store = fixture.start();
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

/// One operation of the operator, or a restart.
#[derive(Debug, Clone)]
enum StoreOp {
    Status(u8),
    Rewrite(u8),
    Directives(u8),
    Restart,
    /// The process is killed during its next write, which leaves a temporary file of any length.
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
    fn writes_survive_a_kill_at_any_moment(steps in proptest::collection::vec(store_op(), 1..12)) {
        let fixture = StoreFixture::new();
        let mut store = fixture.start();
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
                    store = fixture.start();
                }
                StoreOp::Killed(file, cut) => {
                    let whole = fs::read(store.0.folder.document_path(file)).unwrap_or_default();
                    let cut = whole.len() * usize::from(cut) / 255;
                    fs::write(store.0.folder.document_path(&format!(".{file}.writing")), &whole[..cut]).unwrap();
                    drop(store);
                    store = fixture.start();
                }
            }
            prop_assert_eq!(rollout(&store).value.status.clone().map(|status| status.message), message.clone());
            prop_assert_eq!(active_target(&store), target.clone());
            prop_assert_eq!(adapters(&store).unwrap().value.directives_text, admitted.clone());
        }
    }
}
