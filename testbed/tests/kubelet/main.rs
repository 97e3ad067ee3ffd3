//! The kubelet stand-in does as a kubelet does: pods against a real API server.

mod files;
mod fixture;
mod lifecycle;
mod readiness;
mod tokens;
