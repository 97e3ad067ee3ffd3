//! Servers that ask for a key.

use anyhow::ensure;
use rollora_e2e::{
    bed::{Place, Setup},
    scenario::on,
    seen::{cleaned_up, succeeded},
    traffic::{Ask, Crowd, Failure, Kind, ask_once},
};
use rollora_testbed::guide::{MODEL, V1, V2};
use std::time::Duration;

rollora_e2e::on_both_beds!(with_a_key_rollora_uses_its_own_and_clients_bring_theirs);

fn with_a_key_rollora_uses_its_own_and_clients_bring_theirs<P: Place>() {
    let setup = Setup { api_key: Some("secret".to_owned()), ..Setup::guide(Duration::from_millis(300)) };
    on::<P>(&setup, async |bed| {
        bed.sees_baseline().await?;
        bed.clients_start(&Crowd::mixed(MODEL, Duration::from_millis(40)));
        bed.list(V2).await?;
        bed.sees(cleaned_up(V1).and(succeeded(V2))).await?;
        bed.clients_saw_nothing_wrong().await?;

        let without = ask_once(&bed.place.gateway(), &Ask::new(MODEL, Kind::Json, 1)).await;
        let refused = matches!(without.failure(), Some(Failure::Status { status: 401, .. }));
        ensure!(refused, "a client without a key is let in: {without:?}");
        ensure!(!bed.place.logs().contains("secret"), "the key stands in a log");
        Ok(())
    });
}
