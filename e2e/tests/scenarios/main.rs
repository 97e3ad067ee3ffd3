//! End-to-end scenarios with the real programs: one file per theme, one scenario per test.
//!
//! `rollora` must be built next to the tests (`cargo build -p rollora --bin rollora`; `cargo xtask test` does so). With
//! `ROLLORA_LONG=1` the repetitions and the long fault schedules run too, and print their numbers to standard error.

mod adapter_loss;
mod adoption;
mod api_groups;
mod api_keys;
mod bad_adapters;
mod bad_input;
mod bad_objects;
mod capacity;
mod cluster_objects;
mod demo;
mod endpoint_picker;
mod endurance;
mod gitops;
mod guide;
mod leader_election;
mod lora_syncer_migration;
mod midway_changes;
mod permissions;
mod pods;
mod process_kills;
mod real_sidecar;
mod real_vllm;
mod removed_kinds;
mod replicas;
mod rollout_chain;
mod rollout_deletion;
mod run_stats;
mod shared_config_map;
mod state_dir;
mod status_reporting;
mod step_faults;
mod streams;
mod traffic_script;
mod weights;
mod write_faults;
