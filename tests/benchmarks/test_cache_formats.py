"""What is said of a cache in 8 bits is measured against the same model without."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import cache_formats
from tests import tiny_model
from worker.model import cache_scales
from worker.model.cache_scales import CacheScales
from worker.model.paged_graph import CacheFormat, PagedCache

INT8 = "int8, a scale a channel"


def test_eight_bits_cost_a_little_and_scales_that_are_too_small_a_lot() -> None:
    checkpoint = tiny_model.checkpoint(replace(tiny_model.SPEC, layers=1))
    lines = cache_scales.calibration(checkpoint.tokenizer, checkpoint.spec)[:2, :80]
    reference = cache_formats._log_probabilities(cache_formats._opened(checkpoint, PagedCache(), 80), lines)
    caches = cache_formats.caches(checkpoint)
    cut = [CacheScales(one.key / 20, one.value / 20) for one in caches[INT8].scales]
    caches["int8, cut"] = PagedCache(CacheFormat.INT8, tuple(cut))
    costs = {}
    for name, cache in caches.items():
        found = cache_formats._log_probabilities(cache_formats._opened(checkpoint, cache, 80), lines)
        costs[name] = cache_formats.cost(found, reference, lines)
    assert 0 < costs[INT8].divergence < costs["fp8"].divergence < 0.1 < costs["int8, cut"].divergence
    itself = cache_formats.cost(reference, reference, lines)
    assert (itself.divergence, itself.same_top) == (0, 1)
    assert itself.perplexity == pytest.approx(
        np.exp(
            -np.mean(
                [
                    one[place, token]
                    for one, line in zip(reference, lines, strict=True)
                    for place, token in zip(range(32, 79), line[33:], strict=True)
                ]
            )
        )
    )
