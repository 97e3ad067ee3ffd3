//! The demo's output: permanent lines and, on a terminal, one status line below them.

use crate::{files::DiffLine, traffic::SplitCount};
use rollora_testbed::clock;
use std::{
    future::Future,
    io::{self, IsTerminal as _, Write as _},
    pin::pin,
    time::{Duration, Instant},
};

/// Width of the terminal in columns; a status line is cut there.
const MAX_WIDTH: usize = 100;
/// How often [`Screen::show_while`] redraws the status line: as often as the harness polls.
const SPINNER_INTERVAL: Duration = Duration::from_millis(20);
const SPINNER_FRAMES: [char; 8] = ['⣾', '⣽', '⣻', '⢿', '⡿', '⣟', '⣯', '⣷'];

/// Style of a piece of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ScreenStyle {
    Bold,
    Dim,
    Green,
    Red,
}

/// Standard output with the demo's clock.
#[derive(Debug)]
pub(super) struct Screen {
    start: Instant,
    terminal: bool,
    color: bool,
    spinner_ticks: usize,
}

impl Screen {
    pub(super) fn new() -> Self {
        let terminal = io::stdout().is_terminal();
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { start: clock::now(), terminal, color: terminal && !no_color, spinner_ticks: 0 }
    }

    /// Returns the time since the demo began.
    pub(super) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Prints one permanent line.
    pub(super) fn print_line(&mut self, text: &str) {
        self.clear_progress();
        write_stdout(&format!("{text}\n"));
    }

    /// Prints the heading of a section.
    pub(super) fn print_section(&mut self, name: &str, what: &str) {
        let name = self.paint(ScreenStyle::Bold, name);
        self.print_line(&format!("\n{name}  {what}"));
    }

    /// Prints a condition that was observed to hold, with the elapsed time.
    pub(super) fn print_check(&mut self, what: &str) {
        let mark = self.paint(ScreenStyle::Green, "✓");
        let time = self.paint(ScreenStyle::Dim, &format!("{:>6.1} s", self.elapsed().as_secs_f64()));
        let gap = " ".repeat(84_usize.saturating_sub(what.chars().count()));
        self.print_line(&format!("  {mark} {what}{gap}{time}"));
    }

    /// Prints the guide's count, including versions without an answer.
    pub(super) fn print_count(&mut self, count: &SplitCount, versions: &[&str]) {
        self.print_line(&format!("    Traffic Split Results, total requests: {}", count.total()));
        for version in versions {
            self.print_line(&format!("    {version}: {} requests", count.of(version)));
        }
    }

    /// Prints the changed lines of a file.
    pub(super) fn print_diff(&mut self, lines: &[DiffLine<'_>]) {
        for line in lines {
            let (style, text) = match line {
                DiffLine::Same(_) => continue,
                DiffLine::Removed(text) => (ScreenStyle::Red, format!("- {text}")),
                DiffLine::Added(text) => (ScreenStyle::Green, format!("+ {text}")),
            };
            let text = self.paint(style, &text);
            self.print_line(&format!("    {text}"));
        }
    }

    /// Redraws the status line; does nothing if standard output is not a terminal.
    pub(super) fn show_progress(&mut self, what: &str) {
        if !self.terminal {
            return;
        }
        self.spinner_ticks += 1;
        let frame = SPINNER_FRAMES[self.spinner_ticks / 3 % SPINNER_FRAMES.len()];
        let text: String = what.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_WIDTH - 4).collect();
        let text = self.paint(ScreenStyle::Dim, &format!("  {frame} {text}"));
        write_stdout(&format!("\r\x1b[K{text}"));
    }

    /// Redraws the status line until the future is done, and returns its output.
    pub(super) async fn show_while<T>(&mut self, what: &str, wanted: impl Future<Output = T>) -> T {
        let mut wanted = pin!(wanted);
        let mut interval = tokio::time::interval(SPINNER_INTERVAL);
        loop {
            tokio::select! {
                wanted = &mut wanted => return wanted,
                _ = interval.tick() => self.show_progress(what),
            }
        }
    }

    /// Prints the last line, with the total time and optional further times.
    pub(super) fn print_summary(&mut self, times: &str) {
        let all = self.paint(ScreenStyle::Bold, "Every step of the guide was observed");
        let seconds = self.elapsed().as_secs_f64();
        let times = if times.is_empty() { String::new() } else { format!(" ({times})") };
        self.print_line(&format!("\n{all}, in {seconds:.1} s{times}."));
    }

    /// Clears the status line.
    pub(super) fn clear_progress(&mut self) {
        if self.terminal {
            write_stdout("\r\x1b[K");
        }
    }

    /// Returns the text in this style; unchanged if color is off.
    pub(super) fn paint(&self, style: ScreenStyle, text: &str) -> String {
        let code = match style {
            ScreenStyle::Bold => 1,
            ScreenStyle::Dim => 2,
            ScreenStyle::Green => 32,
            ScreenStyle::Red => 31,
        };
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn write_stdout(text: &str) {
    let mut out = io::stdout().lock();
    // A closed standard output must not fail the demo.
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}
