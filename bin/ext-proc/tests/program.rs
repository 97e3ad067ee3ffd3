//! Tests of the program as a process, without a cluster: its output and how it ends.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test reports failures by panicking")]

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
};

/// A running program, killed at the end of the test.
struct RunningProgram {
    child: Child,
    metrics: u16,
}

impl Drop for RunningProgram {
    fn drop(&mut self) {
        // Fails if the process has ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Creates a command with its own home directory, which has no kubeconfig.
fn command(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollora-ext-proc"));
    command.env_clear().env("HOME", home).stderr(Stdio::piped());
    command
}

fn start(home: &Path) -> RunningProgram {
    // Nothing listens on this port.
    let kubeconfig = home.join("kubeconfig");
    let server = format!("http://127.0.0.1:{}", free_port());
    let text = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{ "name": "c", "cluster": { "server": server } }],
        "users": [{ "name": "u", "user": {} }],
        "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u" } }],
    });
    std::fs::write(&kubeconfig, text.to_string()).unwrap();
    let metrics = free_port();
    let mut command = command(home);
    command.env("KUBECONFIG", kubeconfig).env("POD_IP", "127.0.0.1").env("POD_NAMESPACE", "models");
    command.args(["--pool", "pool", "--drain-delay", "0s"]);
    for (flag, port) in [("--grpc-port", free_port()), ("--grpc-health-port", free_port()), ("--metrics-port", metrics)]
    {
        command.args([flag, &port.to_string()]);
    }
    RunningProgram { child: command.spawn().unwrap(), metrics }
}

impl RunningProgram {
    /// Returns the response of the metrics port; retries until it listens.
    fn get(&mut self, path: &str) -> String {
        let mut connection = loop {
            match TcpStream::connect(("127.0.0.1", self.metrics)) {
                Ok(connection) => break connection,
                Err(_) => assert_eq!(self.child.try_wait().unwrap(), None, "the program has ended"),
            }
            std::thread::yield_now();
        };
        write!(connection, "GET {path} HTTP/1.1\r\nhost: program\r\nconnection: close\r\n\r\n").unwrap();
        let mut response = String::new();
        connection.read_to_string(&mut response).unwrap();
        response
    }

    /// Waits for the end of the program. Returns its exit code and log.
    fn wait(mut self) -> (Option<i32>, String) {
        let status = self.child.wait().unwrap();
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (status.code(), log)
    }
}

#[test]
fn runs_unready_without_api_server_and_ends_on_sigterm() {
    let home = tempfile::tempdir().unwrap();
    let mut program = start(home.path());
    assert!(program.get("/livez").starts_with("HTTP/1.1 200"));
    assert!(program.get("/readyz").starts_with("HTTP/1.1 503"));
    assert!(program.get("/rules").ends_with(r#"{"groups":[],"models":{}}"#));
    assert!(program.get("/metrics").contains("rollora_rewrite_watch_up 0"));
    let terminated = Command::new("kill").arg(program.child.id().to_string()).status().unwrap();
    assert!(terminated.success());
    let (code, log) = program.wait();
    assert_eq!(code, Some(0), "{log}");
}

#[test]
fn missing_cluster_is_reported_with_a_remedy() {
    let home = tempfile::tempdir().unwrap();
    let mut command = command(home.path());
    command.args(["--pool", "pool", "--namespace", "models", "--address", "127.0.0.1"]);
    for flag in ["--grpc-port", "--grpc-health-port", "--metrics-port"] {
        command.args([flag, "0"]);
    }
    let output = command.output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("no cluster configuration found: set KUBECONFIG"), "{log}");
}

#[test]
fn invalid_command_lines_are_refused() {
    let home = tempfile::tempdir().unwrap();
    for (arguments, expected) in [
        (vec!["--namespace", "models"], "--pool"),
        (vec!["--pool", "pool"], "--namespace"),
        (vec!["--pool", "pool", "--namespace", "models", "--max-body", "64MB"], "write one like 64MiB"),
        (vec!["--pool", "pool", "--namespace", "models", "--max-hold", "0"], "write one like 64MiB"),
        (vec!["--pool", "pool", "--namespace", "models", "--rewrite", "path"], "body, header"),
        (vec!["--pool", "pool", "--namespace", "models", "--base-model", "b"], "--routing-headers"),
        (vec!["--pool", "pool", "--namespace", "models", "--tls-cert", "a.crt"], "--tls-key"),
        (vec!["--pool", "pool", "--namespace", "models", "--drain-delay", "2"], "is not a duration"),
    ] {
        let output = command(home.path()).args(&arguments).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
        assert!(error.contains(expected), "{arguments:?}: {error}");
    }
}
