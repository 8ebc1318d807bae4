"""Schemas, patterns and grammars that look harmless and are not: small to send, and endless to take literally.

`python -m tests.worker.chat.bombs FOLDER` sets all of them off in one process, with the tokenizer of the model in the
folder, and writes what each took.
"""

import json
import resource
import sys
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any, Final

from jobs.errors import BadRequest
from tests.worker.chat.walking import allowed
from worker.chat import structure
from worker.chat.grammar import Grammars
from worker.chat.grammar_text import Place
from worker.engine import NothingToSample
from worker.model import open_model

Schema = dict[str, Any]

STEPS: Final = 40
"""Tokens that are drawn within each grammar that was served."""
PLACE: Final = Place("bomb", "invalid_value", "bomb")


def _deep(depth: int, make: Any, leaf: Schema) -> Schema:
    for _ in range(depth):
        leaf = make(leaf)
    return leaf


def _text(pattern: str) -> Schema:
    return {"type": "string", "pattern": pattern}


def _words(count: int, length: int) -> list[str]:
    random = Random(count)
    return ["".join(random.choices("abcdefgh", k=length)) for _ in range(count)]


def _definitions(depth: int, make: Any, leaf: Schema) -> Schema:
    """Each refers to the next as often as `make` says."""
    names = {f"d{place}": make({"$ref": f"#/$defs/d{place + 1}"}) for place in range(depth)}
    return {"$ref": "#/$defs/d0", "$defs": {**names, f"d{depth}": leaf}}


def _terminals(count: int, pattern: str, start: str) -> str:
    names = [f"T{place}" for place in range(1, count)]
    rules = [f"{name}: {pattern.format(name[1:])}" for name in names]
    return "\n".join([f"start: {start.format(' | '.join(names))}", *rules])


