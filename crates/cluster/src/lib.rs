//! The only crate that names kube.
