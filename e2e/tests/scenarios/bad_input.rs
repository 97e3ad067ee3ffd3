//! What people get wrong: it is said in words that name the file, the line and what to do, and nothing that was served
//! before stops being served.

use anyhow::{Context as _, Result, ensure};
use rollora_e2e::{
    bed::{Bed, Place as _, Setup},
    machine::Machine,
    rollora::run,
    scenario::on_one_machine,
    seen::{complains, no_complaint, served_by, succeeded},
    traffic::Crowd,
};
use rollora_testbed::{
    guide::{MODEL, SOURCE, V1, V2},
    server::ServerKind,
};
use std::{fs, time::Duration};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum File {
    Rollout,
    Adapters,
}

/// One mistake: a line that is replaced, and the words that name it.
struct Mistake {
    name: &'static str,
    file: File,
    line: &'static str,
    instead: String,
    /// Which line of what stands there instead is the wrong one.
    wrong: usize,
    words: &'static [&'static str],
}

fn mistakes() -> Vec<Mistake> {
    let mistake = |name, file, line, instead: &str, wrong, words| Mistake {
        name,
        file,
        line,
        instead: instead.to_owned(),
        wrong,
        words,
    };
    let v1 = format!("        - id: {V1}");
    let entry = format!("{v1}\n          source: {SOURCE}\n{v1}");
    vec![
        mistake("an unknown field", File::Rollout, "strategy:", "  colour: blue\n  strategy:", 0, &["colour"]),
        mistake(
            "a weight above the total",
            File::Rollout,
            "- setWeight: 10",
            "    - setWeight: 110",
            0,
            &["110", "100"],
        ),
        mistake(
            "a step of two kinds",
            File::Rollout,
            "- setWeight: 10",
            "    - { setWeight: 10, pause: {} }",
            0,
            &["pause"],
        ),
        mistake(
            "the model is an adapter",
            File::Rollout,
            "follow:",
            "    id: small-segment-lora",
            0,
            &["spec.adapter.id", "clients send"],
        ),
        mistake("not YAML", File::Adapters, "port: 8000", "      port: [8000", 0, &[]),
        mistake("an id twice", File::Adapters, "- id: small-segment-lora-v1", &entry, 2, &[V1, "twice", "remove"]),
        mistake(
            "no source",
            File::Adapters,
            "- id:",
            &format!("{v1}\n          sauce: org/name\n        - id: other"),
            0,
            &["source"],
        ),
    ]
}

impl Mistake {
    fn file_name(&self) -> &'static str {
        match self.file {
            File::Rollout => "rollout.yaml",
            File::Adapters => "adapters.yaml",
        }
    }

    /// The text with the mistake, and the number of the wrong line.
    fn made_in(&self, text: &str) -> Result<(String, usize)> {
        let index = text.lines().position(|line| line.trim_start().starts_with(self.line));
        let index = index.with_context(|| format!("no line begins with {:?}", self.line))?;
        let mut lines: Vec<_> = text.lines().collect();
        lines[index] = &self.instead;
        Ok((lines.join("\n") + "\n", index + self.wrong + 1))
    }

    async fn make(&self, machine: &Machine) -> Result<usize> {
        let (text, line) = match self.file {
            File::Rollout => self.made_in(&machine.rollout_file().await?)?,
            File::Adapters => self.made_in(&machine.adapters_file().await?)?,
        };
        match self.file {
            File::Rollout => machine.write_rollout(&text).await?,
            File::Adapters => machine.write_adapters(&text).await?,
        }
        Ok(line)
    }

    /// Where it stands in the words of the program: only what is wrong with the YAML itself may be noticed later.
    fn place(&self, line: usize) -> String {
        if self.name == "not YAML" { "line ".to_owned() } else { format!("line {line}") }
    }
}

fn setup() -> Setup {
    Setup { servers: vec![ServerKind::simulated(&[]); 2], ..Setup::guide(Duration::from_millis(200)) }
}

#[test]
fn a_mistake_made_while_it_runs_is_named_and_stops_nothing() {
    on_one_machine(&setup(), async |bed| {
        bed.sees_baseline().await?;
        bed.clients_start(&Crowd::mixed(MODEL, Duration::from_millis(40)));
        let (rollout, adapters) = (bed.place.rollout_file().await?, bed.place.adapters_file().await?);
        for mistake in mistakes() {
            let line = mistake.make(&bed.place).await?;
            let place = mistake.place(line);
            let words = [&[mistake.file_name(), &place], mistake.words].concat();
            bed.sees_within(Duration::from_secs(5), complains(&words)).await.context(mistake.name)?;
            told_in_the_status(bed, mistake.file_name()).await?;
            bed.place.write_rollout(&rollout).await?;
            bed.place.write_adapters(&adapters).await?;
            bed.sees(no_complaint()).await.context(mistake.name)?;
        }
        bed.sees(served_by(MODEL, V1)).await?;

        // The next good edit is a release as ever.
        bed.list(V2).await?;
        bed.sees(succeeded(V2)).await?;
        bed.clients_saw_nothing_wrong().await.map(drop)
    });
}

