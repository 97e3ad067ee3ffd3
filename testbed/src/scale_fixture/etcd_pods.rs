//! Writes pods directly into etcd, in the form in which the API server stores them.

use super::objects::{FixturePod, PodRole, ROUTERS_PER_POOL, namespace};
use crate::http::{HttpConnection, ListenAddress, request};
use anyhow::{Context as _, Result, ensure};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use std::{net::SocketAddr, ops::Range};

/// Operations in one transaction: etcd accepts at most 128, and 1.5 MiB.
const MAX_TXN_OPS: usize = 100;

/// Writes the pods of these pools: `servers` servers each, and their routers.
pub(super) async fn create(etcd: SocketAddr, pools: Range<u16>, servers: u8, port: u16) -> Result<()> {
    let servers = move |pool| (0..servers).map(move |number| FixturePod { pool, role: PodRole::Server(number) });
    let routers = |pool| (0..ROUTERS_PER_POOL).map(move |number| FixturePod { pool, role: PodRole::Router(number) });
    let pods: Vec<FixturePod> = pools.flat_map(|pool| servers(pool).chain(routers(pool))).collect();
    let mut connection = HttpConnection::open(&ListenAddress::Tcp(etcd)).await?;
    for batch in pods.chunks(MAX_TXN_OPS) {
        let puts: Vec<Value> = batch.iter().map(|pod| put_request(*pod, port)).collect();
        let response = connection.send(request("POST", "/v3/kv/txn", Some(&json!({ "success": puts })))).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        ensure!(status.is_success(), "etcd returned {status}: {}", String::from_utf8_lossy(&body));
        let succeeded = serde_json::from_slice::<Value>(&body).context("etcd returned no JSON")?;
        ensure!(succeeded["succeeded"] == true, "etcd rejected the transaction with the pods: {succeeded}");
    }
    Ok(())
}

fn put_request(pod: FixturePod, port: u16) -> Value {
    let uid = format!("{:08x}-0000-4000-8000-000000000000", pod.address().to_bits());
    let key = format!("/registry/pods/{}/{}", namespace(pod.pool), pod.name());
    let value = pod.object(port, &uid).to_string();
    json!({ "requestPut": { "key": base64(key.as_bytes()), "value": base64(value.as_bytes()) } })
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for position in 0..4 {
            let digit = usize::try_from(bits >> (18 - 6 * position) & 63).unwrap_or_default();
            text.push(if position <= group.len() { char::from(DIGITS[digit]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_matches_the_test_vectors_of_rfc_4648() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
