//! Rollora on one machine: the ports over files, and a streaming gateway.
