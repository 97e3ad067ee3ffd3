//! Mistakes of users on one machine: the message names the file, the line and what to do, and traffic continues.

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

/// One mistake: a line that is replaced, and the words of the message.
struct InputMistake {
    name: &'static str,
    file: InputFile,
    target_line: &'static str,
    replacement: String,
    /// Index of the wrong line within the replacement.
    error_line_offset: usize,
    expected_words: &'static [&'static str],
}

fn mistakes() -> Vec<InputMistake> {
    let mistake = |name, file, line, replacement: &str, error_line_offset, words| InputMistake {
        name,
        file,
        target_line: line,
        replacement: replacement.to_owned(),
        error_line_offset,
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

    /// Returns the text with the mistake, and the number of the wrong line, from 1.
    fn apply_to(&self, text: &str) -> Result<(String, usize)> {
        let index = text.lines().position(|line| line.trim_start().starts_with(self.target_line));
        let index = index.with_context(|| format!("no line begins with {:?}", self.target_line))?;
        let mut lines: Vec<_> = text.lines().collect();
        lines[index] = &self.replacement;
        Ok((lines.join("\n") + "\n", index + self.error_line_offset + 1))
    }

    async fn write(&self, environment: &LocalEnvironment) -> Result<usize> {
        let (text, line) = match self.file {
            InputFile::Rollout => self.apply_to(&environment.rollout_yaml().await?)?,
            InputFile::Adapters => self.apply_to(&environment.adapters_yaml().await?)?,
        };
        match self.file {
            InputFile::Rollout => environment.write_rollout(&text).await?,
            InputFile::Adapters => environment.write_adapters(&text).await?,
        }
        Ok(line)
    }

    /// Returns the location in the message; the parser may notice invalid YAML in a later line.
    fn expected_location(&self, line: usize) -> String {
        if self.name == "not YAML" { "line ".to_owned() } else { format!("line {line}") }
    }
}

fn setup() -> Setup {
    Setup { servers: vec![ServerKind::simulated(&[]); 2], ..Setup::guide(Duration::from_millis(200)) }
}

#[test]
fn mistake_in_a_file_is_reported_and_traffic_continues() {
    run_locally(&setup(), async |harness| {
        harness.wait_for_baseline().await?;
        harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(40)));
        let (rollout, adapters) =
            (harness.environment.rollout_yaml().await?, harness.environment.adapters_yaml().await?);
        for mistake in mistakes() {
            let line = mistake.write(&harness.environment).await?;
            let location = mistake.expected_location(line);
            let words = [&[mistake.file_name(), &location], mistake.expected_words].concat();
            harness.wait_for_within(Duration::from_secs(5), has_file_problem(&words)).await.context(mistake.name)?;
            check_status_message(harness, mistake.file_name()).await?;
            harness.environment.write_rollout(&rollout).await?;
            harness.environment.write_adapters(&adapters).await?;
            harness.wait_for(no_file_problems()).await.context(mistake.name)?;
        }
        harness.wait_for(served_by(MODEL, V1)).await?;

        // The next valid edit is released as usual.
        harness.list_adapter(V2).await?;
        harness.wait_for(succeeded(V2)).await?;
        harness.stop_clients_and_verify().await.map(drop)
    });
}

async fn check_status_message(harness: &Harness<LocalEnvironment>, file: &str) -> Result<()> {
    let output = harness.cli_stdout(&["status"]).await?;
    ensure!(
        output.lines().any(|line| line.contains(file) && line.contains("line")),
        "the status does not report it:\n{output}"
    );
    let snapshot = harness.environment.snapshot().await;
    let message = snapshot.status.map(|status| status.message).unwrap_or_default();
    let mut parts: Vec<_> = message.split("; ").collect();
    let all = parts.len();
    parts.sort_unstable();
    parts.dedup();
    ensure!(parts.len() == all, "the status has a message twice: {message}");
    Ok(())
}

#[test]
fn mistake_at_start_ends_the_process_with_code_2() {
    run_locally(&setup(), async |harness| {
        harness.wait_for_baseline().await?;
        harness.kill_operator();
        let (rollout, adapters) =
            (harness.environment.rollout_yaml().await?, harness.environment.adapters_yaml().await?);
        for mistake in mistakes() {
            let line = mistake.write(&harness.environment).await?;
            let output = run_command(harness.environment.rollora_local().command()?).await?;
            let location = mistake.expected_location(line);
            let words = [&[mistake.file_name(), location.as_str()], mistake.expected_words].concat();
            let name = mistake.name;
            ensure!(output.code == 2, "{name}: {output:?}");
            let found = output.stderr.lines().any(|line| words.iter().all(|word| line.contains(word)));
            ensure!(found, "{name}: no line of {} has the words {words:?}", output.stderr);
            harness.environment.write_rollout(&rollout).await?;
            harness.environment.write_adapters(&adapters).await?;
        }
        Ok(())
    });
}

