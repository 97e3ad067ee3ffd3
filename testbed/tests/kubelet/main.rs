//! The kubelet stand-in does as a kubelet does: pods against a real API server.

mod files;
mod life;
mod ready;
mod stage;
mod tokens;
