//! The state folder.

use anyhow::ensure;
use rollora_e2e::{
    bed::{Place as _, Setup},
    rollora::{Rollora, run},
    scenario::on_one_machine,
    seen::served_by,
    traffic::Crowd,
};
use rollora_testbed::{
    guide::{MODEL, V1},
    process::ExitReason,
};
use std::time::Duration;

#[test]
fn a_second_process_on_the_same_state_folder_is_refused() {
    on_one_machine(&Setup::guide(Duration::from_millis(300)), async |bed| {
        bed.sees_baseline().await?;
        bed.clients_start(&Crowd::mixed(MODEL, Duration::from_millis(40)));
        let first = bed.place.rollora();
        let servers = ["http://127.0.0.1:9".to_owned()];
        let second = Rollora::new(bed.place.folder(), servers.to_vec(), None)?;
        let said = run(second.command()?).await?;
        ensure!(said.code != 0, "it was not refused: {said:?}");
        let words = ["another `rollora local`", &first.id().unwrap_or_default().to_string(), "--state"];
        ensure!(words.iter().all(|word| said.err.contains(word)), "{words:?} are not in {said:?}");

        bed.keeps_seeing(Duration::from_millis(500), served_by(MODEL, V1)).await?;
        bed.clients_saw_nothing_wrong().await.map(drop)
    });
}

#[test]
fn a_verb_may_name_the_rollout_and_is_refused_where_another_one_runs() {
    on_one_machine(&Setup::guide(Duration::from_millis(300)), async |bed| {
        bed.sees_baseline().await?;
        for verb in ["get", "status", "explain"] {
            bed.says(&[verb, MODEL]).await?;
        }
        for verb in ["get", "status", "explain", "promote", "abort", "retry"] {
            let said = bed.place.say(&[verb, "another"]).await?;
            let words = [MODEL, "another", "--state"];
            let refused = said.code == 1 && words.iter().all(|word| said.err.contains(word));
            ensure!(refused, "`rollora {verb} another` said {said:?}");
        }
        Ok(())
    });
}

#[test]
fn asked_to_end_it_ends_well() {
    on_one_machine(&Setup::guide(Duration::from_millis(300)), async |bed| {
        bed.sees_baseline().await?;
        let ending = bed.place.rollora_mut().terminate().await?;
        ensure!(ending == ExitReason::Exit(0), "it ended with {ending:?}");
        Ok(())
    });
}
