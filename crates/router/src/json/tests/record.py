"""Records how Python's json.loads, which vLLM uses, parses a list of difficult bodies.

Prints one JSON object per line: the body in hex, and the `model` that Python reads:
{"model": TEXT}, {"other": true} (not a string, or not Unicode text), {"missing": true},
{"duplicate": true} (the last one wins in Python), {"wide": true} (UTF-16 or UTF-32), {"refused": true}.
Run: python3 record.py > python.jsonl
"""

import json
import sys

BODIES = [
    b'{"model":"a"}',
    b'{}',
    b' \t\r\n{ }\n',
    b'',
    b'   ',
    b'[]',
    b'["model","a"]',
    b'"model"',
    b'null',
    b'{"model":"a"',
    b'{"model":"a',
    b'{"model":',
    b'{"model"',
    b'{"mod',
    b'{"a":1}',
    b'{"a":1,}',
    b'{"model":"a",}',
    b'{,"model":"a"}',
    b'{"model":"a"}}',
    b'{"model":"a"} x',
    b'{"model":"a"}{"model":"b"}',
    b'{"model":"a"}\n\n',
    b'{"model":"a"}\x00',
    b'{"x":"}","model":"a"}',
    b'{"x":"\\"","model":"a"}',
    b'{"x":"\\\\","model":"a"}',
    b'{"x":"\\\\\\"}","model":"a"}',
    b'{"x":{"model":"b"},"model":"a"}',
    b'{"x":[{"model":"b"}],"model":"a"}',
    b'{"x":[[["]"]]],"model":"a"}',
    b'{"x":{"model":"b"}}',
    b'{"messages":[{"content":"{\\"model\\":\\"b\\"}"}],"model":"a"}',
    b'{"model":"a","model":"b"}',
    b'{"model":"a","mod\\u0065l":"b"}',
    b'{"\\u006d\\u006f\\u0064\\u0065\\u006c":"a"}',
    b'{"\\u006D\\u006F\\u0064\\u0065\\u006C":"a"}',
    b'{"\\u006d\\u006f\\u0064\\u0065\\u006cx":"a"}',
    b'{"\\u006d\\u006f\\u0064\\u0065\\u006c":"a","model":"b"}',
    b'{"mod\\el":"a"}',
    b'{"Model":"a"}',
    b'{"model ":"a"}',
    b'{"modelmodelmodelmodelmodelmodelmodel":"b","model":"a"}',
    b'{"":"b","model":"a"}',
    b'{"model\\u0000":"a"}',
    b'{"model":null}',
    b'{"model":5}',
    b'{"model":-1.5e+3}',
    b'{"model":true,"x":1}',
    b'{"model":NaN}',
    b'{"x":NaN,"y":-Infinity,"model":"a"}',
    b'{"model":{"model":"b"}}',
    b'{"model":["a"]}',
    b'{"model":[],"model":"a"}',
    b'{"model":""}',
    b'{"model":"\\u0061"}',
    b'{"model":"\\ud83d\\ude00"}',
    b'{"model":"\\ud83d"}',
    b'{"model":"\\ude00\\ud83d"}',
    b'{"model":"\\ud83dx"}',
    b'{"model":"\\ud83d\\u0061"}',
    b'{"model":"\\/\\b\\f\\n\\r\\t\\"\\\\"}',
    b'{"model":"\\x61"}',
    b'{"model":"\\u00g1"}',
    b'{"model":"\\u+061"}',
    b'{"model":"a\nb"}',
    b'{"model":"\x7f"}',
    b'{"x":"a\nb","model":"a"}',
    b'{"model":"\xc3\xa4"}',
    b'{"model":"\xc3"}',
    b'{"model":"\xff"}',
    b'{"model":"\xed\xa0\xbd\xed\xb8\x80"}',
    b'{"mod\xed\xa0\xbdel":"b","model":"a"}',
    b'{"x":"\xed\xa0\xbd","model":"a"}',
    b'{"x":"\xff","model":"a"}',
    b'\xef\xbb\xbf{"model":"a"}',
    b'\xef\xbb\xbf {"model":"a"}',
    b'\xef\xbb\xbf\xef\xbb\xbf{"model":"a"}',
    b'\xef\xbb{"model":"a"}',
    b'\xef\xbb\xbf',
    b' \xef\xbb\xbf{"model":"a"}',
    '{"model":"a"}'.encode("utf-16"),
    '{"model":"a"}'.encode("utf-16-le"),
    '{"model":"a"}'.encode("utf-16-be"),
    '{"model":"a"}'.encode("utf-32"),
    '{"model":"a"}'.encode("utf-32-le"),
    '{"model":"a"}'.encode("utf-32-be"),
    b'\xfe\xff' + '{"model":"a"}'.encode("utf-16-be"),
    b'{\x00}\x00',
    b'{"x":1 2,"model":"a"}',
    b'{"x":tr"ue","model":"a"}',
    b'{"x" "y","model":"a"}',
    b'{"x"::1,"model":"a"}',
    b'{"x":,"model":"a"}',
    b"{'model':'a'}",
    b'{model:"a"}',
    b'{/**/"model":"a"}',
    b'{"x":1/*,"model":"b"*/,"model":"a"}',
    b'{"x":[1,2,"model":"b"],"model":"a"}',
    b'{"x":[}],"model":"a"}',
    b'{"x":01,"model":"a"}',
    b'{"x":+1,"model":"a"}',
    b'{"x":1.,"model":"a"}',
    b'{"x":1e400,"model":"a"}',
    b'{"x":123456789012345678901234567890,"model":"a"}',
    b'{"model"\n:\t"a"\r,"x":1}',
    b'{"model"\x0b:"a"}',
    b'{"model"\xc2\xa0:"a"}',
    b'{"x":' + b'[' * 500 + b']' * 500 + b',"model":"a"}',
]


def outcome(body):
    try:
        objects = []
        value = json.loads(body, object_pairs_hook=lambda pairs: objects.append(pairs) or dict(pairs))
    except ValueError:
        return {"refused": True}
    if not isinstance(value, dict):
        return {"refused": True}
    if json.detect_encoding(body) not in ("utf-8", "utf-8-sig"):
        return {"wide": True}
    if [key for key, _ in objects[-1]].count("model") > 1:
        return {"duplicate": True}
    if "model" not in value:
        return {"missing": True}
    model = value["model"]
    if not isinstance(model, str) or any(0xD800 <= ord(character) < 0xE000 for character in model):
        return {"other": True}
    return {"model": model}


for body in BODIES:
    json.dump({"body": body.hex(), "python": outcome(body)}, sys.stdout)
    print()
