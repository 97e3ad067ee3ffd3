#!/bin/sh
# Regenerates the certificates of the tests. The keys in this folder are used only by tests and protect nothing.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2>/dev/null; }

# authority NAME: creates a CA that is valid for a hundred years, with its key in the work folder.
authority() {
  key "$work/$1.key"
  openssl req -x509 -new -key "$work/$1.key" -subj "/CN=Rollora tests, $1" -days 36500 -out "$1.pem" \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign
}

# leaf NAME AUTHORITY START END SUBJECT-ALTERNATIVE-NAMES: creates a server certificate. All of them share one key.
leaf() {
  openssl req -new -key server.key -subj "/CN=vllm" -out "$work/$1.csr"
  : >"$work/index.txt"
  cat >"$work/ca.cnf" <<CNF
[ca]
default_ca = here
[here]
database = $work/index.txt
new_certs_dir = $work
rand_serial = yes
default_md = sha256
policy = any
unique_subject = no
x509_extensions = leaf
[any]
commonName = supplied
[leaf]
basicConstraints = critical,CA:FALSE
extendedKeyUsage = serverAuth
subjectAltName = $5
CNF
  openssl ca -batch -notext -config "$work/ca.cnf" -cert "$2.pem" -keyfile "$work/$2.key" \
    -startdate "$3" -enddate "$4" -in "$work/$1.csr" -out "$1.pem" 2>/dev/null
}

key server.key
authority ca
authority other-ca
leaf server ca 20240101000000Z 21240101000000Z "DNS:localhost,IP:127.0.0.1"
leaf named ca 20240101000000Z 21240101000000Z "DNS:vllm.models.svc"
leaf expired ca 20240101000000Z 20240201000000Z "DNS:localhost,IP:127.0.0.1"
leaf other other-ca 20240101000000Z 21240101000000Z "DNS:localhost,IP:127.0.0.1"
