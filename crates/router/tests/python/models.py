"""What json.loads, which vLLM reads bodies with, makes of each body: a line of hex comes, a line of JSON goes."""

import json
import sys


class Pairs(list):
    """An object's members, also those that a later one with the same key replaces."""


def judge(body):
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
    # Surrogates that stand alone go as code units, so that both sides compare the same thing.
    return {"models": len(models), "last": [ord(character) for character in last]}


for line in sys.stdin:
    print(json.dumps(judge(bytes.fromhex(line.strip()))), flush=False)
