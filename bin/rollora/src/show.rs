//! Prints a Rollout: as a table of one row, as JSON, as a screen that may follow its changes, or as an explanation.

use crate::{
    client::RolloutClient,
    command::ShowMode,
    render::{self, TextStyle},
    runtime::{CliError, Terminal, detect_terminal, now, print},
};
use rollora_local::Overview;
use std::time::Duration;

/// Interval at which elapsed and remaining times are redrawn on a terminal.
const REDRAW_INTERVAL: Duration = Duration::from_secs(1);

pub(crate) async fn run(client: &RolloutClient, mode: ShowMode) -> Result<(), CliError> {
    let style = TextStyle { color: detect_terminal().color };
    match mode {
        ShowMode::Summary => print(&render::summary(&client.overview().await?)),
        ShowMode::Json => {
            let rollout = client.overview().await?.rollout;
            let text = serde_json::to_string_pretty(&rollout).map_err(|error| CliError::Other(error.to_string()))?;
            print(&format!("{text}\n"))
        }
        ShowMode::Status => print(&render::status(&client.overview().await?, now(), style)),
        ShowMode::Explain => print(&render::explain(&client.overview().await?, now(), style)),
        ShowMode::Watch => watch(client, detect_terminal(), style).await,
    }
}

async fn watch(client: &RolloutClient, terminal: Terminal, style: TextStyle) -> Result<(), CliError> {
    let mut watch = client.watch().await?;
    let mut shown = String::new();
    let mut overview: Option<Overview> = None;
    loop {
        // The timeout may cancel `next`, which is cancel safe.
        match tokio::time::timeout(REDRAW_INTERVAL, watch.next()).await {
            Ok(Ok(changed)) => overview = Some(changed),
            Ok(Err(error)) => return Err(error.into()),
            Err(_elapsed) => {}
        }
        let Some(overview) = &overview else { continue };
        if terminal.tty {
            let screen = render::status(overview, now(), style);
            if screen != shown {
                print(&render::redraw(&screen))?;
                shown = screen;
            }
        } else {
            let line = render::progress_line(overview);
            if line != shown {
                print(&line)?;
                shown = line;
            }
        }
    }
}
