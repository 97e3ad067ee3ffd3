//! Runs the server with constant rules and without a cluster, to try a filter's configuration and for benchmarks.
//!
//! `fixed_rules REWRITES.json GRPC_PORT METRICS_PORT`, with a JSON array of InferenceModelRewrites of one pool.

use anyhow::{Context as _, Result, bail};
use rollora_api::rewrite::{InferenceModelRewrite, RewriteGroup};
use rollora_ext_proc::{ExtProcServer, Listeners, ServerSettings};
use rollora_router::active_rules::ActiveRules;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, grpc_port, metrics_port] = &arguments[..] else {
        bail!("usage: fixed_rules REWRITES.json GRPC_PORT METRICS_PORT");
    };
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
    let rewrites: Vec<InferenceModelRewrite> =
        serde_json::from_str(&text).context("the file is not a JSON array of rewrites")?;
    let pool = rewrites.first().context("the file contains no rewrite")?.spec.pool_ref.clone();
    let active_rules = Arc::new(ActiveRules::new(pool, &[RewriteGroup::Current, RewriteGroup::Legacy]));
    active_rules.reset(&rewrites);
    let server = ExtProcServer::new(active_rules, ServerSettings::default());
    server.readiness().set_serving();
    let listen = |port: u16| TcpListener::bind(("127.0.0.1", port));
    let listeners = Listeners {
        grpc: listen(grpc_port.parse()?).await?,
        health: listen(0).await?,
        metrics: listen(metrics_port.parse()?).await?,
    };
    let stop = CancellationToken::new();
    let stop_on_signal = async {
        // If signals cannot be handled, the process must be killed, which is harmless.
        tokio::signal::ctrl_c().await.ok();
        stop.cancel();
        std::future::pending().await
    };
    tokio::select! {
        ended = server.serve(listeners, stop.clone()) => Ok(ended?),
        never = stop_on_signal => never,
    }
}
