//! Renders the snapshot that a failed scenario prints.

use crate::conditions::{ServerSnapshot, SystemSnapshot};

pub(super) fn render(snapshot: &SystemSnapshot) -> String {
    let line = |kind: &str, what: Result<String, String>| format!("{kind}: {}\n", what.unwrap_or_else(|error| error));
    let status = line("status", snapshot.status.as_ref().map(json).map_err(Clone::clone));
    let rules = snapshot.routers.iter().map(|router| router.as_ref().map(|it| json(&it.models)).map_err(Clone::clone));
    let problems = snapshot.file_problems.iter().map(|problem| format!("problem: {problem}\n"));
    std::iter::once(status)
        .chain(rules.map(|rules| line("rules", rules)))
        .chain(snapshot.servers.iter().map(server))
        .chain(problems)
        .chain([format!("adapters.yaml:\n{}", snapshot.adapters_file)])
        .collect()
}

fn server(server: &ServerSnapshot) -> String {
    let adapters = match &server.adapters {
        Ok(adapters) => format!("{adapters:?}"),
        Err(error) => error.clone(),
    };
    let sidecar = server.sidecar.as_ref().map_or_else(|| "nothing".to_owned(), json);
    format!("server {}: ready {}, /v1/models {adapters}\n  its sidecar: {sidecar}\n", server.name, server.ready)
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| error.to_string())
}
