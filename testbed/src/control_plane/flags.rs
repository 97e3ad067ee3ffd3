//! How etcd and the API server are started.

use super::{ControlPlanePorts, audit, auth};
use std::{ffi::OsString, net::SocketAddr, path::Path};

/// What is on by default and only costs time here. What stays: namespaces have to exist, and objects are counted as
/// the API server counts them.
const DISABLED_ADMISSION_PLUGINS: &str = "CertificateApproval,CertificateSigning,CertificateSubjectRestriction,\
    ClusterTrustBundleAttest,DefaultIngressClass,DefaultStorageClass,DefaultTolerationSeconds,LimitRanger,\
    MutatingAdmissionPolicy,MutatingAdmissionWebhook,PersistentVolumeClaimResize,PodSecurity,PodTopologyLabels,\
    Priority,ResourceQuota,RuntimeClass,ServiceAccount,StorageObjectInUseProtection,TaintNodesByCondition,\
    ValidatingAdmissionPolicy,ValidatingAdmissionWebhook";

/// Groups that nothing in the bed asks for and nothing in the API server waits for.
const DISABLED_API_GROUPS: &str = "autoscaling/v1=false,autoscaling/v2=false,batch/v1=false,certificates.k8s.io/v1=false,\
    flowcontrol.apiserver.k8s.io/v1=false,node.k8s.io/v1=false,resource.k8s.io/v1=false,\
    scheduling.k8s.io/v1=false,storage.k8s.io/v1=false,storagemigration.k8s.io/v1=false";

pub(super) fn etcd_flags(folder: &Path, clients: SocketAddr, peers: SocketAddr) -> Vec<OsString> {
    vec![
        path_flag("--data-dir", &folder.join("etcd")),
        // Nothing here has to survive the machine.
        "--unsafe-no-fsync".into(),
        "--log-level=warn".into(),
        format!("--listen-client-urls=http://{clients}").into(),
        format!("--advertise-client-urls=http://{clients}").into(),
        format!("--listen-peer-urls=http://{peers}").into(),
        format!("--initial-advertise-peer-urls=http://{peers}").into(),
        format!("--initial-cluster=default=http://{peers}").into(),
    ]
}

pub(super) fn api_server_flags(folder: &Path, ports: &ControlPlanePorts) -> Vec<OsString> {
    // The key of its own certificate, which it makes before it asks for this file, signs the tokens too.
    let key = folder.join(auth::CERT_DIR).join("apiserver.key");
    vec![
        format!("--etcd-servers=http://{}", ports.etcd.address()).into(),
        "--bind-address=127.0.0.1".into(),
        format!("--secure-port={}", ports.api_server.number()).into(),
        path_flag("--cert-dir", &folder.join(auth::CERT_DIR)),
        path_flag("--token-auth-file", &folder.join(auth::TOKEN_FILE)),
        "--anonymous-auth=false".into(),
        "--authorization-mode=RBAC".into(),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        path_flag("--service-account-key-file", &key),
        path_flag("--service-account-signing-key-file", &key),
        // A token of ten minutes ends after ten minutes.
        "--service-account-extend-token-expiration=false".into(),
        path_flag("--audit-policy-file", &folder.join("audit.yaml")),
        path_flag("--audit-log-path", &folder.join(audit::AUDIT_LOG)),
        "--allow-privileged=true".into(),
        "--service-cluster-ip-range=10.0.0.0/24".into(),
        "--endpoint-reconciler-type=none".into(),
        "--enable-priority-and-fairness=false".into(),
        "--profiling=false".into(),
        format!("--disable-admission-plugins={DISABLED_ADMISSION_PLUGINS}").into(),
        format!("--runtime-config={DISABLED_API_GROUPS}").into(),
    ]
}

fn path_flag(flag: &str, path: &Path) -> OsString {
    let mut argument = OsString::from(format!("{flag}="));
    argument.push(path);
    argument
}
