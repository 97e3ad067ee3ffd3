//! The script that counts which adapter answers, `e2e/guide/test-traffic-splitting.sh`, as people run it. Needs curl
//! and jq, as the script does.
#![expect(clippy::expect_used, reason = "a test")]

use rollora_testbed::sim::{AllowedSources, Simulator, SimulatorConfig};
use std::{path::Path, process::Stdio, time::Duration};
use tokio::{process::Command, time::timeout};

/// Longer than anything here takes.
const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

async fn start_simulator() -> Simulator {
    let config = SimulatorConfig { port: 0, sources: AllowedSources::Any, ..SimulatorConfig::default() };
    timeout(WAIT_TIMEOUT, Simulator::start(config)).await.expect("at once").expect("a free port")
}

fn script_command() -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("guide/test-traffic-splitting.sh"));
    for name in ["IP", "MODEL", "REQUESTS", "API_KEY", "TIMEOUT"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Its code, and what it said where.
async fn run_script(command: &mut Command) -> (Option<i32>, String, String) {
    let output =
        timeout(WAIT_TIMEOUT, command.output()).await.expect("an end").expect("the script is there and can be run");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("a text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn answers_are_counted_by_the_model_that_they_name() {
    let simulator = start_simulator().await;
    let gateway = simulator.address().to_string();
    let (code, said, wrong) = run_script(script_command().args([&gateway, "tiny", "3"])).await;
    assert_eq!((code, wrong.as_str()), (Some(0), ""), "{said}");
    let expected = format!(
        "3 requests for tiny to http://{gateway}/v1/chat/completions\nRequest 1: tiny\nRequest 2: tiny\nRequest 3: \
         tiny\nAnswers by model, 3 requests:\ntiny: 3 requests\n"
    );
    assert_eq!(said, expected);
    // The same by the environment, and by an address as clients have it.
    let url = format!("{}/v1", simulator.url());
    let mut by_environment = script_command();
    by_environment.env("IP", url).env("MODEL", "tiny").env("REQUESTS", "3");
    assert_eq!(run_script(&mut by_environment).await, (Some(0), expected, String::new()));
}

#[tokio::test]
async fn a_request_that_fails_is_shown_with_the_reason_and_the_code_is_1() {
    let simulator = start_simulator().await;
    let gateway = simulator.address().to_string();
    // The guide's defaults: this server has no such model.
    let (code, said, _) = run_script(script_command().arg(&gateway).env("REQUESTS", "2")).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.starts_with("2 requests for small-segment-lora to "), "{said}");
    assert!(said.contains("Request 2: failed: status 404: "), "{said}");
    assert!(said.ends_with("Answers by model, 2 requests:\nfailed: 2 requests\n"), "{said}");
    simulator.crash().await;
    let (code, _, wrong) = run_script(script_command().arg(&gateway)).await;
    assert_eq!(code, Some(1), "{wrong}");
    assert!(wrong.contains(&format!("{gateway} cannot be reached (curl: ")), "{wrong}");
}

#[tokio::test]
async fn what_is_missing_or_wrong_is_named_with_code_2() {
    for (args, words) in [
        (&[][..], "no gateway: give its address, or set IP"),
        (&["a", "b", "none"], "'none' is not a number of requests"),
        (&["a", "b", "0"], "'0' is not a number of requests"),
        (&["a", "b", "1", "c"], "too many arguments"),
        (&["--count"], "unknown option --count"),
    ] {
        let (code, _, wrong) = run_script(script_command().args(args)).await;
        assert_eq!(code, Some(2), "{args:?}: {wrong}");
        assert!(wrong.contains(words), "{args:?}: {wrong}");
    }
    let (code, _, wrong) = run_script(script_command().arg("a").env("PATH", "/nonexistent")).await;
    assert_eq!((code, wrong.contains("curl is not installed")), (Some(2), true), "{wrong}");
    let (code, said, _) = run_script(script_command().arg("--help")).await;
    assert_eq!((code, said.contains("Examples:")), (Some(0), true), "{said}");
}
