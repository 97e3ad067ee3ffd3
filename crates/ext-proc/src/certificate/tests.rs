use super::*;
use tempfile::TempDir;

const ONE: [&str; 2] = [include_str!("../../testdata/one.crt"), include_str!("../../testdata/one.key")];
const TWO: [&str; 2] = [include_str!("../../testdata/two.crt"), include_str!("../../testdata/two.key")];

fn write_files(home: &TempDir, [certificate, key]: [&str; 2]) -> CertificateFiles {
    let files = CertificateFiles { certificate: home.path().join("tls.crt"), key: home.path().join("tls.key") };
    fs::write(&files.certificate, certificate).unwrap();
    fs::write(&files.key, key).unwrap();
    files
}

fn der([certificate, _]: [&str; 2]) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()
}

fn active_certificate(certificate: &CertificateReloader) -> CertificateDer<'static> {
    certificate.resolver.0.load().cert[0].clone()
}

#[test]
fn renewed_certificate_is_loaded_and_invalid_one_ignored() {
    let home = tempfile::tempdir().unwrap();
    let files = write_files(&home, ONE);
    let mut certificate = CertificateReloader::load(files.clone(), &mut Registry::default()).unwrap();
    assert_eq!(active_certificate(&certificate), der(ONE));
    for bad in [["", ONE[1]], ["no PEM", ""], [TWO[0], ONE[1]], [TWO[0], "-----BEGIN PRIVATE KEY-----\nAA"]] {
        write_files(&home, bad);
        certificate.reload_if_changed();
        certificate.reload_if_changed();
        assert_eq!((active_certificate(&certificate), certificate.up.get()), (der(ONE), 0), "{bad:?}");
    }
    fs::remove_file(&files.key).unwrap();
    certificate.reload_if_changed();
    assert_eq!((active_certificate(&certificate), certificate.up.get()), (der(ONE), 0));
    write_files(&home, TWO);
    certificate.reload_if_changed();
    assert_eq!((active_certificate(&certificate), certificate.up.get(), certificate.loads.get()), (der(TWO), 1, 2));
    certificate.reload_if_changed();
    assert_eq!(certificate.loads.get(), 2);
    fs::remove_file(&files.key).unwrap();
    certificate.reload_if_changed();
    write_files(&home, TWO);
    certificate.reload_if_changed();
    assert_eq!((certificate.up.get(), certificate.loads.get()), (1, 3), "the unchanged files are valid again");
}

#[test]
fn load_fails_without_a_valid_certificate() {
    let home = tempfile::tempdir().unwrap();
    let missing_files = CertificateFiles { certificate: home.path().join("a"), key: home.path().join("b") };
    let message = CertificateReloader::load(missing_files, &mut Registry::default()).unwrap_err().to_string();
    assert!(message.starts_with("cannot read "), "{message}");
    let files = write_files(&home, [TWO[0], ONE[1]]);
    let message = CertificateReloader::load(files, &mut Registry::default()).unwrap_err().to_string();
    assert_eq!(message, "the certificate of --tls-cert and the private key of --tls-key cannot be used");
}
