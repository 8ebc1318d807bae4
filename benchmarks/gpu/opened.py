"""A shape opened as the engine opens a model: on the card, or for a trial of the benchmark itself on the CPU."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnxruntime as ort

from benchmarks.gpu import shapes
from worker.engine import EngineSettings
from worker.engine.device import gpu
from worker.engine.device.memory import DeviceMemory
from worker.engine.device.sampler import DeviceSampler
from worker.engine.paged import opening
from worker.engine.paged.cpu_session import CpuPagedSession
from worker.engine.paged.occupancy import Room
from worker.engine.paged.ort_session import OrtPagedSession, PageLayout, element_bytes
from worker.engine.paged.paged_runner import PagedRunner
from worker.engine.paged.session import PagedSession
from worker.model import Precision, paged_graph
from worker.model.onnx_file import OnnxGraph
from worker.model.paged_graph import CacheFormat, PagedCache
from worker.model.spec import ModelSpec

_CPU_PAGE: Final = 16
_CPU_PAGES: Final = 2000


@dataclass(frozen=True, slots=True)
class Opened:
    """A shape ready to run."""

    spec: ModelSpec
    session: PagedSession
    room: Room
    cache_element_bytes: int
    sampler: DeviceSampler | None = None
    memory: DeviceMemory | None = None
    """Of the card; none where there is none."""

    def runner(self) -> PagedRunner:
        """With nothing in its pages; the session is the same."""
        return PagedRunner(self.session, self.room, self.sampler)


def open_shape(name: str, device: str, settings: EngineSettings, cache: CacheFormat = CacheFormat.FULL) -> Opened:
    """GpuUnusable where there is no card to open it on."""
    return open_spec(shapes.SHAPES[name], device, settings, cache)


def open_spec(spec: ModelSpec, device: str, settings: EngineSettings, cache: CacheFormat) -> Opened:
    """As `open_shape`, of sizes of one's own."""
    if device == "cpu":
        return _on_cpu(spec, settings, cache)
    memory = gpu.open_memory()
    graph = OnnxGraph()
    paged_graph.build(graph, spec, shapes.weights(spec), Precision.BF16, PagedCache(cache))

    def options() -> ort.SessionOptions:
        made = ort.SessionOptions()
        graph.give_weights(made)
        return made

    session, captures = gpu.open_capturing(graph.content, memory, options)
    element = element_bytes(session)
    layout = PageLayout(spec.layers, spec.kv_heads, spec.head_size, opening.page_tokens(spec.head_size), element)
    room = opening.room_on(memory, layout, spec, settings)
    limits = opening.run_limits(room, settings)
    paged = OrtPagedSession(session, memory, layout, room.pages, limits, captures=captures)
    sampler = gpu.open_sampler(memory, paged.logits.place)
    return Opened(spec, paged, room, element, sampler, memory)


def _on_cpu(spec: ModelSpec, settings: EngineSettings, cache: CacheFormat) -> Opened:
    stages, threads = min(4, settings.slots_max), max(1, (os.cpu_count() or 1) // 2)
    room = Room(_CPU_PAGES, _CPU_PAGE, stages, settings.slots_max, settings.context_tokens_max)
    with tempfile.TemporaryDirectory() as folder:
        paged_graph.write(spec, shapes.weights(spec), Precision.FP32, Path(folder), PagedCache(cache))
        session = CpuPagedSession(Path(folder, "model.onnx"), room.pages, room.page_tokens, threads)
    return Opened(spec, session, room, 4 if cache is CacheFormat.FULL else 1)
