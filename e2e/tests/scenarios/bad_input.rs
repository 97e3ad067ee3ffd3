//! What people get wrong: it is said in words that name the file, the line and what to do, and nothing that was served
//! before stops being served.

use anyhow::{Context as _, Result, ensure};
use rollora_e2e::{
    conditions::{has_file_problem, no_file_problems, served_by, succeeded},
    harness::{Environment as _, Harness, Setup},
    local::LocalEnvironment,
    rollora_local::run_command,
    scenario::run_locally,
    traffic::LoadProfile,
};
use rollora_testbed::{
    guide::{MODEL, SOURCE, V1, V2},
    server::ServerKind,
};
use std::{fs, time::Duration};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InputFile {
    Rollout,
    Adapters,
}

/// One mistake: a line that is replaced, and the words that name it.
struct InputMistake {
    name: &'static str,
    file: InputFile,
    target_line: &'static str,
    replacement: String,
    /// Which line of what stands there instead is the wrong one.
    error_line_offset: usize,
    expected_words: &'static [&'static str],
}

fn mistakes() -> Vec<InputMistake> {
    let mistake = |name, file, line, instead: &str, wrong, words| InputMistake {
        name,
        file,
        target_line: line,
        replacement: instead.to_owned(),
        error_line_offset: wrong,
        expected_words: words,
    };
    let v1 = format!("        - id: {V1}");
    let entry = format!("{v1}\n          source: {SOURCE}\n{v1}");
    vec![
        mistake("an unknown field", InputFile::Rollout, "strategy:", "  colour: blue\n  strategy:", 0, &["colour"]),
        mistake(
            "a weight above the total",
            InputFile::Rollout,
            "- setWeight: 10",
            "    - setWeight: 110",
            0,
            &["110", "100"],
        ),
        mistake(
            "a step of two kinds",
            InputFile::Rollout,
            "- setWeight: 10",
            "    - { setWeight: 10, pause: {} }",
            0,
            &["pause"],
        ),
        mistake(
            "the model is an adapter",
            InputFile::Rollout,
            "follow:",
            "    id: small-segment-lora",
            0,
            &["spec.adapter.id", "clients send"],
        ),
        mistake("not YAML", InputFile::Adapters, "port: 8000", "      port: [8000", 0, &[]),
        mistake("an id twice", InputFile::Adapters, "- id: small-segment-lora-v1", &entry, 2, &[V1, "twice", "remove"]),
        mistake(
            "no source",
            InputFile::Adapters,
            "- id:",
            &format!("{v1}\n          sauce: org/name\n        - id: other"),
            0,
            &["source"],
        ),
    ]
}

impl InputMistake {
    fn file_name(&self) -> &'static str {
        match self.file {
            InputFile::Rollout => "rollout.yaml",
            InputFile::Adapters => "adapters.yaml",
        }
    }

    /// The text with the mistake, and the number of the wrong line.
    fn apply_to(&self, text: &str) -> Result<(String, usize)> {
        let index = text.lines().position(|line| line.trim_start().starts_with(self.target_line));
        let index = index.with_context(|| format!("no line begins with {:?}", self.target_line))?;
        let mut lines: Vec<_> = text.lines().collect();
        lines[index] = &self.replacement;
        Ok((lines.join("\n") + "\n", index + self.error_line_offset + 1))
    }

    async fn write(&self, machine: &LocalEnvironment) -> Result<usize> {
        let (text, line) = match self.file {
            InputFile::Rollout => self.apply_to(&machine.rollout_yaml().await?)?,
            InputFile::Adapters => self.apply_to(&machine.adapters_yaml().await?)?,
        };
        match self.file {
            InputFile::Rollout => machine.write_rollout(&text).await?,
            InputFile::Adapters => machine.write_adapters(&text).await?,
        }
        Ok(line)
    }

    /// Where it stands in the words of the program: only what is wrong with the YAML itself may be noticed later.
    fn expected_location(&self, line: usize) -> String {
        if self.name == "not YAML" { "line ".to_owned() } else { format!("line {line}") }
    }
}

