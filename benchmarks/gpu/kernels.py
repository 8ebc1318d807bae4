"""Part `kernels`: with which kernels attention computes prompts and rows, as ONNX Runtime tells it."""

import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final

from benchmarks.gpu import shapes, steps
from benchmarks.gpu.given import Given
from benchmarks.gpu.opened import Opened, open_spec
from worker.engine import EngineSettings
from worker.engine.paged.packing import PackedRun
from worker.model.paged_graph import CacheFormat

_TELLING: Final = "ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO"
_LINE: Final = "Operator=PagedAttention"
_COLOUR: Final = re.compile(r"\x1b\[\d+m")
_CONTEXT: Final = 1500
_ROWS: Final = 64


def measure(given: Given) -> dict[str, Any]:
    """For each format of the cache what is said of a run over prompts and of one over rows, in one layer."""
    os.environ[_TELLING] = "1"  # read when a session is opened
    spec = replace(shapes.SHAPES[given.shape], layers=1)
    context, rows = (20, 4) if given.is_tiny else (_CONTEXT, _ROWS)
    settings = EngineSettings(context_tokens_max=context + 8, slots_max=rows, chunk_tokens=8192)
    found: dict[str, Any] = {}
    for cache in CacheFormat:
        opened = open_spec(spec, given.device, settings, cache)
        runs = {"prompts": steps.pieces_of(opened, 4, context), "rows": steps.rows_of(opened, rows, context)}
        for name, run in runs.items():
            found[f"{name}, {cache}"] = _said(partial(_run, opened, run))
        opened.runner().close()
        given.tell(found)
    return found


def _said(work: Callable[[], object]) -> list[str]:
    """Of attention, on the standard output meanwhile, where what is not Python writes too."""
    with tempfile.TemporaryFile("w+") as said:
        ours = os.dup(1)
        os.dup2(said.fileno(), 1)
        try:
            work()
        finally:
            os.dup2(ours, 1)
            os.close(ours)
        said.seek(0)
        return sorted({_COLOUR.sub("", line).strip() for line in said if _LINE in line})


def _run(opened: Opened, run: PackedRun | None) -> None:
    assert run is not None, "one layer fits on any card"
    opened.session.run(run)
    opened.session.wait()
