//! Tests of the program through its command line, files, signals and HTTP, with a fake vLLM on loopback.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]
#![allow(clippy::disallowed_methods, reason = "tests sleep, and the fake vLLM reads the clock")]

mod api_server;
mod configmap_watch;
mod documents;
mod error_classes;
#[path = "../../../../crates/sidecar/tests/loop/fake.rs"]
#[allow(dead_code, reason = "shared with the tests of the loop")]
mod fake;
mod fetching;
mod file;
mod flags;
#[path = "../../../../crates/adapter-source/tests/hub/fake.rs"]
#[allow(dead_code, reason = "shared with the tests of rollora-adapter-source")]
mod hub;
mod manifests;
mod readiness;
mod schema;
mod secrets;
mod settling;
mod shutdown;
mod testbed;
mod timing;
mod tls;
mod unload_grace;