fn setup() -> Setup {
    Setup { servers: vec![ServerKind::simulated(&[]); 2], ..Setup::guide(Duration::from_millis(200)) }
}

#[test]
fn a_mistake_made_while_it_runs_is_named_and_stops_nothing() {
    run_locally(&setup(), async |bed| {
        bed.wait_for_baseline().await?;
        bed.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(40)));
        let (rollout, adapters) = (bed.environment.rollout_yaml().await?, bed.environment.adapters_yaml().await?);
        for mistake in mistakes() {
            let line = mistake.write(&bed.environment).await?;
            let place = mistake.expected_location(line);
            let words = [&[mistake.file_name(), &place], mistake.expected_words].concat();
            bed.wait_for_within(Duration::from_secs(5), has_file_problem(&words)).await.context(mistake.name)?;
            check_status_message(bed, mistake.file_name()).await?;
            bed.environment.write_rollout(&rollout).await?;
            bed.environment.write_adapters(&adapters).await?;
            bed.wait_for(no_file_problems()).await.context(mistake.name)?;
        }
        bed.wait_for(served_by(MODEL, V1)).await?;

        // The next good edit is a release as ever.
        bed.list_adapter(V2).await?;
        bed.wait_for(succeeded(V2)).await?;
        bed.stop_clients_and_verify().await.map(drop)
    });
}

async fn check_status_message(bed: &Harness<LocalEnvironment>, file: &str) -> Result<()> {
    let said = bed.cli_stdout(&["status"]).await?;
    ensure!(said.lines().any(|line| line.contains(file) && line.contains("line")), "the status is silent:\n{said}");
    let seen = bed.environment.snapshot().await;
    let message = seen.status.map(|status| status.message).unwrap_or_default();
    let mut parts: Vec<_> = message.split("; ").collect();
    let all = parts.len();
    parts.sort_unstable();
    parts.dedup();
    ensure!(parts.len() == all, "the status says something twice: {message}");
    Ok(())
}

#[test]
fn a_mistake_at_the_start_is_named_and_ends_it_with_code_2() {
    run_locally(&setup(), async |bed| {
        bed.wait_for_baseline().await?;
        bed.kill_operator();
        let (rollout, adapters) = (bed.environment.rollout_yaml().await?, bed.environment.adapters_yaml().await?);
        for mistake in mistakes() {
            let line = mistake.write(&bed.environment).await?;
            let said = run_command(bed.environment.rollora_local().command()?).await?;
            let place = mistake.expected_location(line);
            let words = [&[mistake.file_name(), place.as_str()], mistake.expected_words].concat();
            let name = mistake.name;
            ensure!(said.code == 2, "{name}: {said:?}");
            let found = said.stderr.lines().any(|line| words.iter().all(|word| line.contains(word)));
            ensure!(found, "{name}: no line of {} has the words {words:?}", said.stderr);
            bed.environment.write_rollout(&rollout).await?;
            bed.environment.write_adapters(&adapters).await?;
        }
        Ok(())
    });
}

#[test]
fn a_file_that_disappears_is_named_and_stops_nothing() {
    run_locally(&setup(), async |bed| {
        bed.wait_for_baseline().await?;
        bed.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(40)));
        let rollora = bed.environment.rollora_local();
        for (path, name) in [(rollora.adapters_file(), "adapters.yaml"), (rollora.rollout_file(), "rollout.yaml")] {
            let text = fs::read_to_string(&path)?;
            fs::remove_file(&path)?;
            bed.wait_for(has_file_problem(&[name, "no such file"])).await?;
            bed.assert_holds_for(Duration::from_millis(500), served_by(MODEL, V1)).await?;
            fs::write(&path, text)?;
            bed.wait_for(no_file_problems()).await?;
        }
        bed.stop_clients_and_verify().await.map(drop)
    });
}

