//! The program as it is started, without a cluster: what it says, and how it ends.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says by a panic what is wrong")]

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
};

/// The program, until the test ends.
struct RunningProgram {
    child: Child,
    metrics: u16,
}

impl Drop for RunningProgram {
    fn drop(&mut self) {
        // It may have ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A command with a home of its own, in which no cluster is known.
fn command(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollora-ext-proc"));
    command.env_clear().env("HOME", home).stderr(Stdio::piped());
    command
}

fn start(home: &Path) -> RunningProgram {
    // Nobody answers there.
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
    /// What the metrics port answers; asked until it is there.
    fn get(&mut self, path: &str) -> String {
        let mut connection = loop {
            match TcpStream::connect(("127.0.0.1", self.metrics)) {
                Ok(connection) => break connection,
                Err(_) => assert_eq!(self.child.try_wait().unwrap(), None, "it has ended"),
            }
            std::thread::yield_now();
        };
        write!(connection, "GET {path} HTTP/1.1\r\nhost: program\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        answer
    }

    /// What it has logged, when it has ended.
    fn wait(mut self) -> (Option<i32>, String) {
        let status = self.child.wait().unwrap();
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (status.code(), log)
    }
}

#[test]
fn without_an_api_server_it_lives_is_not_ready_and_ends_when_asked() {
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
fn without_any_cluster_it_says_what_to_set() {
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
fn a_command_line_that_makes_no_sense_is_refused() {
    let home = tempfile::tempdir().unwrap();
    for (arguments, words) in [
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
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
}