#[test]
fn missing_file_is_reported_and_traffic_continues() {
    run_locally(&setup(), async |harness| {
        harness.wait_for_baseline().await?;
        harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(40)));
        let rollora = harness.environment.rollora_local();
        for (path, name) in [(rollora.adapters_file(), "adapters.yaml"), (rollora.rollout_file(), "rollout.yaml")] {
            let text = fs::read_to_string(&path)?;
            fs::remove_file(&path)?;
            harness.wait_for(has_file_problem(&[name, "no such file"])).await?;
            harness.assert_holds_for(Duration::from_millis(500), served_by(MODEL, V1)).await?;
            fs::write(&path, text)?;
            harness.wait_for(no_file_problems()).await?;
        }
        harness.stop_clients_and_verify().await.map(drop)
    });
}

#[test]
fn id_in_both_lists_is_reported_and_unchanged() {
    run_locally(&setup(), async |harness| {
        harness.wait_for_baseline().await?;
        harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(40)));
        let both = harness.environment.adapters_yaml().await?
            + &format!("      ensureNotExist:\n        models:\n        - id: {V1}\n          source: {SOURCE}\n");
        let line = both.lines().count() - 1;
        harness.environment.write_adapters(&both).await?;
        let (location, words) = (format!("line {line}"), ["adapters.yaml", V1, "ensureNotExist", "ensureExist"]);
        let poll_interval = std::time::Duration::from_millis(50);
        let mut output = String::new();
        for _ in 0..100 {
            output = harness.environment.logs();
            let reported = |line: &str| line.contains(&location) && words.iter().all(|word| line.contains(word));
            if output.lines().any(reported) {
                harness.assert_holds_for(Duration::from_secs(1), served_by(MODEL, V1)).await?;
                let explained = harness.cli_stdout(&["explain"]).await?;
                ensure!(explained.contains("both lists"), "`explain` does not report it:\n{explained}");
                return harness.stop_clients_and_verify().await.map(drop);
            }
            tokio::time::sleep(poll_interval).await;
        }
        anyhow::bail!("no log line reports that {V1} is in both lists:\n{output}")
    });
}

/// Restarts a server with flags that make it unusable: the message names it and what to do, and the two others serve
/// requests, including the next version.
fn check_misconfigured_server(flags: &[&str], words: &[&str]) {
    let setup = Setup { servers: vec![ServerKind::simulated(&[]); 3], ..Setup::guide(Duration::from_millis(200)) };
    run_locally(&setup, async |harness| {
        harness.wait_for_baseline().await?;
        harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(40)));
        harness.kill_server(2);
        harness.environment.servers_mut()[2].set_kind(ServerKind::simulated(flags));
        harness.start_server(2).await?;
        wait_for_explanation(harness, words).await?;
        harness.assert_holds_for(Duration::from_millis(500), served_by(MODEL, V1)).await?;
        harness.list_adapter(V2).await?;
        harness.wait_for(served_by(MODEL, V2)).await?;
        harness.stop_clients_and_verify().await.map(drop)
    });
}

async fn wait_for_explanation(harness: &Harness<LocalEnvironment>, words: &[&str]) -> Result<()> {
    let name = harness.environment.servers()[2].name();
    let mut output = String::new();
    for _ in 0..100 {
        output = harness.cli_stdout(&["explain"]).await?;
        let named = |line: &str| line.contains(&name) && words.iter().all(|word| line.contains(word));
        if output.lines().any(named) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    anyhow::bail!("no line names {name} with the words {words:?}:\n{output}")
}

#[test]
fn server_without_runtime_updates_is_reported() {
    check_misconfigured_server(&["--no-runtime-updating"], &["VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"]);
}

#[test]
fn server_with_another_api_key_is_reported() {
    check_misconfigured_server(&["--api-key", "other"], &["API key"]);
}

#[test]
fn server_without_lora_is_reported() {
    check_misconfigured_server(&["--no-lora"], &["--enable-lora"]);
}

/// No request is served yet: the output names the server that the rollout waits for, and what to do.
#[test]
fn unusable_server_at_start_is_reported() {
    let mut setup = setup();
    setup.servers.push(ServerKind::simulated(&["--no-runtime-updating"]));
    run_locally(&setup, async |harness| {
        wait_for_explanation(harness, &["VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"]).await
    });
}

#[test]
fn unreachable_server_at_start_is_reported() {
    let mut setup = setup();
    setup.servers.push(ServerKind::simulated(&[]));
    run_locally(&setup, async |harness| {
        harness.kill_operator();
        harness.kill_server(2);
        fs::remove_dir_all(harness.environment.rollora_local().state_dir())?;
        harness.start_operator().await?;
        harness.wait_for(served_by(MODEL, V1)).await?;
        wait_for_explanation(harness, &["cannot connect to vLLM"]).await?;
        harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(40)));
        harness.assert_holds_for(Duration::from_millis(500), served_by(MODEL, V1)).await?;
        harness.stop_clients_and_verify().await.map(drop)
    });
}
