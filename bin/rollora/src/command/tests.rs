use super::*;
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
fn clap_accepts_the_argument_definitions() {
    Args::command().debug_assert();
}

#[test]
fn command_line_selects_command_rollout_and_mode() {
    let rollout_ref = |rollout: Option<&str>, state: &str| RolloutRef {
        location: RolloutLocation::Local(state.into()),
        name: rollout.map(str::to_owned),
    };
    for (line, mode) in [
        ("rollora get --state /s", ShowMode::Summary),
        ("rollora get -o json --state /s", ShowMode::Json),
        ("rollora status --state /s", ShowMode::Status),
        ("rollora status -w --state /s", ShowMode::Watch),
        ("rollora explain --state /s", ShowMode::Explain),
    ] {
        match parse(line).unwrap() {
            Command::Show { rollout: found, mode: found_mode } => {
                assert_eq!((found, found_mode), (rollout_ref(None, "/s"), mode), "{line}");
            }
            other => panic!("{line}: {other:?}"),
        }
    }
    for (line, kind) in [
        ("rollora promote alias --state /s", IntentKind::Promote),
        ("rollora promote alias --full --state /s", IntentKind::PromoteFull),
        ("rollora abort alias --state /s", IntentKind::Abort),
        ("rollora retry alias --state /s", IntentKind::Retry),
    ] {
        match parse(line).unwrap() {
            Command::Intent { rollout: found, kind: found_kind } => {
                assert_eq!((found, found_kind), (rollout_ref(Some("alias"), "/s"), kind), "{line}");
            }
            other => panic!("{line}: {other:?}"),
        }
    }
}

#[test]
fn cluster_is_used_if_selected_or_if_no_local_process_runs() {
    let location = |line: &str, is_running: bool| {
        let CommandArgs::Status(args) = Args::try_parse_from(line.split_whitespace()).unwrap().command else {
            panic!()
        };
        RolloutRef::resolve(args.rollout, |_| is_running).location
    };
    let local_default = RolloutLocation::Local(".rollora".into());
    assert_eq!(location("rollora status", true), local_default);
    let default_cluster = ClusterLocation { is_default: true, ..ClusterLocation::default() };
    assert_eq!(location("rollora status", false), RolloutLocation::Cluster(default_cluster));
    let named = ClusterLocation { namespace: Some("prod".to_owned()), ..ClusterLocation::default() };
    assert_eq!(location("rollora status -n prod", true), RolloutLocation::Cluster(named));
    let context = ClusterLocation { context: Some("a".to_owned()), ..ClusterLocation::default() };
    assert_eq!(location("rollora status --context a", true), RolloutLocation::Cluster(context));
    for line in ["rollora status --state s -n prod", "rollora status --state s --context a"] {
        assert!(Args::try_parse_from(line.split_whitespace()).is_err(), "{line}");
    }
}

#[test]
fn local_options_have_defaults() {
    let config = local("--vllm http://127.0.0.1:8000").unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
    assert_eq!((config.max_body, config.state, config.status_listen), (64 << 20, PathBuf::from(".rollora"), None));
    assert_eq!(config.servers.iter().map(Endpoint::authority).collect::<Vec<_>>(), ["127.0.0.1:8000"]);
}

#[test]
fn all_invalid_options_are_reported_together() {
    let problems =
        local("--vllm http://a:1 --vllm http://a:1/ --vllm ftp://b --listen here --max-body 3x --status-listen 9");
    let problems = problems.unwrap_err();
    let expected = [
        "--vllm http://a:1/: duplicate server",
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
fn sizes_have_binary_units() {
    for (text, bytes) in [("1", Some(1)), ("2KiB", Some(2048)), ("64MiB", Some(64 << 20)), ("1 GiB", Some(1 << 30))] {
        assert_eq!(parse_size(text).ok(), bytes, "{text}");
    }
    for text in ["", "0", "MiB", "1MB", "-1", "99999999999GiB"] {
        assert!(parse_size(text).is_err(), "{text}");
    }
}

#[test]
fn unusable_api_key_file_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("key");
    fs::write(&empty, " \n").unwrap();
    let problems = local(&format!("--vllm http://a:1 --vllm-api-key-file {}", empty.display())).unwrap_err();
    assert!(problems[0].contains("key: the file is empty: write the API key into it"), "{problems:?}");
    let problems = local("--vllm http://a:1 --vllm-api-key-file /nowhere/key").unwrap_err();
    assert!(problems[0].starts_with("--vllm-api-key-file /nowhere/key: cannot be read"), "{problems:?}");
}
