"""Tokenizers rebuilt from GGUF metadata beside those of the models' makers: see benchmarks/reference_tokenizers.py."""

import gzip
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import pytest
import tokenizers

from tests.worker.model.strings import CONTROL, strings
from worker.model import Tokenizer, byte_level, sentence_piece

RECORDED = Path(__file__).with_name("reference_tokenizers.json.gz")
MARK = "\ufdd0"
FAMILIES = ("llama-bpe", "qwen2", "gpt-4o", "dbrx", "gpt-2", "smollm", "llama2", "gemma3")


class Recorded(TypedDict):
    """A tokenizer.json, and what a GGUF file of the same tokenizer says beside its tokens and merges."""

    reference: dict[str, Any]
    pre: NotRequired[str]
    scores: NotRequired[list[float]]
    tokens: NotRequired[list[str]]  # where they are spelled otherwise
    whole: NotRequired[list[int]]


@cache
def recorded() -> dict[str, Recorded]:
    kept: dict[str, Recorded] = json.loads(gzip.decompress(RECORDED.read_bytes()))
    return kept


def rebuilt(kept: Recorded) -> Tokenizer:
    """The tokenizer that we make of what a GGUF file would say."""
    reference = kept["reference"]
    ids: dict[str, int] = dict(reference["model"]["vocab"])
    ids |= {token["content"]: token["id"] for token in reference["added_tokens"]}
    tokens = {index: token for token, index in ids.items()}
    vocabulary = [tokens.get(index, f"[PAD{index}]") for index in range(max(tokens) + 1)]  # as llama.cpp fills gaps
    control = [token["id"] for token in reference["added_tokens"] if token["special"]]
    whole = [token["id"] for token in reference["added_tokens"] if not token["special"]]
    vocabulary[: len(kept.get("tokens", ()))] = kept.get("tokens", ())
    whole = kept.get("whole", whole)
    if "pre" in kept:
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in reference["model"]["merges"]]
        backend = byte_level.build(vocabulary, merges, kept["pre"], control=control, whole=whole)
    else:
        scores = kept["scores"] + [-1000.0] * (len(vocabulary) - len(kept["scores"]))
        backend = sentence_piece.build(
            vocabulary,
            scores,
            unknown="<unk>",
            control=control,
            whole=whole,
            begins_with_space="Prepend" in json.dumps(reference["normalizer"]),
        )
    return Tokenizer(backend, vocabulary=len(vocabulary), eos_token_ids=())


def reference_of(kept: Recorded) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(json.dumps(kept["reference"]))


def differences(kept: Recorded) -> Iterator[tuple[str, list[str], list[str]]]:
    """The strings that become other ids than in the reference, as a template's text and as a user's."""
    ours, theirs, shy = rebuilt(kept), reference_of(kept), reference_of(kept)
    shy.encode_special_tokens = True
    for text in strings():
        pairs = [(ours.encode_template(ours.shield(text)), shy.encode(text, add_special_tokens=False))]
        if MARK not in text:  # which templates do not hold: it is what a user's text is shielded with
            pairs.append((ours.encode_template(text), theirs.encode(text, add_special_tokens=False)))
        for found, expected in pairs:
            if found != expected.ids:
                yield text, [str(theirs.id_to_token(index)) for index in found], expected.tokens


@pytest.fixture(params=FAMILIES)
def kept(request: pytest.FixtureRequest) -> Recorded:
    return recorded()[request.param]


def test_there_are_2000_strings_of_all_kinds() -> None:
    found = strings()
    assert len(found) == 2000
    assert len(set(found)) > 1900
    signs = set("".join(found))
    assert {*map(chr, range(32)), "\ufdd0", "😀", "中", "Я"} <= signs


def test_all_families_are_recorded() -> None:
    assert recorded().keys() == set(FAMILIES)


def test_texts_become_the_ids_that_the_makers_tokenizer_gives_them(kept: Recorded) -> None:
    assert list(differences(kept)) == []


def test_no_text_of_a_user_becomes_a_control_token(kept: Recorded) -> None:
    ours = rebuilt(kept)
    control = ours.special_token_ids
    assert control
    met = 0
    for text in [*strings(), *(f"{before}{token}{CONTROL[0]}" for token in CONTROL for before in ("", "x", "\n"))]:
        assert control.isdisjoint(ours.encode_template(ours.shield(text))), text
        met += not control.isdisjoint(ours.encode_template(text))
    assert met > 10, "few of the strings look like this family's control tokens"


def test_ids_give_the_text_back(kept: Recorded) -> None:
    """But for the sign that SentencePiece takes for a space, composed letters, and the spelling of a byte."""
    ours = rebuilt(kept)
    composes = kept["reference"]["normalizer"] == {"type": "NFC"}
    for text in strings():
        if composes or "▁" in text or "<0x" in text or "\ufffd" in text:
            continue
        told = ours.decode(ours.encode_plain(text))
        assert (told[1:] if ours.drops_first_space and told else told) == text
