//! What the demo writes: lines that stay, and on a terminal one line below them that says what it waits for.

use crate::{files::Line, traffic::Count};
use rollora_testbed::clock;
use std::{
    future::Future,
    io::{self, IsTerminal as _, Write as _},
    pin::pin,
    time::{Duration, Instant},
};

/// The widest line; what is longer is cut where it is written live.
const WIDTH: usize = 100;
/// How often [`Screen::waiting`] is written while nothing new is known: as often as a bed is looked at.
const TURN: Duration = Duration::from_millis(20);
const WHEELS: [char; 8] = ['⣾', '⣽', '⣻', '⢿', '⡿', '⣟', '⣯', '⣷'];

/// How a piece of text looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
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
    turns: usize,
}

impl Screen {
    pub(super) fn new() -> Self {
        let terminal = io::stdout().is_terminal();
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { start: clock::now(), terminal, color: terminal && !no_color, turns: 0 }
    }

    /// Time since the demo began.
    pub(super) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// A line.
    pub(super) fn line(&mut self, text: &str) {
        self.erase();
        put(&format!("{text}\n"));
    }

    /// The head of a part.
    pub(super) fn part(&mut self, name: &str, what: &str) {
        let name = self.paint(Look::Bold, name);
        self.line(&format!("\n{name}  {what}"));
    }

    /// Something was seen to be true.
    pub(super) fn seen(&mut self, what: &str) {
        let mark = self.paint(Look::Green, "✓");
        let time = self.paint(Look::Dim, &format!("{:>6.1} s", self.elapsed().as_secs_f64()));
        let gap = " ".repeat(84_usize.saturating_sub(what.chars().count()));
        self.line(&format!("  {mark} {what}{gap}{time}"));
    }

    /// The guide's count, with the versions that answered nothing.
    pub(super) fn count(&mut self, count: &Count, versions: &[&str]) {
        self.line(&format!("    Traffic Split Results, total requests: {}", count.total()));
        for version in versions {
            self.line(&format!("    {version}: {} requests", count.of(version)));
        }
    }

    /// The lines of a file that changed.
    pub(super) fn changes(&mut self, lines: &[Line<'_>]) {
        for line in lines {
            let (look, text) = match line {
                Line::Same(_) => continue,
                Line::Removed(text) => (Look::Red, format!("- {text}")),
                Line::Added(text) => (Look::Green, format!("+ {text}")),
            };
            let text = self.paint(look, &text);
            self.line(&format!("    {text}"));
        }
    }

    /// What is waited for. Nothing is written where nobody would see it change.
    pub(super) fn waiting(&mut self, what: &str) {
        if !self.terminal {
            return;
        }
        self.turns += 1;
        let wheel = WHEELS[self.turns / 3 % WHEELS.len()];
        let text: String = what.chars().map(|c| if c.is_control() { ' ' } else { c }).take(WIDTH - 4).collect();
        let text = self.paint(Look::Dim, &format!("  {wheel} {text}"));
        put(&format!("\r\x1b[K{text}"));
    }

    /// Says what is waited for until it is there.
    pub(super) async fn during<T>(&mut self, what: &str, wanted: impl Future<Output = T>) -> T {
        let mut wanted = pin!(wanted);
        let mut turn = tokio::time::interval(TURN);
        loop {
            tokio::select! {
                wanted = &mut wanted => return wanted,
                _ = turn.tick() => self.waiting(what),
            }
        }
    }

    /// The end of the demo, with what there is to say of its time besides.
    pub(super) fn end(&mut self, times: &str) {
        let all = self.paint(Look::Bold, "All of it was seen to be true");
        let seconds = self.elapsed().as_secs_f64();
        let times = if times.is_empty() { String::new() } else { format!(" ({times})") };
        self.line(&format!("\n{all}, in {seconds:.1} s{times}."));
    }

    /// Takes the line of [`Self::waiting`] away.
    pub(super) fn erase(&mut self) {
        if self.terminal {
            put("\r\x1b[K");
        }
    }

    /// Text that looks so, where it may.
    pub(super) fn paint(&self, look: Look, text: &str) -> String {
        let code = match look {
            Look::Bold => 1,
            Look::Dim => 2,
            Look::Green => 32,
            Look::Red => 31,
        };
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn put(text: &str) {
    let mut out = io::stdout().lock();
    // Where nobody reads any more, nothing is left to say to anybody.
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}
