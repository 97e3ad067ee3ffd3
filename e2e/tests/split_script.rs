//! The script `e2e/guide/test-traffic-splitting.sh`, which counts the responses of each adapter, as users run it. Needs
//! curl and jq, as the script does.
#![expect(clippy::expect_used, reason = "a test")]

use rollora_testbed::sim::{AllowedSources, Simulator, SimulatorConfig};
use std::{path::Path, process::Stdio, time::Duration};
use tokio::{process::Command, time::timeout};

/// Longer than anything in these tests takes.
const WAIT_TIMEOUT: Duration = Duration::from_mins(2);

async fn start_simulator() -> Simulator {
    let config = SimulatorConfig { port: 0, sources: AllowedSources::Any, ..SimulatorConfig::default() };
    timeout(WAIT_TIMEOUT, Simulator::start(config)).await.expect("the simulator starts").expect("a free port")
}

fn script_command() -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("guide/test-traffic-splitting.sh"));
    for name in ["IP", "MODEL", "REQUESTS", "API_KEY", "TIMEOUT"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs the script, and returns its exit code, standard output and standard error.
async fn run_script(command: &mut Command) -> (Option<i32>, String, String) {
    let output =
        timeout(WAIT_TIMEOUT, command.output()).await.expect("the script ends").expect("the script can be run");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn responses_are_counted_by_model() {
    let simulator = start_simulator().await;
    let gateway = simulator.address().to_string();
    let (code, stdout, stderr) = run_script(script_command().args([&gateway, "tiny", "3"])).await;
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{stdout}");
    let expected = format!(
        "3 requests for tiny to http://{gateway}/v1/chat/completions\nRequest 1: tiny\nRequest 2: tiny\nRequest 3: \
         tiny\nAnswers by model, 3 requests:\ntiny: 3 requests\n"
    );
    assert_eq!(stdout, expected);
    // The environment variables are equivalent, and IP may be a base URL as clients use it.
    let url = format!("{}/v1", simulator.url());
    let mut by_environment = script_command();
    by_environment.env("IP", url).env("MODEL", "tiny").env("REQUESTS", "3");
    assert_eq!(run_script(&mut by_environment).await, (Some(0), expected, String::new()));
}

#[tokio::test]
async fn failed_request_is_shown_with_reason_and_code_1() {
    let simulator = start_simulator().await;
    let gateway = simulator.address().to_string();
    // By default the script requests the guide's model, which this server does not have.
    let (code, stdout, _) = run_script(script_command().arg(&gateway).env("REQUESTS", "2")).await;
    assert_eq!(code, Some(1), "{stdout}");
    assert!(stdout.starts_with("2 requests for small-segment-lora to "), "{stdout}");
    assert!(stdout.contains("Request 2: failed: status 404: "), "{stdout}");
    assert!(stdout.ends_with("Answers by model, 2 requests:\nfailed: 2 requests\n"), "{stdout}");
    simulator.crash().await;
    let (code, _, stderr) = run_script(script_command().arg(&gateway)).await;
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains(&format!("{gateway} cannot be reached (curl: ")), "{stderr}");
}

#[tokio::test]
async fn usage_error_is_reported_with_code_2() {
    for (args, words) in [
        (&[][..], "no gateway: give its address, or set IP"),
        (&["a", "b", "none"], "'none' is not a number of requests"),
        (&["a", "b", "0"], "'0' is not a number of requests"),
        (&["a", "b", "1", "c"], "too many arguments"),
        (&["--count"], "unknown option --count"),
    ] {
        let (code, _, stderr) = run_script(script_command().args(args)).await;
        assert_eq!(code, Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(words), "{args:?}: {stderr}");
    }
    let (code, _, stderr) = run_script(script_command().arg("a").env("PATH", "/nonexistent")).await;
    assert_eq!((code, stderr.contains("curl is not installed")), (Some(2), true), "{stderr}");
    let (code, stdout, _) = run_script(script_command().arg("--help")).await;
    assert_eq!((code, stdout.contains("Examples:")), (Some(0), true), "{stdout}");
}
