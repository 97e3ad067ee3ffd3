//! `/metrics`: a recorded response in which the series that Rollora reads have current values.
//!
//! Current are `process_start_time_seconds`, `vllm:lora_requests_info`, `vllm:num_requests_running`,
//! `vllm:request_success_total`, the two token totals, and the base model's name in every label. All other values
//! are those of the recording.

use std::collections::BTreeMap;

const RECORDED: &str = include_str!("../../testdata/vllm/metrics.txt");

/// Values of the current series.
#[derive(Debug, Default)]
pub(super) struct MetricsState {
    /// Number of running requests with two tokens or more by adapter, in the order of arrival.
    running: Vec<(String, usize)>,
    /// Time of the last step by the set of adapters that ran together, joined by commas.
    last_step: BTreeMap<String, f64>,
    running_requests: usize,
    finished_by_stop: u64,
    finished_by_length: u64,
    prompt_tokens: u64,
    generated_tokens: u64,
}

impl MetricsState {
    /// Records the start of a generation. As in vLLM, the metrics never show an adapter that generates a single token.
    pub(super) fn request_started(&mut self, adapter: Option<&str>, tokens: usize, now: f64) {
        self.running_requests += 1;
        if let (Some(adapter), 2..) = (adapter, tokens) {
            match self.running.iter_mut().find(|(name, _)| name == adapter) {
                Some((_, count)) => *count += 1,
                None => self.running.push((adapter.to_owned(), 1)),
            }
        }
        self.token_generated(now);
    }

    /// Records that a token was generated.
    pub(super) fn token_generated(&mut self, now: f64) {
        let mut together = String::new();
        for (adapter, _) in &self.running {
            if !together.is_empty() {
                together.push(',');
            }
            together.push_str(adapter);
        }
        self.last_step.insert(together, now);
    }

    /// Records the end of a generation, complete or aborted.
    pub(super) fn request_ended(&mut self, adapter: Option<&str>, tokens: usize, now: f64) {
        self.token_generated(now);
        self.running_requests -= 1;
        if let (Some(adapter), 2..) = (adapter, tokens)
            && let Some(index) = self.running.iter().position(|(name, _)| name == adapter)
        {
            self.running[index].1 -= 1;
            if self.running[index].1 == 0 {
                self.running.remove(index);
                self.token_generated(now);
            }
        }
    }

    /// Records a generation that was completed.
    pub(super) fn request_succeeded(&mut self, stopped: bool, prompt_tokens: usize, generated_tokens: usize) {
        *(if stopped { &mut self.finished_by_stop } else { &mut self.finished_by_length }) += 1;
        self.prompt_tokens += prompt_tokens as u64;
        self.generated_tokens += generated_tokens as u64;
    }

    /// Renders the metrics of a server that started at `started`, in seconds since the epoch.
    pub(super) fn render(&self, base: &str, max_loras: Option<usize>, started: f64) -> String {
        let label = format!("model_name=\"{}\"", escape(base));
        let mut text = String::with_capacity(RECORDED.len() + 1024);
        for line in RECORDED.lines().filter(|line| !line.starts_with("vllm:lora_requests_info{")) {
            let (series, recorded) = line.rsplit_once(' ').unwrap_or((line, ""));
            let value = self.live_value(line, started).map_or_else(|| recorded.to_owned(), float);
            text.extend([&series.replace("model_name=\"tiny\"", &label), " ", &value, "\n"]);
            if line.starts_with("# TYPE vllm:lora_requests_info ") {
                text.extend(max_loras.into_iter().flat_map(|max_loras| self.adapter_lines(max_loras)));
            }
        }
        text
    }

