//! Files and environment of containers, and when they change.

use crate::fixture::{KubeletFixture, is_ready, now, shell_container};
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;

fn pod_with_config_map(script: &str, volume: &Value) -> Value {
    let mut main = shell_container("main", script);
    main["volumeMounts"] = json!([{ "name": "map", "mountPath": "/etc/map" }]);
    json!({ "containers": [main], "volumes": [{ "name": "map", "configMap": volume }] })
}

#[tokio::test(flavor = "multi_thread")]
async fn files_follow_their_config_map_after_the_delay() -> Result<()> {
    let delay = Duration::from_millis(800);
    let fixture = KubeletFixture::with_options(|options| options.projection_delay = delay).await?;
    fixture.apply_config_map("map", json!({ "key": "one" })).await?;
    let follow = "while :; do cat /etc/map/key; echo; sleep 0.02; done";
    fixture.create_pod("pod", pod_with_config_map(follow, &json!({ "name": "map" }))).await?;
    fixture.wait_for_log("pod", "main", "one").await?;

    let start = now();
    fixture.apply_config_map("map", json!({ "key": "two" })).await?;
    fixture.wait_for_log("pod", "main", "two").await?;
    ensure!(start.elapsed() >= delay, "only {:?} later", start.elapsed());

    fixture.kubelet.set_projection_delay(Duration::ZERO);
    let start = now();
    fixture.apply_config_map("map", json!({ "key": "three" })).await?;
    fixture.wait_for_log("pod", "main", "three").await?;
    ensure!(start.elapsed() < delay, "not before {:?}", start.elapsed());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_items_do_not_name_are_left_out() -> Result<()> {
    let fixture = KubeletFixture::new().await?;
    fixture.apply_config_map("map", json!({ "key": "one", "other": "two" })).await?;
    let items = json!({ "name": "map", "items": [{ "key": "key", "path": "deep/file" }] });
    fixture
        .create_pod("pod", pod_with_config_map("ls /etc/map; cat /etc/map/deep/file; echo; exec sleep 1000", &items))
        .await?;
    let log = fixture.wait_for_log("pod", "main", "one\n").await?;
    ensure!(log == "deep\none\n", "{log:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_config_map_or_key_delays_the_pod() -> Result<()> {
    let fixture = KubeletFixture::new().await?;
    let items = json!({ "name": "map", "items": [{ "key": "key", "path": "key" }] });
    fixture.create_pod("pod", pod_with_config_map("cat /etc/map/key; exec sleep 1000", &items)).await?;
    fixture.wait_for_event(&["FailedMount", "ConfigMap \"map\" not found"]).await?;
    fixture.apply_config_map("map", json!({ "other": "two" })).await?;
    fixture.wait_for_event(&["FailedMount", "non-existent config key: key"]).await?;
    ensure!(!fixture.kubelet.container("pod", "main").await?.is_running());
    fixture.apply_config_map("map", json!({ "key": "one" })).await?;
    fixture.wait_for_log("pod", "main", "one").await?;

    // A running pod keeps its files.
    fixture.apply_config_map("map", json!({ "other": "three" })).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    ensure!(is_ready(&fixture.wait_for_pod("pod", "ready", is_ready).await?));

    let optional = json!({ "name": "nowhere", "optional": true });
    fixture.create_pod("optional", pod_with_config_map("ls /etc/map; echo begin; exec sleep 1000", &optional)).await?;
    let log = fixture.wait_for_log("optional", "main", "begin").await?;
    ensure!(log == "begin\n", "{log:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_of_a_pod_share_an_empty_folder() -> Result<()> {
    let fixture = KubeletFixture::new().await?;
    let mut writer = shell_container("writer", "echo shared > /var/adapters/file");
    writer["volumeMounts"] = json!([{ "name": "adapters", "mountPath": "/var/adapters" }]);
    let mut reader = shell_container("reader", "cat /adapters/file; exec sleep 1000");
    reader["volumeMounts"] = json!([{ "name": "adapters", "mountPath": "/adapters/" }]);
    let volumes = json!([{ "name": "adapters", "emptyDir": {} }]);
    for pod in ["one", "two"] {
        let spec = json!({ "initContainers": [writer], "containers": [reader], "volumes": volumes });
        fixture.create_pod(pod, spec).await?;
        fixture.wait_for_log(pod, "reader", "shared").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn variables_come_from_values_fields_and_keys() -> Result<()> {
    let fixture = KubeletFixture::new().await?;
    fixture.apply_config_map("map", json!({ "key": "of-the-map" })).await?;
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let mut main =
        shell_container("main", "echo $0 $ADDRESS $NAME $SPACE $LABEL $KEY ${NONE-none} $URL; env; exec sleep 1000");
    main["args"] = json!(["argument-$(NAME)"]);
    main["env"] = json!([
        field("ADDRESS", "status.podIP"),
        field("NAME", "metadata.name"),
        field("SPACE", "metadata.namespace"),
        field("LABEL", "metadata.labels['app']"),
        { "name": "KEY", "valueFrom": { "configMapKeyRef": { "name": "map", "key": "key" } } },
        { "name": "NONE", "valueFrom": { "configMapKeyRef": { "name": "map", "key": "no", "optional": true } } },
        { "name": "URL", "value": "http://$(ADDRESS):8000/$(UNKNOWN)/$$(NAME)" },
    ]);
    fixture.create_pod("pod", json!({ "containers": [main] })).await?;
    let pod = fixture.wait_for_pod("pod", "ready", is_ready).await?;
    let ip = pod.status.and_then(|status| status.pod_ip).unwrap_or_default();
    let space = &fixture.namespace;
    let log = fixture.wait_for_log("pod", "main", "HOSTNAME=pod").await?;
    let expected = format!("argument-pod {ip} pod {space} a-label of-the-map none http://{ip}:8000/$(UNKNOWN)/$(NAME)");
    ensure!(log.lines().next() == Some(&expected), "{log}\n{expected}");
    ensure!(!log.contains("CARGO"), "the container inherits the testbed's environment:\n{log}");
    Ok(())
}
