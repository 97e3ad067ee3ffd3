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

/// A rollout in the open pause at 50/50.
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
            { "at": later(30), "count": 2, "warning": true, "reason": "Y", "message": "b:1 is away" },
        ],
    }))
    .unwrap()
}

fn status_of(overview: &mut Overview) -> &mut RolloutStatus {
    overview.rollout.status.as_mut().unwrap()
}

#[test]
fn one_screen_says_where_it_stands_what_it_waits_for_and_what_to_type() {
    assert_eq!(
        status(&paused_overview(), later(90), PLAIN),
        "\
lora  ▶ paused  lora-v1 → lora-v2  http://127.0.0.1:8080

  ✔  10 %
  ✔  pause 10m
  ✔  50 %
  ▶  pause until promoted  for 1m30s: rollora promote
  ○  100 %

  WEIGHTS  SET  IN FORCE
  lora-v1  50   90
  lora-v2  50   50

  SERVERS             IN FLIGHT  lora-v1     lora-v2
  a:1      ✔ ready    3          ✔ verified  ✔ verified
  b:1      ✘ Suspect  3          ✔ verified  ✘ failed

  waits for promotion
  next: rollora promote, or rollora abort

  1m30s ago     lora-v2 gets 50 of 100
  1m00s ago  !  b:1 is away (2 times)
"
    );
}

#[test]
fn why_it_does_not_move_is_said_in_words() {
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
  adapters.yaml: line 3: not a list; what was in force before stays in force

Conditions
  not AdapterResident for 1m30s (NotResident): b:1 lacks lora-v2

Servers
  b:1: not ready: the connection to vLLM closed
  b:1: lora-v2 could not be loaded after 3 attempts: no adapter at /a/v2; next try in 1m00s

Warnings
  1m00s ago: b:1 is away

Next: rollora promote, or rollora abort
"
    );
}

#[test]
fn a_file_that_is_not_in_force_stands_at_the_top() {
    let mut overview = paused_overview();
    overview.rollout_file.problem = Some("rollout.yaml: line 5: spec.modle: unknown field".to_owned());
    let screen = status(&overview, start(), PLAIN);
    let lines: Vec<&str> = screen.lines().skip(2).take(2).collect();
    assert_eq!(
        lines,
        ["✘ rollout.yaml: line 5: spec.modle: unknown field", "  What was in force before stays in force."]
    );
}

#[test]
fn the_time_that_a_step_takes_yet_is_said() {
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
fn steps_that_are_behind_given_up_or_done() {
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
fn why_an_adapter_was_rejected_is_one_line_and_said_once() {
    let mut overview = paused_overview();
    let status = status_of(&mut overview);
    status.phase = Phase::RolledBack;
    status.rejected = vec![RejectedAdapter { id: "lora-v2".parse().unwrap(), reason: "a:1 died over it".to_owned() }];
    let screen = super::status(&overview, start(), PLAIN);
    assert!(screen.contains("\n  lora-v2: rejected: a:1 died over it\n  next: list another version"), "{screen}");
    status_of(&mut overview).message = "lora-v2 was rejected: a:1 died over it".to_owned();
    assert_eq!(super::status(&overview, start(), PLAIN).matches("died over it").count(), 1);
}

#[test]
fn before_the_first_decision_there_is_something_to_show_too() {
    let mut overview = paused_overview();
    overview.rollout.status = None;
    overview.rules.models.clear();
    overview.events.clear();
    let screen = status(&overview, start(), PLAIN);
    assert!(screen.starts_with("lora  ▶ pending  no adapter yet  http://127.0.0.1:8080\n"), "{screen}");
    assert!(screen.contains("SERVERS             IN FLIGHT  lora-v1     lora-v2"), "{screen}");
}

#[test]
fn one_line_for_scripts_and_one_for_logs() {
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
fn what_was_asked_is_bound_to_what_was_seen() {
    let intent = |verb| Intent { id: "1".to_owned(), verb, revision: 2, step: Some(3), claimed_by: None };
    let seen = paused_overview().rollout.status.unwrap();
    assert_eq!(
        intent_submitted(&intent(IntentKind::Promote), &seen),
        "asked: promote (revision 2 of lora-v2, step 4: pause until promoted)\n"
    );
    assert_eq!(intent_submitted(&intent(IntentKind::Abort), &seen), "asked: abort (revision 2 of lora-v2)\n");
}

#[test]
fn colors_change_nothing_but_colors() {
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
fn a_screen_is_drawn_over_the_last_one_line_by_line() {
    assert_eq!(redraw("one\ntwo\n"), "\x1b[Hone\x1b[K\ntwo\x1b[K\n\x1b[J");
}
