//! The kubelet stand-in runs pods of a real API server as a kubelet does.

mod files;
mod fixture;
mod lifecycle;
mod readiness;
mod tokens;
