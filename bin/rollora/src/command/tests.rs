use super::*;
use crate::args::CommandArgs as TypedVerb;
use clap::{CommandFactory, Parser};

fn parse(line: &str) -> Result<Command, CliError> {
    Command::try_from(Args::try_parse_from(line.split_whitespace()).unwrap())
}

fn local(options: &str) -> Result<LocalConfig, Vec<String>> {
    match parse(&format!("rollora local --rollout r.yaml --adapters a.yaml {options}")) {
        Ok(Command::Local(config)) => Ok(*config),
        Err(CliError::BadInput(problems)) => Err(problems),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_command_line_is_sound() {
    Args::command().debug_assert();
}

#[test]
fn what_was_typed_and_what_it_means() {
    let target = |rollout: Option<&str>, state: &str| RolloutRef {
        location: RolloutLocation::Local(state.into()),
        name: rollout.map(str::to_owned),
    };
    for (line, what) in [
        ("rollora get --state /s", ShowMode::Summary),
        ("rollora get -o json --state /s", ShowMode::Json),
        ("rollora status --state /s", ShowMode::Status),
        ("rollora status -w --state /s", ShowMode::Watch),
        ("rollora explain --state /s", ShowMode::Explain),
    ] {
        match parse(line).unwrap() {
            Command::Show { rollout: found, mode: found_what } => {
                assert_eq!((found, found_what), (target(None, "/s"), what), "{line}");
            }
            other => panic!("{line}: {other:?}"),
        }
    }
    for (line, verb) in [
        ("rollora promote alias --state /s", IntentKind::Promote),
        ("rollora promote alias --full --state /s", IntentKind::PromoteFull),
        ("rollora abort alias --state /s", IntentKind::Abort),
        ("rollora retry alias --state /s", IntentKind::Retry),
    ] {
        match parse(line).unwrap() {
            Command::Intent { rollout: found, kind: found_verb } => {
                assert_eq!((found, found_verb), (target(Some("alias"), "/s"), verb), "{line}");
            }
            other => panic!("{line}: {other:?}"),
        }
    }
}

#[test]
fn a_cluster_is_meant_where_one_is_named_or_nothing_runs_here() {
    let place = |line: &str, runs: bool| {
        let TypedVerb::Status(typed) = Args::try_parse_from(line.split_whitespace()).unwrap().command else { panic!() };
        RolloutRef::resolve(typed.rollout, |_| runs).location
    };
    let machine = RolloutLocation::Local(".rollora".into());
    assert_eq!(place("rollora status", true), machine);
    let somewhere = ClusterLocation { is_default: true, ..ClusterLocation::default() };
    assert_eq!(place("rollora status", false), RolloutLocation::Cluster(somewhere));
    let named = ClusterLocation { namespace: Some("prod".to_owned()), ..ClusterLocation::default() };
    assert_eq!(place("rollora status -n prod", true), RolloutLocation::Cluster(named));
    let context = ClusterLocation { context: Some("a".to_owned()), ..ClusterLocation::default() };
    assert_eq!(place("rollora status --context a", true), RolloutLocation::Cluster(context));
    for line in ["rollora status --state s -n prod", "rollora status --state s --context a"] {
        assert!(Args::try_parse_from(line.split_whitespace()).is_err(), "{line}");
    }
}

#[test]
fn a_local_run_with_nothing_but_what_it_needs() {
    let config = local("--vllm http://127.0.0.1:8000").unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
    assert_eq!((config.max_body, config.state, config.status_listen), (64 << 20, PathBuf::from(".rollora"), None));
    assert_eq!(config.servers.iter().map(Endpoint::authority).collect::<Vec<_>>(), ["127.0.0.1:8000"]);
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let problems =
        local("--vllm http://a:1 --vllm http://a:1/ --vllm ftp://b --listen here --max-body 3x --status-listen 9");
    let problems = problems.unwrap_err();
    let expected = [
        "--vllm http://a:1/: this server is named twice",
        "--vllm ftp://b: `ftp://b` has the scheme `ftp`",
        "--listen here: not an address",
        "--status-listen 9: not an address",
        "--max-body 3x: not a size",
    ];
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
    for (problem, expected) in problems.iter().zip(expected) {
        assert!(problem.starts_with(expected), "{problem}");
    }
}

#[test]
fn sizes_as_people_write_them() {
    for (text, bytes) in [("1", Some(1)), ("2KiB", Some(2048)), ("64MiB", Some(64 << 20)), ("1 GiB", Some(1 << 30))] {
        assert_eq!(parse_size(text).ok(), bytes, "{text}");
    }
    for text in ["", "0", "MiB", "1MB", "-1", "99999999999GiB"] {
        assert!(parse_size(text).is_err(), "{text}");
    }
}

#[test]
fn a_key_file_that_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("key");
    fs::write(&empty, " \n").unwrap();
    let problems = local(&format!("--vllm http://a:1 --vllm-api-key-file {}", empty.display())).unwrap_err();
    assert!(problems[0].contains("key: is empty: write the key into it"), "{problems:?}");
    let problems = local("--vllm http://a:1 --vllm-api-key-file /nowhere/key").unwrap_err();
    assert!(problems[0].starts_with("--vllm-api-key-file /nowhere/key: cannot be read"), "{problems:?}");
}
