//! Runs the server that forwards everything, as the baseline of `cargo xtask bench ext-proc`: `no_op GRPC_PORT`.

use anyhow::{Context as _, Result};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let port: u16 = std::env::args().nth(1).context("usage: no_op GRPC_PORT")?.parse()?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    rollora_ext_proc::no_op::serve(listener, CancellationToken::new()).await;
    Ok(())
}