SCHEMAS: Final[dict[str, Schema]] = {
    # nested
    "objects in objects": _deep(90, lambda x: {"properties": {"a": x}, "required": ["a"]}, {}),
    "choices in choices": _deep(60, lambda x: {"anyOf": [x, {"type": "null"}]}, {"type": "string"}),
    "arrays of many": _deep(6, lambda x: {"type": "array", "items": x, "minItems": 10**9}, {"type": "null"}),
    "bounds on bounds": _deep(8, lambda x: {"type": "array", "items": x, "minItems": 50, "maxItems": 99}, {}),
    # long lists
    "enum of words": {"enum": _words(9_000, 8)},
    "enum of long words": {"enum": _words(60, 2_000)},
    "enum of numbers": {"enum": list(range(0, 150_000, 7))},
    "enum of objects": {"enum": [{f"k{n}": {"v": [n] * 5}} for n in range(2_500)]},
    "any of patterns": {"anyOf": [_text(f"^{word}[a-z]{{0,50}}$") for word in _words(500, 6)]},
    "one of objects": {"oneOf": [{"properties": {"k": {"const": n}}, "required": ["k"]} for n in range(1_000)]},
    "properties with patterns": {"patternProperties": {f"^{word}": {} for word in _words(300, 6)}},
    "optional properties": {"properties": {f"p{n}": {} for n in range(1_999)}, "additionalProperties": False},
    "many objects of optional properties": {
        "anyOf": [{"properties": {f"p{m}{n}": {} for n in range(40)}} for m in range(45)]
    },
    # references
    "each twice": _definitions(14, lambda x: {"type": "array", "prefixItems": [x, x], "items": False}, {}),
    "each twice, deeper": _definitions(30, lambda x: {"properties": {"a": x, "b": x}}, {}),
    "each three times at once": _definitions(9, lambda x: {"anyOf": [x, x, x]}, {"type": "string"}),
    "all of each": _definitions(12, lambda x: {"allOf": [x, {"properties": {"a": x}}]}, {}),
    "itself in itself": {"anyOf": [{"$ref": "#"}, {"type": "array", "items": {"$ref": "#"}}]},
    "a ring": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    # numbers
    "a billion items": {"type": "array", "items": {"type": "integer"}, "minItems": 10**9, "maxItems": 10**9},
    "up to a billion items": {"type": "array", "items": {"type": "boolean"}, "maxItems": 10**9},
    "up to a billion letters": {"type": "string", "maxLength": 10**9},
    "a billion letters": {"type": "string", "minLength": 10**9},
    "an endless number of items": {"type": "array", "minItems": 10**300},
    "a huge range": {"type": "integer", "minimum": -(10**300), "maximum": 10**300},
    "a fine range": {"type": "number", "minimum": 1e-300, "maximum": 1.000000000000001e-300},
    "a common multiple": {"allOf": [{"multipleOf": 97}, {"multipleOf": 101}], "type": "integer", "minimum": 10**12},
    "a fine multiple": {"type": "number", "multipleOf": 1e-300},
    # patterns
    "counted in counted": _text("^((a{1,100}){1,100}){1,100}$"),
    "a thousand times a thousand": _text("^(a{1000}){1000}$"),
    "plus in plus": _text("^((a+)+)+$"),
    "or in plus": _text("^(a|a|aa)+$"),
    "dots": _text("^.{0,1000}x.{0,1000}y.{0,1000}$"),
    "far back": _text("^(a|b)*a(a|b){25}$"),
    "far back, twice": _text("^((a|b)*a(a|b){18}|(c|d)*c(c|d){18})$"),
    "words": _text("^(" + "|".join(_words(4_000, 12)) + ")$"),
    "words in any number": _text("^(" + "|".join(_words(1_000, 8)) + ")+$"),
    "signs of all scripts": _text(r"^(\p{L}{1,200}\p{N}{1,200}){1,200}$"),
    "a long text": _text("^" + "ab?" * 20_000 + "$"),
    "brackets": _text("(" * 500 + "a" + ")" * 500),
    "classes": _text("^" + "[a-z0-9]" * 8_000 + "$"),
}
REGEXES: Final[dict[str, str]] = {
    "any, many times": "(.*,){40}.*",
    "optional": "(a?){5000}a{5000}",
    "both": "((a|b)*c(a|b){20}){3}",
    "not": "[^a]{0,3000}[^b]{0,3000}[^c]{0,3000}",
}
GRAMMARS: Final[dict[str, str]] = {
    "a billion": 'start: "a"{1000000000}',
    "a billion words": "start: W{1000000000}\nW: /[a-z]{1,9}/",
    "doubled": "\n".join(["start: r0", *(f"r{n}: r{n + 1} r{n + 1}" for n in range(60)), 'r60: "a" |']),
    "left": 'start: start start | "a"',
    "ambiguous": 'start: a*\na: b*\nb: c*\nc: "x"*',
    "nothing": "start: a*\na: b*\nb:",
    "terminals": _terminals(800, "/[a-z]*{}/", "{}"),
    "terminals in any order": _terminals(60, "/[a-z]{{1,{}}}/", "({})*"),
}


def set_off(grammars: Grammars) -> dict[str, tuple[str, float]]:
    """Of each bomb, what became of it and the seconds it took."""
    tried = {}
    forms: list[tuple[str, Any, Any]] = [
        *((name, structure._of_schema, schema) for name, schema in SCHEMAS.items()),
        *((f"regex: {name}", structure._of_regex, pattern) for name, pattern in REGEXES.items()),
        *((f"grammar: {name}", structure._of_lark, text) for name, text in GRAMMARS.items()),
    ]
    for name, make, given in forms:
        began = monotonic()
        tried[name] = _outcome(grammars, make, given), monotonic() - began
    return tried


def _outcome(grammars: Grammars, make: Any, given: Any) -> str:
    random = Random(1)
    try:
        watcher = make(given, grammars, PLACE).grammar.watcher()
        for _ in range(STEPS):
            if not watcher.accept(int(random.choice(allowed(watcher)))):
                return "served to its end"
    except BadRequest as refused:
        return f"refused: {refused.message[:120]}"
    except NothingToSample as lost:
        return f"ended while written: {str(lost)[:120]}"
    return "served"


def main() -> None:
    grammars = Grammars(open_model(Path(sys.argv[1])).tokenizer())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tried = set_off(grammars)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    print(json.dumps({"tried": tried, "grown_mib": grown}))


if __name__ == "__main__":
    main()
