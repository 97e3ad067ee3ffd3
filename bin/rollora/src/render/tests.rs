use super::*;
use jiff::{SignedDuration, Timestamp};
use rollora_api::rollout::status::{RejectedAdapter, StepState};
use serde_json::{Value, json};

const PLAIN: TextStyle = TextStyle { color: false };

fn start() -> Timestamp {
    "2026-01-01T12:00:00Z".parse().unwrap()
}

fn later(seconds: i64) -> Timestamp {
    start() + SignedDuration::from_secs(seconds)
}

fn server(name: &str, ready: bool, adapters: &Value) -> Value {
    let readiness = json!({ "ready": ready, "reason": "Suspect", "message": "the connection to vLLM closed" });
    let identity = json!({ "endpoint": format!("http://{name}"), "start": "1" });
    let status = json!({
        "server": identity, "readiness": readiness, "config": { "operatorDirectives": true }, "adapters": adapters,
    });
    json!({ "name": name, "ready": ready, "inFlight": 3, "pilot": false, "status": status })
}

/// A rollout at 50/50, in a pause without an end.
fn paused_overview() -> Overview {
    let steps = json!([
        { "setWeight": 10 },
        { "pause": { "duration": "10m" } },
        { "setWeight": 50 },
        { "pause": {} },
        { "setWeight": 100 },
    ]);
    let weights = json!([{ "id": "lora-v1", "weight": 50 }, { "id": "lora-v2", "weight": 50 }]);
    let targets = json!([{ "modelRewrite": "lora-v1", "weight": 90 }, { "modelRewrite": "lora-v2", "weight": 50 }]);
    let status = json!({
        "phase": "Paused",
        "message": "waits for promotion",
        "revision": { "number": 2, "stable": "lora-v1", "desired": "lora-v2" },
        "steps": steps,
        "totalWeight": 100,
        "step": { "index": 3, "state": "Pausing", "enteredAt": start() },
        "weights": { "desired": weights, "sequence": 4 },
    });
    let verified = |id: &str| json!({ "id": id, "state": "Verified" });
    let failed = json!({
        "id": "lora-v2", "state": "Failed", "attempts": 3, "nextTry": later(150),
        "lastError": { "reason": "NotFound", "message": "no adapter at /a/v2" },
    });
    serde_json::from_value(json!({
        "at": start(),
        "listen": "127.0.0.1:8080",
        "rollout": {
            "apiVersion": "rollora.dev/v1alpha1",
            "kind": "Rollout",
            "metadata": { "name": "lora" },
            "spec": {
                "model": "lora",
                "poolRef": { "name": "pool" },
                "adapter": { "follow": { "pattern": "lora-v*" } },
                "adaptersRef": { "name": "adapters" },
            },
            "status": status,
        },
        "rolloutFile": { "path": "rollout.yaml" },
        "adaptersFile": { "path": "adapters.yaml" },
        "servers": [
            server("a:1", true, &json!([verified("lora-v1"), verified("lora-v2")])),
            server("b:1", false, &json!([verified("lora-v1"), failed])),
        ],
        "rules": { "groups": [], "models": { "lora": {
            "group": "llm-d.ai", "rewrite": "lora", "uid": "1", "targets": targets,
        } } },
        "events": [
            { "at": start(), "count": 1, "warning": false, "reason": "X", "message": "lora-v2 gets 50 of 100" },
            { "at": later(30), "count": 2, "warning": true, "reason": "Y", "message": "b:1 is unreachable" },
        ],
    }))
    .unwrap()
}

fn status_of(overview: &mut Overview) -> &mut RolloutStatus {
    overview.rollout.status.as_mut().unwrap()
}

#[test]
fn status_shows_steps_weights_servers_and_next_command() {
    assert_eq!(
        status(&paused_overview(), later(90), PLAIN),
        "\
lora  ▶ paused  lora-v1 → lora-v2  http://127.0.0.1:8080

  ✔  10 %
  ✔  pause 10m
  ✔  50 %
  ▶  pause until promoted  for 1m30s: rollora promote
  ○  100 %

  WEIGHTS  DESIRED  ACTIVE
  lora-v1  50       90
  lora-v2  50       50

  SERVERS             IN FLIGHT  lora-v1     lora-v2
  a:1      ✔ ready    3          ✔ verified  ✔ verified
  b:1      ✘ Suspect  3          ✔ verified  ✘ failed

  waits for promotion
  next: rollora promote, or rollora abort

  1m30s ago     lora-v2 gets 50 of 100
  1m00s ago  !  b:1 is unreachable (2 times)
"
    );
}

#[test]
fn explain_lists_files_conditions_servers_and_warnings() {
    let mut overview = paused_overview();
    overview.adapters_file.problem = Some("adapters.yaml: line 3: not a list".to_owned());
    let condition = json!([
        { "type": "AdapterResident", "status": "False", "reason": "NotResident", "message": "b:1 lacks lora-v2",
          "lastTransitionTime": start() },
        { "type": "Available", "status": "True", "reason": "Serving", "message": "", "lastTransitionTime": start() },
    ]);
    status_of(&mut overview).conditions = serde_json::from_value(condition).unwrap();
    assert_eq!(
        explain(&overview, later(90), PLAIN),
        "\
lora: paused; waits for promotion

Files
  adapters.yaml: line 3: not a list; the last valid content stays active

Conditions
  not AdapterResident for 1m30s (NotResident): b:1 lacks lora-v2

Servers
  b:1: not ready: the connection to vLLM closed
  b:1: lora-v2 could not be loaded after 3 attempts: no adapter at /a/v2; next try in 1m00s

Warnings
  1m00s ago: b:1 is unreachable

Next: rollora promote, or rollora abort
"
    );
}

