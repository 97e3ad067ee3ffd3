//! The program `vllm-sim`, tested through its command line.
#![expect(clippy::expect_used, reason = "a test")]

use std::process::Stdio;
use std::time::Duration;

use rollora_testbed::http::{ListenAddress, request, send_request};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Longer than a start or an exit takes.
const START_TIMEOUT: Duration = Duration::from_mins(2);

/// Starts the program; it is killed when the child is dropped.
fn start_program(flags: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_vllm-sim"))
        .args(["--port", "0", "--any-source", "--until-stdin-closes"])
        .args(flags)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the program can be started")
}

/// Reads the address from the first line of standard output.
async fn read_address(child: &mut Child) -> ListenAddress {
    let mut line = String::new();
    let mut output = BufReader::new(child.stdout.as_mut().expect("piped"));
    timeout(START_TIMEOUT, output.read_line(&mut line)).await.expect("starts in time").expect("a line");
    let address = line.trim_end().strip_prefix("http://").expect("a URL");
    ListenAddress::Tcp(address.parse().expect("an address"))
}

#[tokio::test]
async fn program_prints_url_and_exits_with_stdin() {
    let mut child = start_program(&["--lora-modules", "a1=org/a1"]);
    let address = read_address(&mut child).await;
    let (status, models) = send_request(&address, request("GET", "/v1/models", None)).await.expect("a response");
    assert_eq!(status, 200);
    assert!(String::from_utf8_lossy(&models).contains("\"root\":\"org/a1\",\"parent\":\"tiny\""));
    drop(child.stdin.take());
    assert_eq!(timeout(START_TIMEOUT, child.wait()).await.expect("exits in time").expect("a status").code(), Some(0));
}

#[tokio::test]
async fn crash_by_an_adapter_exits_with_code_1_and_reason() {
    let mut child = start_program(&["--deadly-load", "bad=cut"]);
    let address = read_address(&mut child).await;
    let load = serde_json::json!({"lora_name": "bad", "lora_path": "org/bad"});
    // Kept open: waiting for the output would close it, which is another reason to exit.
    let _input = child.stdin.take();
    assert!(send_request(&address, request("POST", "/v1/load_lora_adapter", Some(&load))).await.is_err());
    let output = timeout(START_TIMEOUT, child.wait_with_output()).await.expect("exits in time").expect("a status");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "vllm-sim: loading \"bad\" crashes the server\n");
}

#[tokio::test]
async fn invalid_lora_module_prevents_the_start() {
    let child = start_program(&["--lora-modules", "a1=/nonexistent"]);
    let output = timeout(START_TIMEOUT, child.wait_with_output()).await.expect("exits in time").expect("a status");
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(stderr, "vllm-sim: Loading lora a1 failed: No adapter found for /nonexistent\n");
}

#[tokio::test]
async fn unknown_fault_error_lists_the_valid_ones() {
    let child = start_program(&["--fail-load", "a=moody"]);
    let output = timeout(START_TIMEOUT, child.wait_with_output()).await.expect("exits in time").expect("a status");
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("\"moody\" is not one of not-found, bad-weights, rank, 500, 500:TEXT"), "{stderr}");
}
