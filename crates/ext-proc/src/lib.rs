//! Envoy's external processing protocol over the router.
