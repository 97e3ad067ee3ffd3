"""Parses bodies with json.loads, as vLLM does: reads one body per line as hex, prints one result per line as JSON."""

import json
import sys


class Pairs(list):
    """Members of an object, including those that a later one with the same key replaces."""


def parse(body):
    try:
        pairs = json.loads(body, object_pairs_hook=Pairs)
    except (ValueError, RecursionError):
        return {"refused": True}
    if not isinstance(pairs, Pairs):
        return {"no_object": True}
    models = [value for key, value in pairs if key == "model"]
    if not models:
        return {"models": 0}
    last = models[-1]
    if not isinstance(last, str):
        return {"models": len(models)}
    # Lone surrogates are printed as code units, so that both sides compare the same values.
    return {"models": len(models), "last": [ord(character) for character in last]}


for line in sys.stdin:
    print(json.dumps(parse(bytes.fromhex(line.strip()))), flush=False)
