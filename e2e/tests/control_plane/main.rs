//! The real API server of the cluster bed: it starts, refuses what it should, and keeps what it was given.
#![cfg(feature = "cluster")]

use anyhow::Result;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, api::PostParams};
use rollora_e2e::cluster::control_plane::ControlPlane;

#[tokio::test]
async fn a_restart_keeps_data() -> Result<()> {
    let start = std::time::Instant::now();
    let mut plane = ControlPlane::start().await?;
    eprintln!("start {:?}", start.elapsed());
    let namespace = plane.namespace("restart").await?;
    let maps = Api::<ConfigMap>::namespaced(plane.admin().await?, &namespace);
    let map: ConfigMap = serde_json::from_value(serde_json::json!({"metadata": {"name": "kept"}, "data": {"a": "b"}}))?;
    maps.create(&PostParams::default(), &map).await?;
    plane.kill_api_server();
    assert!(maps.get("kept").await.is_err());
    let start = std::time::Instant::now();
    plane.start_api_server().await?;
    eprintln!("restart {:?}", start.elapsed());
    assert_eq!(maps.get("kept").await?.data.unwrap()["a"], "b");
    Ok(())
}

#[tokio::test]
async fn the_shared_one_serves_everything() -> Result<()> {
    let start = std::time::Instant::now();
    let plane = ControlPlane::shared().await?;
    eprintln!("shared {:?}", start.elapsed());
    println!("{}", plane.kubeconfig_for(&rollora_e2e::cluster::control_plane::Credential::Token("x".into()), "n"));
    let out = plane.kubectl()?.args(["api-resources"]).output()?;
    println!("{}", String::from_utf8_lossy(&out.stdout));
    Ok(())
}
