//! The components that Rollora is tested on, each of them real where the real thing fits in a test: a Kubernetes API
//! server and etcd ([`control_plane`]), a stand-in for the kubelet that runs pods as processes ([`kubelet`]), Envoy
//! ([`gateway`]), an endpoint picker ([`endpoint_picker`]), and a simulated vLLM ([`sim`]).
//!
//! This crate contains no scenario and no expectation: those are in `e2e`.

pub mod clock;
pub mod control_plane;
pub mod deployments;
pub mod endpoint_picker;
pub mod gateway;
pub mod guide;
pub mod http;
pub mod kubelet;
pub mod manifests;
pub mod pods;
pub mod ports;
pub mod process;
pub mod reflector;
pub mod scale_fixture;
pub mod server;
pub mod sim;
pub mod tools;
pub mod write_interceptor;
