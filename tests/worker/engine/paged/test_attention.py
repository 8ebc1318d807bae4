"""PagedAttention in numpy against attention over whole texts, written out: no pages, no packing, float64."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from worker.engine.paged import attention
from worker.engine.paged.attention import Attributes, Cache, Packing, Turning

PAGE = 16
HEADS, KV_HEADS, SIZE = 4, 2, 8
ATTRIBUTES = Attributes(HEADS, KV_HEADS)
EDGES = [1, 2, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 3 * PAGE - 1, 4 * PAGE]
CONTEXT = 4 * PAGE
GAIN = np.linspace(0.5, 2, SIZE, dtype=np.float32)

Floats = NDArray[np.float32]


def draw(length: int, seed: int) -> Floats:
    shape = (length, (HEADS + 2 * KV_HEADS) * SIZE)
    return np.random.default_rng([length, seed]).standard_normal(shape, np.float32)


def rotation() -> Turning:
    angles = np.outer(np.arange(CONTEXT), 10_000.0 ** (-np.arange(0, SIZE, 2) / SIZE))
    return Turning(np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))


def plain(text: Floats, turning: Turning, attributes: Attributes) -> NDArray[np.float64]:
    """Attention of a whole text, token by token and head by head."""
    by_head = text.astype(np.float64).reshape(len(text), HEADS + 2 * KV_HEADS, SIZE)
    mixed = np.zeros((len(text), HEADS, SIZE))
    for head in range(HEADS):
        shared = HEADS + head // (HEADS // KV_HEADS)
        values = by_head[:, shared + KV_HEADS]
        queries = [prepared(by_head[at, head], at, turning, turning.query_norm) for at in range(len(text))]
        keys = [prepared(by_head[at, shared], at, turning, turning.key_norm) for at in range(len(text))]
        for at, query in enumerate(queries):
            first = max(0, at + 1 - (attributes.window or len(text)))
            scores = np.array([query @ keys[seen] for seen in range(first, at + 1)])
            scores *= attributes.scale or SIZE**-0.5
            if attributes.softcap:
                scores = attributes.softcap * np.tanh(scores / attributes.softcap)
            odds = np.exp(scores - scores.max())
            mixed[at, head] = odds / odds.sum() @ values[first : at + 1]
    return mixed.reshape(len(text), -1)


def prepared(head: NDArray[np.float64], at: int, turning: Turning, gain: Floats | None) -> NDArray[np.float64]:
    if gain is not None:
        head = head / np.sqrt((head**2).mean() + 1e-6) * gain
    if turning.cos is None or turning.sin is None:
        return head
    left, right = np.split(head, 2)
    cos, sin = turning.cos[at].astype(np.float64), turning.sin[at].astype(np.float64)
    return np.concatenate([left * cos - right * sin, right * cos + left * sin])


class Texts:
    """Texts in pages that lie in any order, fed piece by piece in packed runs."""

    def __init__(self, texts: list[Floats], attributes: Attributes, turning: Turning, seed: int = 0) -> None:
        self.texts, self.attributes, self.turning = texts, attributes, turning
        width = CONTEXT // PAGE
        pages = np.random.default_rng(seed).permutation(len(texts) * width) + 1
        self.table = pages.reshape(len(texts), width).astype(np.int32)
        shape = (len(texts) * width + 1, PAGE, KV_HEADS, SIZE)
        self.key, self.value = (Cache(np.full(shape, np.nan, np.float32)) for _ in range(2))
        self.done = [0] * len(texts)

    def run(self, counts: list[int]) -> list[Floats]:
        """Feed each text so many tokens further, none for some; what each piece gives."""
        pieces = [text[at : at + count] for text, at, count in zip(self.texts, self.done, counts, strict=True)]
        ends = np.cumsum([0, *counts]).astype(np.int32)
        table = np.where(np.arange(CONTEXT // PAGE) * PAGE < np.add(self.done, counts)[:, None], self.table, -1)
        packing = Packing(ends, np.array(self.done, np.int32), table.astype(np.int32))
        mixed = attention.attend(np.concatenate(pieces), self.key, self.value, packing, self.turning, self.attributes)
        self.done = [at + count for at, count in zip(self.done, counts, strict=True)]
        return np.split(mixed, ends[1:-1])


VARIANTS = {
    "plain": (ATTRIBUTES, Turning()),
    "turned": (ATTRIBUTES, rotation()),
    "normed": (ATTRIBUTES, replace(rotation(), query_norm=GAIN, key_norm=np.sqrt(GAIN))),
    "window": (Attributes(HEADS, KV_HEADS, window=5), rotation()),
    "softcap and scale": (Attributes(HEADS, KV_HEADS, softcap=1.5, scale=0.7), rotation()),
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_texts_of_all_lengths_in_one_run_are_each_attended_as_alone(variant: tuple[Attributes, Turning]) -> None:
    attributes, turning = variant
    texts = [draw(length, 1) for length in EDGES]
    for text, mixed in zip(texts, Texts(texts, attributes, turning).run(EDGES), strict=True):
        np.testing.assert_allclose(mixed, plain(text, turning, attributes), atol=1e-5)


@given(st.data())
def test_a_text_fed_in_any_pieces_beside_others_is_attended_as_a_whole(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.sampled_from(EDGES), min_size=1, max_size=4))
    texts = [draw(length, seed) for seed, length in enumerate(lengths)]
    fed = Texts(texts, ATTRIBUTES, rotation(), seed=data.draw(st.integers(0, 9)))
    parts: list[list[Floats]] = [[] for _ in texts]
    while any(done < length for done, length in zip(fed.done, lengths, strict=True)):
        counts = [data.draw(st.integers(0, length - at)) for at, length in zip(fed.done, lengths, strict=True)]
        if sum(counts) == 0:
            counts = [length - at for at, length in zip(fed.done, lengths, strict=True)]
        for own, mixed in zip(parts, fed.run(counts), strict=True):
            own.append(mixed)
    for text, own in zip(texts, parts, strict=True):
        np.testing.assert_allclose(np.concatenate(own), plain(text, rotation(), ATTRIBUTES), atol=1e-5)


def test_two_texts_may_read_one_page_and_not_write_it() -> None:
    fed = Texts([draw(PAGE, 3), draw(PAGE, 3)], ATTRIBUTES, rotation())
    fed.run([PAGE, 0])
    fed.table[1, 0] = fed.table[0, 0]
    fed.done[1] = PAGE
    fed.texts = [np.concatenate([text, draw(3, own)]) for own, text in enumerate(fed.texts)]
    for text, mixed in zip(fed.texts, fed.run([3, 3]), strict=True):
        np.testing.assert_allclose(mixed, plain(text, rotation(), ATTRIBUTES)[-3:], atol=1e-5)
    fed.table[1, 1] = fed.table[0, 1]
    fed.texts = [np.concatenate([text, draw(3, 9)]) for text in fed.texts]
    with pytest.raises(ValueError, match="write page"):
        fed.run([1, 1])


def test_a_position_without_a_page_is_refused() -> None:
    fed = Texts([draw(PAGE + 1, 4)], ATTRIBUTES, Turning())
    fed.table[0, 1] = -1
    with pytest.raises(ValueError, match="no page"):
        fed.run([PAGE + 1])
    with pytest.raises(ValueError, match="beyond its 4 pages"):
        Texts([draw(CONTEXT + 1, 4)], ATTRIBUTES, Turning()).run([CONTEXT + 1])


@pytest.mark.parametrize("element", [np.int8, ml_dtypes.float8_e4m3fn], ids=["int8", "float8"])
@pytest.mark.parametrize("shape", [(1,), (KV_HEADS, 1, SIZE)], ids=["one scale", "a scale a channel"])
def test_a_cache_in_8_bits_changes_attention_little(element: type, shape: tuple[int, ...]) -> None:
    scale = np.full(shape, 4 / (127 if element is np.int8 else 16), np.float32)
    fed = Texts([draw(40, 5)], ATTRIBUTES, rotation())
    fed.key, fed.value = (Cache(np.zeros(cache.array.shape, element), scale) for cache in (fed.key, fed.value))
    truth = plain(fed.texts[0], rotation(), ATTRIBUTES)
    [mixed] = fed.run([40])
    error = np.abs(mixed - truth).max()
    assert 0 < error < (0.05 if element is np.int8 else 0.3)


def test_what_does_not_fit_into_8_bits_is_cut_and_not_wrapped() -> None:
    for element, largest in ((np.int8, 127), (ml_dtypes.float8_e4m3fn, 448)):
        cache = Cache(np.zeros((2, PAGE, KV_HEADS, SIZE), element), np.ones(1, np.float32))
        at = np.ones(1, np.int32)
        cache.write(at, at, np.full((1, KV_HEADS, SIZE), 1000, np.float32))
        assert cache.read(at, 2)[1].tolist() == np.full((KV_HEADS, SIZE), largest).tolist()
