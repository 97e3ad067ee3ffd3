//! Servers that require an API key.

use anyhow::ensure;
use rollora_e2e::{
    conditions::{cleaned_up, succeeded},
    harness::{Environment, Setup},
    scenario::run_on,
    traffic::{ChatRequest, LoadProfile, RequestFailure, ResponseMode, send_once},
};
use rollora_testbed::guide::{MODEL, V1, V2};
use std::time::Duration;

rollora_e2e::in_both_environments!(rollora_and_clients_use_their_own_api_keys);

fn rollora_and_clients_use_their_own_api_keys<E: Environment>() {
    let setup = Setup { api_key: Some("secret".to_owned()), ..Setup::guide(Duration::from_millis(300)) };
    run_on::<E>(&setup, async |harness| {
        harness.wait_for_baseline().await?;
        harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(40)));
        harness.list_adapter(V2).await?;
        harness.wait_for(cleaned_up(V1).and(succeeded(V2))).await?;
        harness.stop_clients_and_verify().await?;

        let without = send_once(&harness.environment.gateway(), &ChatRequest::new(MODEL, ResponseMode::Json, 1)).await;
        let refused = matches!(without.failure(), Some(RequestFailure::Status { status: 401, .. }));
        ensure!(refused, "a request without a key was not refused: {without:?}");
        ensure!(!harness.environment.logs().contains("secret"), "a log contains the key");
        Ok(())
    });
}