#[test]
fn an_id_in_both_lists_is_named_and_left_as_it_is() {
    run_locally(&setup(), async |bed| {
        bed.wait_for_baseline().await?;
        bed.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(40)));
        let both = bed.environment.adapters_yaml().await?
            + &format!("      ensureNotExist:\n        models:\n        - id: {V1}\n          source: {SOURCE}\n");
        let line = both.lines().count() - 1;
        bed.environment.write_adapters(&both).await?;
        let (place, words) = (format!("line {line}"), ["adapters.yaml", V1, "ensureNotExist", "ensureExist"]);
        let start = std::time::Duration::from_millis(50);
        let mut said = String::new();
        for _ in 0..100 {
            said = bed.environment.logs();
            let told = |line: &str| line.contains(&place) && words.iter().all(|word| line.contains(word));
            if said.lines().any(told) {
                bed.assert_holds_for(Duration::from_secs(1), served_by(MODEL, V1)).await?;
                let explained = bed.cli_stdout(&["explain"]).await?;
                ensure!(explained.contains("both lists"), "not explained:\n{explained}");
                return bed.stop_clients_and_verify().await.map(drop);
            }
            tokio::time::sleep(start).await;
        }
        anyhow::bail!("nobody says that {V1} is in both lists:\n{said}")
    });
}

/// A server is started again as one that cannot be used: it is named with what to do, and the two others serve, also
/// the next version.
fn check_misconfigured_server(flags: &[&str], words: &[&str]) {
    let setup = Setup { servers: vec![ServerKind::simulated(&[]); 3], ..Setup::guide(Duration::from_millis(200)) };
    run_locally(&setup, async |bed| {
        bed.wait_for_baseline().await?;
        bed.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(40)));
        bed.kill_server(2);
        bed.environment.servers_mut()[2].set_kind(ServerKind::simulated(flags));
        bed.start_server(2).await?;
        wait_for_explanation(bed, words).await?;
        bed.assert_holds_for(Duration::from_millis(500), served_by(MODEL, V1)).await?;
        bed.list_adapter(V2).await?;
        bed.wait_for(served_by(MODEL, V2)).await?;
        bed.stop_clients_and_verify().await.map(drop)
    });
}

async fn wait_for_explanation(bed: &Harness<LocalEnvironment>, words: &[&str]) -> Result<()> {
    let name = bed.environment.servers()[2].name();
    let mut said = String::new();
    for _ in 0..100 {
        said = bed.cli_stdout(&["explain"]).await?;
        let named = |line: &str| line.contains(&name) && words.iter().all(|word| line.contains(word));
        if said.lines().any(named) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    anyhow::bail!("no line names {name} with the words {words:?}:\n{said}")
}

#[test]
fn a_server_without_runtime_updating_is_named_and_the_others_serve() {
    check_misconfigured_server(&["--no-runtime-updating"], &["VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"]);
}

#[test]
fn a_server_with_another_key_is_named_and_the_others_serve() {
    check_misconfigured_server(&["--api-key", "other"], &["API key"]);
}

#[test]
fn a_server_without_lora_is_named_and_the_others_serve() {
    check_misconfigured_server(&["--no-lora"], &["--enable-lora"]);
}

/// Nothing is served before: it waits, and says for whom and what to do.
#[test]
fn a_server_that_cannot_be_used_at_the_start_is_named() {
    let mut setup = setup();
    setup.servers.push(ServerKind::simulated(&["--no-runtime-updating"]));
    run_locally(&setup, async |bed| wait_for_explanation(bed, &["VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"]).await);
}

#[test]
fn a_server_that_is_not_there_at_the_start_is_named_and_the_others_serve() {
    let mut setup = setup();
    setup.servers.push(ServerKind::simulated(&[]));
    run_locally(&setup, async |bed| {
        bed.kill_operator();
        bed.kill_server(2);
        fs::remove_dir_all(bed.environment.rollora_local().state_dir())?;
        bed.start_operator().await?;
        bed.wait_for(served_by(MODEL, V1)).await?;
        wait_for_explanation(bed, &["cannot be reached"]).await?;
        bed.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(40)));
        bed.assert_holds_for(Duration::from_millis(500), served_by(MODEL, V1)).await?;
        bed.stop_clients_and_verify().await.map(drop)
    });
}
