"""What is said of a cache in 8 bits is measured against the same model without."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import cache_formats
from tests import tiny_model
from worker.model.paged_graph import CacheFormat, PagedCache


def test_eight_bits_cost_a_little_and_scales_that_are_too_small_a_lot() -> None:
    checkpoint = tiny_model.checkpoint(replace(tiny_model.SPEC, layers=1))
    lines = np.random.default_rng(1).integers(0, 250, (4, 80))
    whole = cache_formats._opened(checkpoint, PagedCache(), 80)
    scales = cache_formats.measured_scales(whole, lines[:2])
    reference = cache_formats._log_probabilities(whole, lines[2:])
    costs = {}
    for name, cache in {
        "fp8": PagedCache(CacheFormat.FP8),
        "int8": PagedCache(CacheFormat.INT8, scales),
        "int8, cut": PagedCache(CacheFormat.INT8, tuple((key / 20, value / 20) for key, value in scales)),
    }.items():
        found = cache_formats._log_probabilities(cache_formats._opened(checkpoint, cache, 80), lines[2:])
        costs[name] = cache_formats.cost(found, reference, lines[2:])
    assert 0 < costs["int8"].divergence < costs["fp8"].divergence < 0.1 < costs["int8, cut"].divergence
    itself = cache_formats.cost(reference, reference, lines[2:])
    assert (itself.divergence, itself.same_top) == (0, 1)
    assert itself.perplexity == pytest.approx(
        np.exp(
            -np.mean(
                [
                    one[place, token]
                    for one, line in zip(reference, lines[2:], strict=True)
                    for place, token in zip(range(32, 79), line[33:], strict=True)
                ]
            )
        )
    )
