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
fn a_renewed_certificate_is_taken_and_a_bad_one_replaces_none() {
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
    assert_eq!((certificate.up.get(), certificate.loads.get()), (1, 3), "the same again is in order again");
}

#[test]
fn without_a_certificate_it_does_not_begin() {
    let home = tempfile::tempdir().unwrap();
    let nowhere = CertificateFiles { certificate: home.path().join("a"), key: home.path().join("b") };
    let words = CertificateReloader::load(nowhere, &mut Registry::default()).unwrap_err().to_string();
    assert!(words.starts_with("cannot read "), "{words}");
    let files = write_files(&home, [TWO[0], ONE[1]]);
    let words = CertificateReloader::load(files, &mut Registry::default()).unwrap_err().to_string();
    assert_eq!(words, "the certificate and its key cannot be used");
}
