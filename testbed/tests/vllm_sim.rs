//! The program `vllm-sim` through its command line.
#![expect(clippy::expect_used, reason = "a test")]

use std::process::Stdio;
use std::time::Duration;

use rollora_testbed::http::{ListenAddress, request, send_request};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Longer than anything here takes.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// The program, started; it ends when the child is dropped.
fn start_program(flags: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_vllm-sim"))
        .args(["--port", "0", "--any-source", "--until-stdin-closes"])
        .args(flags)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the program is there")
}

/// Where it listens, from its first line.
async fn read_address(child: &mut Child) -> ListenAddress {
    let mut line = String::new();
    let mut output = BufReader::new(child.stdout.as_mut().expect("piped"));
    timeout(START_TIMEOUT, output.read_line(&mut line)).await.expect("at once").expect("a line");
    let address = line.trim_end().strip_prefix("http://").expect("a URL");
    ListenAddress::Tcp(address.parse().expect("an address"))
}

#[tokio::test]
async fn it_prints_its_url_when_it_answers_and_ends_well_when_its_input_ends() {
    let mut child = start_program(&["--lora-modules", "a1=org/a1"]);
    let address = read_address(&mut child).await;
    let (status, models) = send_request(&address, request("GET", "/v1/models", None)).await.expect("an answer");
    assert_eq!(status, 200);
    assert!(String::from_utf8_lossy(&models).contains("\"root\":\"org/a1\",\"parent\":\"tiny\""));
    drop(child.stdin.take());
    assert_eq!(timeout(START_TIMEOUT, child.wait()).await.expect("an end").expect("a status").code(), Some(0));
}

#[tokio::test]
async fn it_ends_with_code_1_and_the_reason_when_an_adapter_kills_it() {
    let mut child = start_program(&["--deadly-load", "bad=cut"]);
    let address = read_address(&mut child).await;
    let load = serde_json::json!({"lora_name": "bad", "lora_path": "org/bad"});
    // Kept open: waiting for the output would close it, and that is another reason to end.
    let _input = child.stdin.take();
    assert!(send_request(&address, request("POST", "/v1/load_lora_adapter", Some(&load))).await.is_err());
    let output = timeout(START_TIMEOUT, child.wait_with_output()).await.expect("an end").expect("a status");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "vllm-sim: loading \"bad\" crashes the server\n");
}

#[tokio::test]
async fn it_does_not_start_with_an_adapter_that_cannot_be_loaded() {
    let child = start_program(&["--lora-modules", "a1=/nonexistent"]);
    let output = timeout(START_TIMEOUT, child.wait_with_output()).await.expect("an end").expect("a status");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said, "vllm-sim: Loading lora a1 failed: No adapter found for /nonexistent\n");
}

#[tokio::test]
async fn it_says_which_faults_there_are() {
    let child = start_program(&["--fail-load", "a=moody"]);
    let output = timeout(START_TIMEOUT, child.wait_with_output()).await.expect("an end").expect("a status");
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("\"moody\" is not one of not-found, bad-weights, rank, 500, 500:TEXT"), "{said}");
}
