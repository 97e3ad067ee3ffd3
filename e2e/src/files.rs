//! The two files that a person writes and edits: as text, with comments, in the form that the guide shows.
//! `rollora-api` reads them. Edits are made here line by line, as in an editor, so that tests do not rely on the
//! editing code that they test.

use anyhow::{Context as _, Result};
use rollora_api::rollout::spec::RouterKind;
use rollora_testbed::guide::{ADAPTERS_CONFIG_MAP, BASE_MODEL, MODEL, POOL, REWRITE};
use std::time::Duration;

/// The total weight if a manifest does not set it.
const DEFAULT_TOTAL_WEIGHT: u32 = 100;

/// One entry of the adapters file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedAdapter {
    /// The id under which servers load the adapter.
    pub id: String,
    /// The `source` text of the entry.
    pub source: String,
}

impl ListedAdapter {
    /// Creates an entry from its two fields.
    pub fn new(id: &str, source: &str) -> Self {
        Self { id: id.to_owned(), source: source.to_owned() }
    }
}

/// Returns the guide's adapters file in its ConfigMap, with these entries and a person's comments.
pub fn adapters_yaml(base_model: &str, entries: &[ListedAdapter]) -> String {
    let entry = |entry: &ListedAdapter| format!("        - id: {}\n          source: {}\n", entry.id, entry.source);
    let entries: String = entries.iter().map(entry).collect();
    format!(
        "apiVersion: v1\n\
         kind: ConfigMap\n\
         metadata:\n  name: {ADAPTERS_CONFIG_MAP}\n\
         data:\n  configmap.yaml: |\n    \
         # Listing a new version here is the release.\n    \
         vLLMLoRAConfig:\n      \
         name: {ADAPTERS_CONFIG_MAP}\n      \
         port: 8000\n      \
         defaultBaseModel: {base_model}\n      \
         ensureExist:\n        \
         models:\n{entries}"
    )
}

/// Returns the text with an entry added below the others of `ensureExist`.
pub fn list_adapter(text: &str, entry: &ListedAdapter) -> Result<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let section = find_line(&lines, 0, "ensureExist:").context("the file has no `ensureExist`")?;
    let end = find_line(&lines, section, "ensureNotExist:").unwrap_or(lines.len());
    let last = (section..end).rev().find(|index| lines[*index].trim_start().starts_with("source:"));
    let last = last.context("`ensureExist` has no entry")?;
    let indent = lines[last].len() - lines[last].trim_start().len() - 2;
    let indent = " ".repeat(indent);
    let new = [format!("{indent}- id: {}", entry.id), format!("{indent}  source: {}", entry.source)];
    lines.splice((last + 1)..=last, new);
    Ok(lines.join("\n") + "\n")
}

/// Returns the text without the two lines of the entry `id`.
pub fn remove_adapter(text: &str, id: &str) -> Result<String> {
    let mut lines: Vec<&str> = text.lines().collect();
    let wanted = format!("- id: {id}");
    let index = lines.iter().position(|line| line.trim() == wanted);
    let index = index.with_context(|| format!("the file has no line `{wanted}`"))?;
    lines.drain(index..index + 2);
    Ok(lines.join("\n") + "\n")
}

/// Returns the text with the entry `id` moved to `ensureNotExist`, as the guide does at its end.
pub fn unlist_adapter(text: &str, id: &str) -> Result<String> {
    let entry = format!("- id: {id}");
    let line = text.lines().find(|line| line.trim() == entry);
    let line = line.with_context(|| format!("the file has no line `{entry}`"))?;
    let source = text.lines().skip_while(|other| *other != line).nth(1).unwrap_or_default();
    let rest = remove_adapter(text, id)?;
    if let Some((before, after)) = rest.split_once("ensureNotExist:\n") {
        let (models, entries) = after.split_once('\n').unwrap_or((after, ""));
        return Ok(format!("{before}ensureNotExist:\n{models}\n{line}\n{source}\n{entries}"));
    }
    let indent = " ".repeat(line.len() - line.trim_start().len());
    let outer = indent.strip_suffix("  ").unwrap_or_default();
    Ok(format!("{rest}{outer}ensureNotExist:\n{indent}models:\n{line}\n{source}\n"))
}