    fn adapter_lines(&self, max_loras: usize) -> impl Iterator<Item = String> {
        // vLLM writes the same list into both labels, whether requests are running or waiting.
        self.last_step.iter().map(move |(adapters, at)| {
            let (adapters, at) = (escape(adapters), float(*at));
            format!(
                "vllm:lora_requests_info{{max_lora=\"{max_loras}\",running_lora_adapters=\"{adapters}\",\
                 waiting_lora_adapters=\"{adapters}\"}} {at}\n"
            )
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of a test run are far below 2^53")]
    fn live_value(&self, line: &str, started: f64) -> Option<f64> {
        let metric = line.split(['{', ' ']).next()?;
        match metric {
            "process_start_time_seconds" => Some(started),
            "vllm:num_requests_running" => Some(self.running_requests as f64),
            "vllm:prompt_tokens_total" => Some(self.prompt_tokens as f64),
            "vllm:generation_tokens_total" => Some(self.generated_tokens as f64),
            "vllm:request_success_total" if line.contains("\"stop\"") => Some(self.finished_by_stop as f64),
            "vllm:request_success_total" if line.contains("\"length\"") => Some(self.finished_by_length as f64),
            _ => None,
        }
    }
}

/// Escapes a label value.
fn escape(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Formats a number as Prometheus' Python client does: `12.0`, `1.795447616570123e+09`.
fn float(value: f64) -> String {
    if value < 1e6 {
        return format!("{value:?}");
    }
    let scientific = format!("{value:e}");
    match scientific.split_once('e') {
        Some((digits, exponent)) => format!("{digits}e+{exponent:0>2}"),
        None => scientific,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapters(metrics: &MetricsState) -> Vec<String> {
        let text = metrics.render("tiny", Some(2), 1.0);
        text.lines().filter(|line| line.starts_with("vllm:lora_requests_info{")).map(str::to_owned).collect()
    }

    #[test]
    fn unused_server_has_the_series_of_the_recording() {
        let text = MetricsState::default().render("tiny", Some(2), 1_795_447_616.57);
        let series = |text: &str| -> Vec<String> {
            let lines = text.lines().filter(|line| !line.starts_with("vllm:lora_requests_info{"));
            lines.map(|line| line.rsplit_once(' ').expect("name and value").0.to_owned()).collect()
        };
        assert_eq!(series(&text), series(RECORDED));
        assert!(text.contains("\nprocess_start_time_seconds 1.79544761657e+09\n"));
    }

    #[test]
    fn two_or_more_tokens_record_the_time_of_the_last_step() {
        let mut metrics = MetricsState::default();
        metrics.request_started(Some("a"), 2, 1e9);
        metrics.request_ended(Some("a"), 2, 1e9 + 1.0);
        assert_eq!(
            adapters(&metrics),
            [
                "vllm:lora_requests_info{max_lora=\"2\",running_lora_adapters=\"\",waiting_lora_adapters=\"\"} 1.000000001e+09",
                "vllm:lora_requests_info{max_lora=\"2\",running_lora_adapters=\"a\",waiting_lora_adapters=\"a\"} 1.000000001e+09",
            ]
        );
    }

    #[test]
    fn single_token_updates_only_the_series_without_names() {
        let mut metrics = MetricsState::default();
        metrics.request_started(Some("a"), 1, 5.0);
        metrics.request_ended(Some("a"), 1, 6.0);
        assert_eq!(
            adapters(&metrics),
            ["vllm:lora_requests_info{max_lora=\"2\",running_lora_adapters=\"\",waiting_lora_adapters=\"\"} 6.0"]
        );
    }

    #[test]
    fn series_of_adapters_that_ran_together_is_kept() {
        let mut metrics = MetricsState::default();
        metrics.request_started(Some("b"), 9, 1.0);
        metrics.request_started(Some("a"), 9, 2.0);
        metrics.request_ended(Some("b"), 9, 3.0);
        metrics.token_generated(4.0);
        metrics.request_ended(Some("a"), 9, 5.0);
        let text = adapters(&metrics).join("\n");
        for (names, at) in [("b,a", "3.0"), ("b", "1.0"), ("a", "5.0"), ("", "5.0")] {
            assert!(text.contains(&format!("waiting_lora_adapters=\"{names}\"}} {at}")), "{names}: {text}");
        }
    }

    #[test]
    fn base_model_name_is_in_every_label() {
        let text = MetricsState::default().render("llama", None, 1.0);
        assert!(!text.contains("\"tiny\""));
        assert!(text.contains("vllm:num_requests_running{engine=\"0\",model_name=\"llama\"} 0.0"));
        assert!(!text.contains("vllm:lora_requests_info{"));
    }
}