#[test]
fn file_problem_is_shown_at_the_top() {
    let mut overview = paused_overview();
    overview.rollout_file.problem = Some("rollout.yaml: line 5: spec.modle: unknown field".to_owned());
    let screen = status(&overview, start(), PLAIN);
    let lines: Vec<&str> = screen.lines().skip(2).take(2).collect();
    assert_eq!(lines, ["✘ rollout.yaml: line 5: spec.modle: unknown field", "  The last valid content stays active."]);
}

#[test]
fn current_step_shows_elapsed_or_remaining_time() {
    let cases = [
        (1, StepState::Pausing, 90, "▶  pause 10m             8m30s left"),
        (1, StepState::Pausing, 700, "▶  pause 10m             0s left"),
        (2, StepState::AwaitingResidency, 5, "▶  50 %                  servers load the adapter, 5s"),
        (2, StepState::AwaitingRouters, 1, "▶  50 %                  weights take effect, 1s"),
        (2, StepState::Held, 61, "▶  50 %                  held, 1m01s"),
    ];
    for (index, state, seconds, expected) in cases {
        let mut overview = paused_overview();
        let step = status_of(&mut overview).step.as_mut().unwrap();
        (step.index, step.state) = (index, state);
        let screen = status(&overview, later(seconds), PLAIN);
        assert!(screen.contains(expected), "{expected}\n{screen}");
    }
}

#[test]
fn steps_are_marked_as_done_current_upcoming_or_skipped() {
    let marks = |phase: Phase, index: i32| {
        let mut overview = paused_overview();
        let status = status_of(&mut overview);
        status.phase = phase;
        status.step.as_mut().unwrap().index = index;
        steps::step_table(status, start(), PLAIN)
            .lines()
            .filter_map(|line| line.trim().chars().next())
            .collect::<String>()
    };
    assert_eq!(marks(Phase::Progressing, 0), "▶○○○○");
    assert_eq!(marks(Phase::RolledBack, 2), "✔✔✘✘✘");
    assert_eq!(marks(Phase::Succeeded, 5), "✔✔✔✔✔");
}

#[test]
fn rejection_reason_is_shown_once_on_one_line() {
    let mut overview = paused_overview();
    let status = status_of(&mut overview);
    status.phase = Phase::RolledBack;
    status.rejected = vec![RejectedAdapter { id: "lora-v2".parse().unwrap(), reason: "a:1 crashed".to_owned() }];
    let screen = super::status(&overview, start(), PLAIN);
    assert!(screen.contains("\n  lora-v2: rejected: a:1 crashed\n  next: list another version"), "{screen}");
    status_of(&mut overview).message = "lora-v2 was rejected: a:1 crashed".to_owned();
    assert_eq!(super::status(&overview, start(), PLAIN).matches("crashed").count(), 1);
}

#[test]
fn status_is_shown_before_the_first_decision() {
    let mut overview = paused_overview();
    overview.rollout.status = None;
    overview.rules.models.clear();
    overview.events.clear();
    let screen = status(&overview, start(), PLAIN);
    assert!(screen.starts_with("lora  ▶ pending  no adapter yet  http://127.0.0.1:8080\n"), "{screen}");
    assert!(screen.contains("SERVERS             IN FLIGHT  lora-v1     lora-v2"), "{screen}");
}

#[test]
fn summary_and_progress_line_are_short() {
    assert_eq!(
        summary(&paused_overview()),
        "\
NAME  MODEL  PHASE   STEP  WEIGHT                  STABLE   DESIRED
lora  lora   Paused  4/5   lora-v1 50, lora-v2 50  lora-v1  lora-v2
"
    );
    assert_eq!(progress_line(&paused_overview()), "lora: paused  4/5  lora-v1 50, lora-v2 50  waits for promotion\n");
}

#[test]
fn submitted_intent_names_its_revision_and_step() {
    let intent = |verb| Intent { id: "1".to_owned(), verb, revision: 2, step: Some(3), claimed_by: None };
    let status = paused_overview().rollout.status.unwrap();
    assert_eq!(
        intent_submitted(&intent(IntentKind::Promote), &status),
        "submitted: promote (revision 2 of lora-v2, step 4: pause until promoted)\n"
    );
    assert_eq!(intent_submitted(&intent(IntentKind::Abort), &status), "submitted: abort (revision 2 of lora-v2)\n");
}

#[test]
fn colors_do_not_change_the_text() {
    let colored = status(&paused_overview(), later(90), TextStyle { color: true });
    assert!(colored.contains("\x1b[32m✔\x1b[0m"));
    let mut plain = String::new();
    let mut rest = colored.as_str();
    while let Some((before, after)) = rest.split_once("\x1b[") {
        plain.push_str(before);
        rest = after.split_once('m').unwrap().1;
    }
    plain.push_str(rest);
    assert_eq!(plain, status(&paused_overview(), later(90), PLAIN));
}

#[test]
fn redraw_clears_each_line_after_its_text() {
    assert_eq!(redraw("one\ntwo\n"), "\x1b[Hone\x1b[K\ntwo\x1b[K\n\x1b[J");
}