fn find_line(lines: &[String], from: usize, word: &str) -> Option<usize> {
    (from..lines.len()).find(|index| lines[*index].trim() == word)
}

/// The fields of a Rollout that scenarios vary; all others are the guide's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolloutManifest {
    /// The steps of the strategy, in order.
    pub steps: Vec<RolloutStep>,
    /// The total that the steps' weights are a part of.
    pub total_weight: u32,
    /// Minimum time before a retired adapter is unlisted (`cleanup.delay`).
    pub delay: Duration,
    /// How long a retired adapter must be idle before it is unloaded (`cleanup.quietFor`).
    pub quiet_for: Duration,
    /// Which component applies the rewrite.
    pub router: RouterKind,
}

/// One step of the strategy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RolloutStep {
    /// Gives the new version this part of the total weight.
    Weight(u32),
    /// Waits for this time.
    Pause(Duration),
    /// Waits until a person promotes.
    IndefinitePause,
}

impl RolloutStep {
    /// Returns the step as a line of the file; its comment has the remaining weight of the old version.
    fn to_yaml_line(self, total_weight: u32) -> String {
        match self {
            Self::Weight(weight) => {
                format!("setWeight: {weight:<12} # {}/{weight}", total_weight.saturating_sub(weight))
            }
            Self::Pause(duration) => format!("pause: {{ duration: {} }}", format_duration(duration)),
            Self::IndefinitePause => "pause: {}                   # until a person promotes".to_owned(),
        }
    }
}

impl RolloutManifest {
    /// The guide's three splits, with a pause of this length after the first two.
    pub fn guide(pause: Duration) -> Self {
        use RolloutStep::{Pause, Weight};
        Self {
            steps: vec![Weight(10), Pause(pause), Weight(50), Pause(pause), Weight(100)],
            total_weight: DEFAULT_TOTAL_WEIGHT,
            delay: Duration::from_millis(300),
            quiet_for: Duration::from_millis(300),
            router: RouterKind::ExtProc,
        }
    }

    /// The guide's three splits, waiting at 50/50 until a person promotes.
    pub fn pause_at_half(pause: Duration) -> Self {
        use RolloutStep::{IndefinitePause, Pause, Weight};
        Self { steps: vec![Weight(10), Pause(pause), Weight(50), IndefinitePause, Weight(100)], ..Self::guide(pause) }
    }

    /// Returns the Rollout's file.
    pub fn yaml(&self) -> String {
        let steps: Vec<_> =
            self.steps.iter().map(|step| format!("    - {}", step.to_yaml_line(self.total_weight))).collect();
        let steps = steps.join("\n");
        let (delay, quiet_for) = (format_duration(self.delay), format_duration(self.quiet_for));
        let router = match self.router {
            RouterKind::ExtProc => "",
            RouterKind::EndpointPicker => "router: EndpointPicker\n  ",
        };
        let total = match self.total_weight {
            DEFAULT_TOTAL_WEIGHT => String::new(),
            total => format!("totalWeight: {total}\n    "),
        };
        format!(
            "apiVersion: rollora.dev/v1alpha1\n\
             kind: Rollout\n\
             metadata: {{ name: {MODEL} }}\n\
             spec:\n  \
             model: {MODEL}                 # the name that clients send\n  \
             poolRef: {{ name: {POOL} }}\n  \
             adapter:\n    \
             follow: {{ pattern: \"{MODEL}-v*\" }}   # the highest version that is listed\n  \
             adaptersRef: {{ name: {ADAPTERS_CONFIG_MAP}, key: configmap.yaml }}\n  \
             rewriteRef: {{ name: {REWRITE} }}\n  {router}\
             strategy:\n    {total}\
             steps:\n{steps}\n  \
             cleanup: {{ policy: Unload, delay: {delay}, quietFor: {quiet_for} }}\n"
        )
    }
}

/// Returns a duration in the Gateway API's format.
fn format_duration(duration: Duration) -> String {
    match (duration.as_secs(), duration.subsec_millis()) {
        (seconds, 0) => format!("{seconds}s"),
        (0, millis) => format!("{millis}ms"),
        (seconds, millis) => format!("{seconds}s{millis}ms"),
    }
}