async fn told_in_the_status(bed: &Bed<Machine>, file: &str) -> Result<()> {
    let said = bed.says(&["status"]).await?;
    ensure!(said.lines().any(|line| line.contains(file) && line.contains("line")), "the status is silent:\n{said}");
    let seen = bed.place.look().await;
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
    on_one_machine(&setup(), async |bed| {
        bed.sees_baseline().await?;
        bed.kill_operator();
        let (rollout, adapters) = (bed.place.rollout_file().await?, bed.place.adapters_file().await?);
        for mistake in mistakes() {
            let line = mistake.make(&bed.place).await?;
            let said = run(bed.place.rollora().command()?).await?;
            let place = mistake.place(line);
            let words = [&[mistake.file_name(), place.as_str()], mistake.words].concat();
            let name = mistake.name;
            ensure!(said.code == 2, "{name}: {said:?}");
            let found = said.err.lines().any(|line| words.iter().all(|word| line.contains(word)));
            ensure!(found, "{name}: no line of {} has the words {words:?}", said.err);
            bed.place.write_rollout(&rollout).await?;
            bed.place.write_adapters(&adapters).await?;
        }
        Ok(())
    });
}

#[test]
fn a_file_that_disappears_is_named_and_stops_nothing() {
    on_one_machine(&setup(), async |bed| {
        bed.sees_baseline().await?;
        bed.clients_start(&Crowd::mixed(MODEL, Duration::from_millis(40)));
        let rollora = bed.place.rollora();
        for (path, name) in [(rollora.adapters_file(), "adapters.yaml"), (rollora.rollout_file(), "rollout.yaml")] {
            let text = fs::read_to_string(&path)?;
            fs::remove_file(&path)?;
            bed.sees(complains(&[name, "no such file"])).await?;
            bed.keeps_seeing(Duration::from_millis(500), served_by(MODEL, V1)).await?;
            fs::write(&path, text)?;
            bed.sees(no_complaint()).await?;
        }
        bed.clients_saw_nothing_wrong().await.map(drop)
    });
}

#[test]
fn an_id_in_both_lists_is_named_and_left_as_it_is() {
    on_one_machine(&setup(), async |bed| {
        bed.sees_baseline().await?;
        bed.clients_start(&Crowd::mixed(MODEL, Duration::from_millis(40)));
        let both = bed.place.adapters_file().await?
            + &format!("      ensureNotExist:\n        models:\n        - id: {V1}\n          source: {SOURCE}\n");
        let line = both.lines().count() - 1;
        bed.place.write_adapters(&both).await?;
        let (place, words) = (format!("line {line}"), ["adapters.yaml", V1, "ensureNotExist", "ensureExist"]);
        let start = std::time::Duration::from_millis(50);
        let mut said = String::new();
        for _ in 0..100 {
            said = bed.place.logs();
            let told = |line: &str| line.contains(&place) && words.iter().all(|word| line.contains(word));
            if said.lines().any(told) {
                bed.keeps_seeing(Duration::from_secs(1), served_by(MODEL, V1)).await?;
                let explained = bed.says(&["explain"]).await?;
                ensure!(explained.contains("both lists"), "not explained:\n{explained}");
                return bed.clients_saw_nothing_wrong().await.map(drop);
            }
            tokio::time::sleep(start).await;
        }
        anyhow::bail!("nobody says that {V1} is in both lists:\n{said}")
    });
}

/// A server is started again as one that cannot be used: it is named with what to do, and the two others serve, also
/// the next version.
fn a_server_that_became_bad(flags: &[&str], words: &[&str]) {
    let setup = Setup { servers: vec![ServerKind::simulated(&[]); 3], ..Setup::guide(Duration::from_millis(200)) };
    on_one_machine(&setup, async |bed| {
        bed.sees_baseline().await?;
        bed.clients_start(&Crowd::mixed(MODEL, Duration::from_millis(40)));
        bed.kill_server(2);
        bed.place.servers_mut()[2].set_kind(ServerKind::simulated(flags));
        bed.start_server(2).await?;
        named_with_what_to_do(bed, words).await?;
        bed.keeps_seeing(Duration::from_millis(500), served_by(MODEL, V1)).await?;
        bed.list(V2).await?;
        bed.sees(served_by(MODEL, V2)).await?;
        bed.clients_saw_nothing_wrong().await.map(drop)
    });
}

async fn named_with_what_to_do(bed: &Bed<Machine>, words: &[&str]) -> Result<()> {
    let name = bed.place.servers()[2].name();
    let mut said = String::new();
    for _ in 0..100 {
        said = bed.says(&["explain"]).await?;
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
    a_server_that_became_bad(&["--no-runtime-updating"], &["VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"]);
}

#[test]
fn a_server_with_another_key_is_named_and_the_others_serve() {
    a_server_that_became_bad(&["--api-key", "other"], &["API key"]);
}

#[test]
fn a_server_without_lora_is_named_and_the_others_serve() {
    a_server_that_became_bad(&["--no-lora"], &["--enable-lora"]);
}

/// Nothing is served before: it waits, and says for whom and what to do.
#[test]
fn a_server_that_cannot_be_used_at_the_start_is_named() {
    let mut setup = setup();
    setup.servers.push(ServerKind::simulated(&["--no-runtime-updating"]));
    on_one_machine(&setup, async |bed| named_with_what_to_do(bed, &["VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"]).await);
}

#[test]
fn a_server_that_is_not_there_at_the_start_is_named_and_the_others_serve() {
    let mut setup = setup();
    setup.servers.push(ServerKind::simulated(&[]));
    on_one_machine(&setup, async |bed| {
        bed.kill_operator();
        bed.kill_server(2);
        fs::remove_dir_all(bed.place.rollora().state())?;
        bed.start_operator().await?;
        bed.sees(served_by(MODEL, V1)).await?;
        named_with_what_to_do(bed, &["cannot be reached"]).await?;
        bed.clients_start(&Crowd::mixed(MODEL, Duration::from_millis(40)));
        bed.keeps_seeing(Duration::from_millis(500), served_by(MODEL, V1)).await?;
        bed.clients_saw_nothing_wrong().await.map(drop)
    });
}
