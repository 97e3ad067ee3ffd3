#!/bin/sh
# Sends requests for one model name and counts which adapter answered.
# Exits with 1 if a request failed, and with 2 on a usage error.
set -u

usage() {
  cat <<'USAGE'
Usage: test-traffic-splitting.sh [GATEWAY [MODEL [REQUESTS]]]

  GATEWAY   address of the gateway: 10.0.0.1, gateway:8080 or https://gateway   (else $IP)
  MODEL     the name that clients send        (else $MODEL, else small-segment-lora)
  REQUESTS  how many requests are sent        (else $REQUESTS, else 20)

$API_KEY is sent as the bearer token where it is set; $TIMEOUT is how many seconds an answer may take (60).

Examples:
  IP=10.0.0.1 ./test-traffic-splitting.sh
  ./test-traffic-splitting.sh 127.0.0.1:8080 small-segment-lora 200
USAGE
}

wrong() {
  echo "test-traffic-splitting: $1" >&2
  exit 2
}

case "${1-}" in
  -h | --help)
    usage
    exit 0
    ;;
  -*) wrong "unknown option $1: see --help" ;;
esac
[ $# -le 3 ] || wrong "too many arguments: see --help"

gateway=${1:-${IP-}}
model=${2:-${MODEL:-small-segment-lora}}
requests=${3:-${REQUESTS:-20}}
timeout=${TIMEOUT:-60}

[ -n "$gateway" ] || wrong "no gateway: give its address, or set IP"
case $requests in
  '' | *[!0-9]* | 0*) wrong "'$requests' is not a number of requests: write one from 1, like 20" ;;
esac
case $timeout in
  '' | *[!0-9]* | 0*) wrong "TIMEOUT is '$timeout': write seconds from 1, like 60" ;;
esac
for tool in curl jq; do
  command -v "$tool" >/dev/null 2>&1 || wrong "$tool is not installed: install it with your package manager"
done

case $gateway in
  http://* | https://*) url=${gateway%/} ;;
  *) url=http://$gateway ;;
esac
url=${url%/v1}/v1/chat/completions

folder=$(mktemp -d) || exit 1
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
answer=$folder/answer
models=$folder/models
: >"$models"

# The body and the headers are passed as files, because the token must not appear in the process list.
jq -n --arg model "$model" \
  '{model: $model, messages: [{role: "user", content: "Say hello."}], max_completion_tokens: 1}' >"$folder/request"
printf 'Content-Type: application/json\n' >"$folder/headers"
[ -z "${API_KEY-}" ] || printf 'Authorization: Bearer %s\n' "$API_KEY" >>"$folder/headers"

echo "$requests requests for $model to $url"
failed=0
number=0
while [ "$number" -lt "$requests" ]; do
  number=$((number + 1))
  : >"$answer"
  code=$(curl -sS --max-time "$timeout" -o "$answer" -w '%{http_code}' \
    -H "@$folder/headers" --data-binary "@$folder/request" "$url" 2>"$folder/error")
  ended=$?
  if [ "$ended" -ne 0 ]; then
    why=$(tr '\n' ' ' <"$folder/error")
    # curl could not resolve (6) or connect (7): every further request would fail in the same way.
    if [ "$number" -eq 1 ] && { [ "$ended" -eq 6 ] || [ "$ended" -eq 7 ]; }; then
      echo "test-traffic-splitting: $gateway cannot be reached (${why% }): check the address, and that the gateway runs" >&2
      exit 1
    fi
    served=
  else
    served=$(jq -r 'if type == "object" and (.model | type) == "string" then .model else empty end' "$answer" 2>/dev/null)
    why="no .model in the answer: $(head -c 200 "$answer" | tr '\n' ' ')"
    # An error response may contain .model too.
    if [ "$code" != 200 ]; then
      served=
      why="status $code: $(head -c 200 "$answer" | tr '\n' ' ')"
    fi
  fi
  if [ -n "$served" ]; then
    printf '%s\n' "$served" >>"$models"
    echo "Request $number: $served"
  else
    failed=$((failed + 1))
    echo "Request $number: failed: $why"
  fi
done

echo "Answers by model, $requests requests:"
sort "$models" | uniq -c | while read -r count name; do
  echo "$name: $count requests"
done
if [ "$failed" -ne 0 ]; then
  echo "failed: $failed requests"
  exit 1
fi
