//! What the demo writes: lines that stay, and on a terminal one line below them that says what it waits for.

use crate::{files::DiffLine, traffic::SplitCount};
use rollora_testbed::clock;
use std::{
    future::Future,
    io::{self, IsTerminal as _, Write as _},
    pin::pin,
    time::{Duration, Instant},
};

/// The widest line; what is longer is cut where it is written live.
const MAX_WIDTH: usize = 100;
/// How often [`Screen::waiting`] is written while nothing new is known: as often as a bed is looked at.
const SPINNER_INTERVAL: Duration = Duration::from_millis(20);
const SPINNER_FRAMES: [char; 8] = ['⣾', '⣽', '⣻', '⢿', '⡿', '⣟', '⣯', '⣷'];

/// How a piece of text looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ScreenStyle {
    Bold,
    Dim,
    Green,
    Red,
}

/// Standard output.
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

    /// Time since the demo began.
    pub(super) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// A line.
    pub(super) fn print_line(&mut self, text: &str) {
        self.clear_progress();
        write_stdout(&format!("{text}\n"));
    }

    /// The head of a part.
    pub(super) fn print_section(&mut self, name: &str, what: &str) {
        let name = self.paint(ScreenStyle::Bold, name);
        self.print_line(&format!("\n{name}  {what}"));
    }

    /// Something was seen to be true.
    pub(super) fn print_check(&mut self, what: &str) {
        let mark = self.paint(ScreenStyle::Green, "✓");
        let time = self.paint(ScreenStyle::Dim, &format!("{:>6.1} s", self.elapsed().as_secs_f64()));
        let gap = " ".repeat(84_usize.saturating_sub(what.chars().count()));
        self.print_line(&format!("  {mark} {what}{gap}{time}"));
    }

    /// The guide's count, with the versions that answered nothing.
    pub(super) fn print_count(&mut self, count: &SplitCount, versions: &[&str]) {
        self.print_line(&format!("    Traffic Split Results, total requests: {}", count.total()));
        for version in versions {
            self.print_line(&format!("    {version}: {} requests", count.of(version)));
        }
    }

    /// The lines of a file that changed.
    pub(super) fn print_diff(&mut self, lines: &[DiffLine<'_>]) {
        for line in lines {
            let (look, text) = match line {
                DiffLine::Same(_) => continue,
                DiffLine::Removed(text) => (ScreenStyle::Red, format!("- {text}")),
                DiffLine::Added(text) => (ScreenStyle::Green, format!("+ {text}")),
            };
            let text = self.paint(look, &text);
            self.print_line(&format!("    {text}"));
        }
    }

    /// What is waited for. Nothing is written where nobody would see it change.
    pub(super) fn show_progress(&mut self, what: &str) {
        if !self.terminal {
            return;
        }
        self.spinner_ticks += 1;
        let wheel = SPINNER_FRAMES[self.spinner_ticks / 3 % SPINNER_FRAMES.len()];
        let text: String = what.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_WIDTH - 4).collect();
        let text = self.paint(ScreenStyle::Dim, &format!("  {wheel} {text}"));
        write_stdout(&format!("\r\x1b[K{text}"));
    }

    /// Says what is waited for until it is there.
    pub(super) async fn show_while<T>(&mut self, what: &str, wanted: impl Future<Output = T>) -> T {
        let mut wanted = pin!(wanted);
        let mut turn = tokio::time::interval(SPINNER_INTERVAL);
        loop {
            tokio::select! {
                wanted = &mut wanted => return wanted,
                _ = turn.tick() => self.show_progress(what),
            }
        }
    }

    /// The end of the demo, with what there is to say of its time besides.
    pub(super) fn print_summary(&mut self, times: &str) {
        let all = self.paint(ScreenStyle::Bold, "All of it was seen to be true");
        let seconds = self.elapsed().as_secs_f64();
        let times = if times.is_empty() { String::new() } else { format!(" ({times})") };
        self.print_line(&format!("\n{all}, in {seconds:.1} s{times}."));
    }

    /// Takes the line of [`Self::waiting`] away.
    pub(super) fn clear_progress(&mut self) {
        if self.terminal {
            write_stdout("\r\x1b[K");
        }
    }

    /// Text that looks so, where it may.
    pub(super) fn paint(&self, look: ScreenStyle, text: &str) -> String {
        let code = match look {
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
    // Where nobody reads any more, nothing is left to say to anybody.
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}
