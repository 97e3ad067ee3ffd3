//! The program as it is run: its real command line, files, signals and HTTP, beside a small vLLM on loopback.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says by a panic what is wrong")]
#![allow(clippy::disallowed_methods, reason = "tests wait, and the small vLLM has a clock of its own")]

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
#[allow(dead_code, reason = "shared with the tests of the store")]
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
