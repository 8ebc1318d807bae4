"""What 8 bits for keys and values on a GPU cost: `python -m benchmarks.cache_formats MODEL.gguf`.

The paged graph in float32 on the CPU, with PagedAttention in numpy: only the cache is rounded, as the card's kernel
rounds it. The text is English that every Python carries. Scales for int8 are measured on other text first, as
`models add --precision bf16-int8` measures them.
"""

import argparse
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from worker.engine.paged import packing
from worker.engine.paged.cpu_session import CpuPagedSession
from worker.model import Precision, cache_scales, english, gguf, hugging_face, paged_graph
from worker.model.checkpoint import Checkpoint
from worker.model.paged_graph import CacheFormat, PagedCache

_PAGE: Final = 64
_GIVEN: Final = 32
"""Tokens of each stretch that are not predicted."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a format: perplexity, and the mean divergence from the same model with a cache in float32, in nats."""

    perplexity: float
    divergence: float
    same_top: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF file, or a folder of Hugging Face")
    parser.add_argument("--stretches", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256, help="of a stretch")
    given = parser.parse_args()
    checkpoint = (hugging_face.read if given.model.is_dir() else gguf.read)(given.model)
    lines = _lines(checkpoint, given.stretches, given.tokens)
    reference = _log_probabilities(_opened(checkpoint, PagedCache(), given.tokens), lines)
    print("| cache | perplexity | divergence | same token likeliest |\n|---|---|---|---|")
    _tell("float32", cost(reference, reference, lines))
    for name, cache in caches(checkpoint).items():
        found = _log_probabilities(_opened(checkpoint, cache, given.tokens), lines)
        _tell(name, cost(found, reference, lines))
    print(f"\n{len(lines)} stretches, {lines[:, _GIVEN + 1 :].size:,} predicted tokens")


def caches(checkpoint: Checkpoint) -> dict[str, PagedCache]:
    """What is held against a cache in float32."""
    text = cache_scales.calibration(checkpoint.tokenizer, checkpoint.spec)
    scales = cache_scales.measure(checkpoint.spec, checkpoint.weights, text)
    coarse = tuple(cache_scales.of_tensors(one) for one in scales)
    return {
        "fp8": PagedCache(CacheFormat.FP8),
        "int8, a scale a channel": PagedCache(CacheFormat.INT8, scales),
        "int8, a scale a layer": PagedCache(CacheFormat.INT8, coarse),
    }


def _lines(checkpoint: Checkpoint, stretches: int, tokens: int) -> NDArray[np.int64]:
    """From the end of the text, of which the beginning is what scales are measured on."""
    paragraphs = english.paragraphs()
    text = checkpoint.tokenizer.encode("\n\n".join(paragraphs[len(paragraphs) // 2 :]), add_special_tokens=False).ids
    return np.array(text[: stretches * tokens]).reshape(-1, tokens)


def _tell(name: str, one: Cost) -> None:
    print(f"| {name} | {one.perplexity:.3f} | {one.divergence:.5f} | {one.same_top:.2%} |", flush=True)


def cost(found: list[NDArray[np.float64]], reference: list[NDArray[np.float64]], lines: NDArray[np.int64]) -> Cost:
    """Over all predicted tokens."""
    loss, divergence, same = [], [], []
    for ours, theirs, line in zip(found, reference, lines, strict=True):
        wanted = line[_GIVEN + 1 :]
        mine, other = ours[_GIVEN:-1], theirs[_GIVEN:-1]
        loss.append(-mine[np.arange(len(wanted)), wanted])
        divergence.append((np.exp(other) * (other - mine)).sum(axis=1))
        same.append(mine.argmax(axis=1) == other.argmax(axis=1))
    means = [float(np.concatenate(values).mean()) for values in (loss, divergence, same)]
    return Cost(float(np.exp(means[0])), means[1], means[2])


def _log_probabilities(session: CpuPagedSession, lines: NDArray[np.int64]) -> list[NDArray[np.float64]]:
    """Of every next token of each line, [tokens, vocabulary]."""
    found = []
    for line in lines:
        logits = session.logits_at(session.run(_run(line)))
        shifted = (logits - logits.max(axis=1, keepdims=True)).astype(np.float64)
        found.append(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
    return found


def _opened(checkpoint: Checkpoint, cache: PagedCache, tokens: int) -> CpuPagedSession:
    with tempfile.TemporaryDirectory() as folder:
        paged_graph.write(checkpoint.spec, checkpoint.weights, Precision.FP32, Path(folder), cache)
        return CpuPagedSession(Path(folder, "model.onnx"), -(-tokens // _PAGE) + 1, _PAGE, threads=2)


def _run(line: NDArray[np.int64]) -> packing.PackedRun:
    table = np.arange(1, -(-len(line) // _PAGE) + 1, dtype=np.int32)[np.newaxis]
    run = packing.of_pieces([line], [0], [True], table)
    return replace(run, logits_indices=np.arange(len(line), dtype=np.int32))


if __name__ == "__main__":
    main()
