//! Parser of the few series of vLLM's `/metrics` that Rollora uses, out of 50 KB.
//!
//! `vllm:lora_requests_info` is a gauge whose *value* is a timestamp: each set of adapters that was in use together has
//! a series with the time of its last step, and the series stays. The highest value among the series that name an
//! adapter is its last use. Requests that generate a single token do not appear there.

use jiff::Timestamp;
use rollora_api::names::AdapterId;
use std::collections::BTreeMap;

/// Parsed metrics of a server and of its adapters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerMetrics {
    /// `process_start_time_seconds` as written there, which changes with every restart. `None` if the server does not
    /// export it (with several API processes, or not on Linux).
    pub process_start_time: Option<String>,
    /// Number of adapters that fit on the GPU at the same time (`--max-loras`); `None` before the first use of an
    /// adapter.
    pub max_loras: Option<u32>,
    /// Time of the last use of each adapter, by the server's clock.
    pub last_used: BTreeMap<AdapterId, Timestamp>,
    /// Whether the metrics contain series of vLLM itself. Without them (`--disable-log-stats`) the use of adapters is
    /// not known.
    pub has_statistics: bool,
}

impl ServerMetrics {
    /// Parses the text of `/metrics`. Ignores unknown lines, because metrics differ between versions.
    pub fn parse(text: &str) -> Self {
        let mut metrics = Self::default();
        for line in text.lines() {
            if let Some(value) = line.strip_prefix("process_start_time_seconds ") {
                metrics.process_start_time = value.split_whitespace().next().map(str::to_owned);
            } else if line.starts_with("vllm:") {
                metrics.has_statistics = true;
                if let Some(series) = line.strip_prefix("vllm:lora_requests_info{") {
                    metrics.add_requests_info(series);
                }
            }
        }
        metrics
    }

    fn add_requests_info(&mut self, series: &str) {
        let Some((labels, value)) = series.rsplit_once('}') else { return };
        let time = value.split_whitespace().next().and_then(parse_timestamp);
        for (name, value) in LabelIter(labels) {
            match name {
                "max_lora" => self.max_loras = value.parse().ok().or(self.max_loras),
                "running_lora_adapters" | "waiting_lora_adapters" => {
                    let Some(time) = time else { continue };
                    for id in value.split(',').filter_map(|id| AdapterId::new(id).ok()) {
                        let last = self.last_used.entry(id).or_insert(time);
                        *last = time.max(*last);
                    }
                }
                _ => {}
            }
        }
    }
}

/// Parses seconds since 1970 as Prometheus writes them, for example `1.7954477e+09`.
fn parse_timestamp(seconds: &str) -> Option<Timestamp> {
    let seconds: f64 = seconds.parse().ok()?;
    let duration = jiff::SignedDuration::try_from_secs_f64(seconds).ok()?;
    Timestamp::from_duration(duration).ok()
}

/// Iterator over the labels of one series: names, and unescaped values.
struct LabelIter<'a>(&'a str);

impl<'a> Iterator for LabelIter<'a> {
    type Item = (&'a str, String);

    fn next(&mut self) -> Option<Self::Item> {
        let (name, rest) = self.0.split_once("=\"")?;
        let mut value = String::new();
        let mut characters = rest.chars();
        loop {
            match characters.next()? {
                '"' => break,
                '\\' => match characters.next()? {
                    'n' => value.push('\n'),
                    escaped => value.push(escaped),
                },
                character => value.push(character),
            }
        }
        self.0 = characters.as_str();
        Some((name.trim_start_matches(',').trim(), value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> AdapterId {
        AdapterId::new(name).unwrap()
    }

    #[test]
    fn recorded_metrics_give_identity_capacity_and_last_use() {
        let text = include_str!("../../../testbed/testdata/vllm/metrics.txt");
        let metrics = ServerMetrics::parse(text);
        assert_eq!(metrics.process_start_time.as_deref(), Some("1.79544761657e+09"));
        assert_eq!(metrics.max_loras, Some(2));
        let last: Vec<_> = metrics.last_used.iter().map(|(id, time)| (id.as_str(), time.as_second())).collect();
        assert_eq!(last, [("a2", 1_795_447_700), ("a3", 1_795_447_697)]);
        assert!(metrics.has_statistics);
    }

    #[test]
    fn metrics_without_vllm_series_have_no_statistics() {
        let text =
            "# HELP vllm:lora_requests_info Running stats on lora requests.\nprocess_start_time_seconds 1.5e+09\n";
        let metrics = ServerMetrics::parse(text);
        assert_eq!((metrics.process_start_time.as_deref(), metrics.has_statistics), (Some("1.5e+09"), false));
    }

    #[test]
    fn last_use_is_the_highest_value_of_an_adapters_series() {
        let metrics = ServerMetrics::parse(
            "vllm:lora_requests_info{max_lora=\"4\",running_lora_adapters=\"a,b\",waiting_lora_adapters=\"a,b\"} 3e+09\n\
             vllm:lora_requests_info{max_lora=\"4\",running_lora_adapters=\"a\",waiting_lora_adapters=\"\"} 1.5e+09\n\
             vllm:lora_requests_info{max_lora=\"4\",running_lora_adapters=\"\",waiting_lora_adapters=\"c\"} 2e+09 1700000000000\n",
        );
        let last: Vec<_> = metrics.last_used.iter().map(|(id, time)| (id.as_str(), time.as_second())).collect();
        assert_eq!(last, [("a", 3_000_000_000), ("b", 3_000_000_000), ("c", 2_000_000_000)]);
    }

    #[test]
    fn labels_with_escapes_braces_and_equal_signs_are_parsed() {
        let metrics = ServerMetrics::parse(
            "vllm:lora_requests_info{running_lora_adapters=\"we\\\"ird}{=\\\\x\",max_lora=\"1\"} 1e+09",
        );
        assert_eq!(metrics.last_used.keys().collect::<Vec<_>>(), [&id("we\"ird}{=\\x")]);
        assert_eq!(metrics.max_loras, Some(1));
    }

    #[test]
    fn unknown_lines_are_ignored() {
        for text in [
            "",
            "process_start_time_seconds",
            "vllm:lora_requests_info{running_lora_adapters=\"a\"} NaN",
            "vllm:lora_requests_info{running_lora_adapters=\"a\"} 1e+99",
            "vllm:lora_requests_info{running_lora_adapters=\"a",
            "vllm:lora_requests_info{} 1",
            "vllm:lora_requests_info_more{running_lora_adapters=\"a\"} 1",
        ] {
            let has_statistics = text.starts_with("vllm:");
            assert_eq!(ServerMetrics::parse(text), ServerMetrics { has_statistics, ..Default::default() }, "{text}");
        }
    }
}
