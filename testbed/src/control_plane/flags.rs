//! Command-line flags of etcd and the API server.

use super::{ControlPlanePorts, audit, auth};
use std::{ffi::OsString, net::SocketAddr, path::Path};

/// Plugins that are on by default and only cost time here. Kept are the plugins that require a namespace to exist and
/// that count objects.
const DISABLED_ADMISSION_PLUGINS: &str = "CertificateApproval,CertificateSigning,CertificateSubjectRestriction,\
    ClusterTrustBundleAttest,DefaultIngressClass,DefaultStorageClass,DefaultTolerationSeconds,LimitRanger,\
    MutatingAdmissionPolicy,MutatingAdmissionWebhook,PersistentVolumeClaimResize,PodSecurity,PodTopologyLabels,\
    Priority,ResourceQuota,RuntimeClass,ServiceAccount,StorageObjectInUseProtection,TaintNodesByCondition,\
    ValidatingAdmissionPolicy,ValidatingAdmissionWebhook";

/// Groups that the testbed does not use and the API server does not need for its own start.
const DISABLED_API_GROUPS: &str = "autoscaling/v1=false,autoscaling/v2=false,batch/v1=false,certificates.k8s.io/v1=false,\
    flowcontrol.apiserver.k8s.io/v1=false,node.k8s.io/v1=false,resource.k8s.io/v1=false,\
    scheduling.k8s.io/v1=false,storage.k8s.io/v1=false,storagemigration.k8s.io/v1=false";

pub(super) fn etcd_flags(folder: &Path, clients: SocketAddr, peers: SocketAddr) -> Vec<OsString> {
    vec![
        path_flag("--data-dir", &folder.join("etcd")),
        // Nothing has to survive a crash of the machine.
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
    // The API server creates its serving key before it reads this file, so the key can sign the tokens too.
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
        // Without this flag a token of ten minutes would be extended to a year.
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