/// A line of [`diff_lines`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiffLine<'a> {
    /// The line is in both texts.
    Same(&'a str),
    /// The line is in the old text only.
    Removed(&'a str),
    /// The line is in the new text only.
    Added(&'a str),
}

/// Returns the line differences of two texts, based on their longest common subsequence.
pub fn diff_lines<'a>(before: &'a str, after: &'a str) -> Vec<DiffLine<'a>> {
    let (before, after): (Vec<_>, Vec<_>) = (before.lines().collect(), after.lines().collect());
    // common[i][j] is the number of lines that before[i..] and after[j..] have in common.
    let mut common = vec![vec![0_usize; after.len() + 1]; before.len() + 1];
    for i in (0..before.len()).rev() {
        for j in (0..after.len()).rev() {
            common[i][j] =
                if before[i] == after[j] { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
        }
    }
    let (mut i, mut j, mut lines) = (0, 0, Vec::new());
    while i < before.len() || j < after.len() {
        if i < before.len() && j < after.len() && before[i] == after[j] {
            lines.push(DiffLine::Same(before[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == after.len() || (i < before.len() && common[i + 1][j] >= common[i][j + 1]) {
            lines.push(DiffLine::Removed(before[i]));
            i += 1;
        } else {
            lines.push(DiffLine::Added(after[j]));
            j += 1;
        }
    }
    lines
}

/// Returns the guide's adapters file with these entries.
pub fn guide_adapters(entries: &[ListedAdapter]) -> String {
    adapters_yaml(BASE_MODEL, entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rollora_api::{
        adapters::{AdaptersFile, AdaptersText},
        rollout::Rollout,
    };
    use rollora_testbed::guide::{SOURCE, V1, V2, V3};

    fn read(text: &str) -> AdaptersFile {
        AdaptersText::new(text, "configmap.yaml").unwrap().parse().unwrap().file
    }

    fn ids(file: &AdaptersFile) -> Vec<&str> {
        file.ensure_exist.iter().map(|entry| entry.id.as_str()).collect()
    }

    #[test]
    fn api_parses_listed_and_removed_entries() {
        let first = guide_adapters(&[ListedAdapter::new(V1, SOURCE)]);
        assert_eq!(ids(&read(&first)), [V1]);
        let both = list_adapter(&first, &ListedAdapter::new(V2, SOURCE)).unwrap();
        assert_eq!(ids(&read(&both)), [V1, V2]);
        assert_eq!(remove_adapter(&both, V2).unwrap(), first);
    }

    #[test]
    fn unlisting_moves_an_entry_to_the_other_list() {
        let text = guide_adapters(&[V1, V2, V3].map(|id| ListedAdapter::new(id, SOURCE)));
        let one = unlist_adapter(&text, V2).unwrap();
        let two = unlist_adapter(&one, V1).unwrap();
        let not_ids = |text: &str| read(text).ensure_not_exist.iter().map(|it| it.id.to_string()).collect::<Vec<_>>();
        assert_eq!((ids(&read(&one)), not_ids(&one)), (vec![V1, V3], vec![V2.to_owned()]));
        assert_eq!((ids(&read(&two)), not_ids(&two)), (vec![V3], vec![V1.to_owned(), V2.to_owned()]));
    }

    #[test]
    fn rollout_manifests_are_valid() {
        let guide = RolloutManifest::guide(Duration::from_millis(1500));
        let thousandths = RolloutManifest { total_weight: 1000, ..guide.clone() };
        for file in [guide, RolloutManifest::pause_at_half(Duration::from_secs(2)), thousandths] {
            let rollout = Rollout::from_yaml(&file.yaml()).unwrap_or_else(|error| panic!("{error}\n{}", file.yaml()));
            let strategy = rollout.spec.strategy;
            assert_eq!(
                (strategy.steps.len(), strategy.total_weight.unsigned_abs()),
                (file.steps.len(), file.total_weight)
            );
        }
    }

    #[test]
    fn diff_keeps_common_lines() {
        use DiffLine::{Added, Removed, Same};
        assert_eq!(diff_lines("a\nb\nc\n", "a\nc\nd\n"), [Same("a"), Removed("b"), Same("c"), Added("d")]);
        assert_eq!(diff_lines("", "a\n"), [Added("a")]);
    }
}
