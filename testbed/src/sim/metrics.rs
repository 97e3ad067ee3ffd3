//! `/metrics`: a whole recorded answer in which the lines that Rollora reads are alive.
//!
//! Alive are `process_start_time_seconds`, `vllm:lora_requests_info`, `vllm:num_requests_running`,
//! `vllm:request_success_total`, the two token totals, and the base model's name in every label. All other values
//! stay as recorded.

use std::collections::BTreeMap;

/// The recorded answer.
const RECORDED: &str = include_str!("../../testdata/vllm/metrics.txt");

/// The numbers behind the live lines.
#[derive(Debug, Default)]
pub(super) struct MetricsState {
    /// For each adapter how many requests of two tokens or more are being generated now, in the order of their arrival.
    running: Vec<(String, usize)>,
    /// For each set of adapters that ran together, joined by commas, when it last did a step.
    last_step: BTreeMap<String, f64>,
    running_requests: usize,
    finished_by_stop: u64,
    finished_by_length: u64,
    prompt_tokens: u64,
    generated_tokens: u64,
}

impl MetricsState {
    /// A generation begins. One of a single token never shows its adapter, as with vLLM.
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

    /// A token has been generated.
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

    /// A generation ends, whole or abandoned.
    pub(super) fn request_ended(&mut self, adapter: Option<&str>, tokens: usize, now: f64) {
        self.token_generated(now);
        self.running_requests -= 1;
        if let (Some(adapter), 2..) = (adapter, tokens)
            && let Some(place) = self.running.iter().position(|(name, _)| name == adapter)
        {
            self.running[place].1 -= 1;
            if self.running[place].1 == 0 {
                self.running.remove(place);
                self.token_generated(now);
            }
        }
    }

    /// A generation has been answered whole.
    pub(super) fn request_succeeded(&mut self, stopped: bool, prompt_tokens: usize, generated_tokens: usize) {
        *(if stopped { &mut self.finished_by_stop } else { &mut self.finished_by_length }) += 1;
        self.prompt_tokens += prompt_tokens as u64;
        self.generated_tokens += generated_tokens as u64;
    }

    /// The answer of a server that started at `started`.
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
        // vLLM writes the same list into both labels, whatever runs and whatever waits.
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

/// A label's value with what must be escaped in it.
fn escape(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// A number as Prometheus' Python client writes it: `12.0`, `1.795447616570123e+09`.
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

    fn adapters(usage: &MetricsState) -> Vec<String> {
        let text = usage.render("tiny", Some(2), 1.0);
        text.lines().filter(|line| line.starts_with("vllm:lora_requests_info{")).map(str::to_owned).collect()
    }

    #[test]
    fn an_untouched_answer_has_the_lines_of_the_recording() {
        let text = MetricsState::default().render("tiny", Some(2), 1_795_447_616.57);
        let of = |text: &str| -> Vec<String> {
            let lines = text.lines().filter(|line| !line.starts_with("vllm:lora_requests_info{"));
            lines.map(|line| line.rsplit_once(' ').expect("name and value").0.to_owned()).collect()
        };
        assert_eq!(of(&text), of(RECORDED));
        assert!(text.contains("\nprocess_start_time_seconds 1.79544761657e+09\n"));
    }

    #[test]
    fn use_of_two_tokens_or_more_leaves_the_time_of_its_last_step() {
        let mut usage = MetricsState::default();
        usage.request_started(Some("a"), 2, 1e9);
        usage.request_ended(Some("a"), 2, 1e9 + 1.0);
        assert_eq!(
            adapters(&usage),
            [
                "vllm:lora_requests_info{max_lora=\"2\",running_lora_adapters=\"\",waiting_lora_adapters=\"\"} 1.000000001e+09",
                "vllm:lora_requests_info{max_lora=\"2\",running_lora_adapters=\"a\",waiting_lora_adapters=\"a\"} 1.000000001e+09",
            ]
        );
    }

    #[test]
    fn use_of_one_token_moves_only_the_series_without_names() {
        let mut usage = MetricsState::default();
        usage.request_started(Some("a"), 1, 5.0);
        usage.request_ended(Some("a"), 1, 6.0);
        assert_eq!(
            adapters(&usage),
            ["vllm:lora_requests_info{max_lora=\"2\",running_lora_adapters=\"\",waiting_lora_adapters=\"\"} 6.0"]
        );
    }

    #[test]
    fn adapters_that_run_together_share_a_series_that_stays() {
        let mut usage = MetricsState::default();
        usage.request_started(Some("b"), 9, 1.0);
        usage.request_started(Some("a"), 9, 2.0);
        usage.request_ended(Some("b"), 9, 3.0);
        usage.token_generated(4.0);
        usage.request_ended(Some("a"), 9, 5.0);
        let text = adapters(&usage).join("\n");
        for (names, at) in [("b,a", "3.0"), ("b", "1.0"), ("a", "5.0"), ("", "5.0")] {
            assert!(text.contains(&format!("waiting_lora_adapters=\"{names}\"}} {at}")), "{names}: {text}");
        }
    }

    #[test]
    fn the_base_model_is_named_in_every_label() {
        let text = MetricsState::default().render("llama", None, 1.0);
        assert!(!text.contains("\"tiny\""));
        assert!(text.contains("vllm:num_requests_running{engine=\"0\",model_name=\"llama\"} 0.0"));
        assert!(!text.contains("vllm:lora_requests_info{"));
    }
}
