"""Parts `decode`, `decode-int8`, `decode-fp8` and `prefill`: single runs of the graph at many sizes, held against the
roofline.
"""

import statistics
from collections.abc import Iterator
from itertools import product
from time import perf_counter
from typing import Any, Final

import numpy as np

from benchmarks.gpu import roofline
from benchmarks.gpu.given import Given
from benchmarks.gpu.opened import Opened, open_shape
from benchmarks.gpu.roofline import Work
from worker.engine import EngineSettings
from worker.engine.paged import packing
from worker.engine.paged.packing import PackedRun
from worker.model.paged_graph import CacheFormat

_ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_CONTEXTS: Final = (500, 1500, 4000)
_PROMPTS: Final = ((1, 500), (1, 1000), (1, 4000), (4, 1000), (16, 500), (8, 1000), (2, 4000), (16, 1000))
_TINY_ROWS: Final = (1, 2, 5)
_TINY_CONTEXTS: Final = (20, 50)
_TINY_PROMPTS: Final = ((1, 20), (3, 30))
_RUNS: Final = 12


def measure_decode(given: Given, cache: CacheFormat = CacheFormat.FULL) -> dict[str, Any]:
    """Seconds of a step that writes a token in each of B rows of some context, and what they follow."""
    rows, contexts = (_TINY_ROWS, _TINY_CONTEXTS) if given.is_tiny else (_ROWS, _CONTEXTS)
    opened = _opened(given, max(rows), max(contexts) + 8, cache)
    sizes = list(product(contexts, rows))
    runs = ((roofline.decode(count, context), rows_of(opened, count, context)) for context, count in sizes)
    steps = _times(given, opened, runs)
    return {"steps": steps, "fit": fit(steps)} if steps else {"steps": []}


def measure_prefill(given: Given) -> dict[str, Any]:
    """Seconds of a run that computes whole prompts."""
    sizes = _TINY_PROMPTS if given.is_tiny else _PROMPTS
    opened = _opened(given, max(count for count, _ in sizes), max(tokens for _, tokens in sizes) + 8)
    runs = ((roofline.prefill(count, tokens), pieces_of(opened, count, tokens)) for count, tokens in sizes)
    return {"steps": _times(given, opened, runs)}


def fit(steps: list[dict[str, Any]]) -> dict[str, float]:
    """step = fixed + row * B + position * B * context, in seconds, by least squares of the relative errors."""
    measured = np.array([step["seconds"] for step in steps])
    terms = np.array([[1, step["tokens"], step["positions"]] for step in steps], np.float64)
    found, *_ = np.linalg.lstsq(terms / measured[:, None], np.ones(len(steps)), rcond=None)
    error = np.abs(terms @ found / measured - 1)
    return dict(zip(("fixed", "row", "position"), found.tolist(), strict=True)) | {"error_max": float(error.max())}


def _opened(given: Given, rows: int, context: int, cache: CacheFormat = CacheFormat.FULL) -> Opened:
    tokens = 64 if given.is_tiny else 16_384
    settings = EngineSettings(context_tokens_max=context, slots_max=rows, chunk_tokens=tokens)
    return open_shape(given.shape, given.device, settings, cache)


def rows_of(opened: Opened, count: int, context: int) -> PackedRun | None:
    """Rows with pages of their own; None where the card does not hold so many."""
    table = _table(opened, count, context)
    if table is None:
        return None
    wide = np.zeros((count, packing.width(table.shape[1])), np.int32)
    wide[:, : table.shape[1]] = table
    past = np.full(count, context - 1, np.int32)
    return packing.of_rows(range(1, count + 1), past, wide, opened.room.page_tokens)


def pieces_of(opened: Opened, count: int, tokens: int) -> PackedRun | None:
    """Whole prompts; None where the card does not hold so many."""
    table = _table(opened, count, tokens)
    if table is None:
        return None
    ids = np.random.default_rng(2).integers(0, opened.spec.vocabulary, (count, tokens))
    return packing.of_pieces(list(ids), [0] * count, [True] * count, table)


def _table(opened: Opened, count: int, tokens: int) -> np.ndarray[Any, np.dtype[np.int32]] | None:
    each = -(-tokens // opened.room.page_tokens)
    if count * each >= opened.room.pages:
        return None
    pages = np.random.default_rng(1).permutation(opened.room.pages - 1)[: count * each] + 1
    return pages.reshape(count, each).astype(np.int32)


def _times(given: Given, opened: Opened, runs: Iterator[tuple[Work, PackedRun | None]]) -> list[dict[str, Any]]:
    """The median of some runs of each size, until the time is up."""
    found: list[dict[str, Any]] = []
    began = perf_counter()
    for work, run in runs:
        if run is None:
            continue
        if perf_counter() - began > given.seconds:
            print(f"  stopped after {len(found)} sizes: the time of this part is up", flush=True)
            break
        first = _seconds(opened, run)
        _seconds(opened, run)
        times = [_seconds(opened, run) for _ in range(2 if given.is_tiny else _RUNS)]
        found.append(_step(given, opened, work, statistics.median(times)) | {"first_seconds": first})
        print(f"  {_told(found[-1])}", flush=True)
        given.tell({"steps": found})
    return found


def _seconds(opened: Opened, run: PackedRun) -> float:
    """Of one run, from its beginning to its end."""
    began = perf_counter()
    opened.session.run(run)
    opened.session.wait()
    return perf_counter() - began


def _step(given: Given, opened: Opened, work: Work, seconds: float) -> dict[str, Any]:
    step = {"tokens": work.tokens, "rows": work.logits, "positions": work.positions, "seconds": seconds}
    if given.rates is None:
        return step
    sizes = {"weight_bytes": 4 if given.device == "cpu" else 2, "cache_bytes": opened.cache_element_bytes}
    least = roofline.seconds(opened.spec, work, given.rates, **sizes)
    return step | {"roofline_share": least / seconds}


def _told(step: dict[str, Any]) -> str:
    share = f", {step['roofline_share']:.0%} of the roofline" if "roofline_share" in step else ""
    return (
        f"{step['rows']} rows, {step['tokens']} tokens, {step['positions']} positions: "
        f"{step['seconds'] * 1e3:.2f} ms{share}"
    )
