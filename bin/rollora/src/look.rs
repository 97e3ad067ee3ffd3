//! Shows: one line, everything as JSON, one screen, one screen after the other, or why nothing moves.

use crate::{
    client::Client,
    command::Look,
    render::{self, Style},
    shell::{Failure, Terminal, now, say, terminal},
};
use rollora_local::Overview;
use std::time::Duration;

/// How often the time that is left is drawn anew on a terminal.
const TICK: Duration = Duration::from_secs(1);

pub(crate) async fn run(client: &Client, what: Look) -> Result<(), Failure> {
    let style = Style { color: terminal().color };
    match what {
        Look::Line => say(&render::line(&client.overview().await?)),
        Look::Json => {
            let rollout = client.overview().await?.rollout;
            let text = serde_json::to_string_pretty(&rollout).map_err(|error| Failure::Other(error.to_string()))?;
            say(&format!("{text}\n"))
        }
        Look::Status => say(&render::status(&client.overview().await?, now(), style)),
        Look::Explain => say(&render::explain(&client.overview().await?, now(), style)),
        Look::Watch => watch(client, terminal(), style).await,
    }
}

async fn watch(client: &Client, terminal: Terminal, style: Style) -> Result<(), Failure> {
    let mut watch = client.watch().await?;
    let mut shown = String::new();
    let mut overview: Option<Overview> = None;
    loop {
        // Reading may be given up for a tick: what was read so far is kept in `watch`.
        match tokio::time::timeout(TICK, watch.next()).await {
            Ok(Ok(news)) => overview = Some(news),
            Ok(Err(error)) => return Err(error.into()),
            Err(_tick) => {}
        }
        let Some(overview) = &overview else { continue };
        if terminal.tty {
            let screen = render::status(overview, now(), style);
            if screen != shown {
                say(&render::redraw(&screen))?;
                shown = screen;
            }
        } else {
            let line = render::progress(overview);
            if line != shown {
                say(&line)?;
                shown = line;
            }
        }
    }
}
