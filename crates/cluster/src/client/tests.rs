use super::*;

fn options(kubeconfig: &str) -> ConnectOptions {
    ConnectOptions { kubeconfig: Some(kubeconfig.into()), context: None }
}

#[tokio::test]
async fn missing_kubeconfig_is_named_in_the_error() {
    let error = Cluster::connect(&options("/nowhere/kubeconfig"), "test").await.unwrap_err().to_string();
    assert!(error.starts_with("the kubeconfig /nowhere/kubeconfig cannot be used: "), "{error}");
    assert!(error.contains("No such file"), "{error}");
}

#[test]
fn error_chain_repeats_no_cause() {
    let inner = std::io::Error::other("the disk is full");
    assert_eq!(error_chain(&inner), "the disk is full");
    let outer = std::io::Error::other(std::io::Error::other("the disk is full"));
    assert_eq!(error_chain(&outer), "the disk is full");
}
