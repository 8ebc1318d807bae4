"""Makes a paged runner of a model folder: how large the cache can be, and how many rows it is for."""

from collections.abc import Callable
from typing import TypeVar

import onnxruntime as ort

from worker.engine.device import gpu
from worker.engine.device.cuda_memory import CudaMemory
from worker.engine.device.sampler import ROWS_AT_ONCE
from worker.engine.errors import OutOfMemory, OutOfSlots
from worker.engine.paged.occupancy import Room
from worker.engine.paged.ort_session import OrtPagedSession, PageLayout, RunLimits, element_bytes
from worker.engine.paged.packing import bucket, width
from worker.engine.paged.paged_runner import PagedRunner
from worker.engine.settings import EngineSettings
from worker.model.folder import ModelFolder
from worker.model.spec import ModelSpec

T = TypeVar("T")

STAGES = 16
"""Prompts that one run computes, at most."""

_KEPT_FREE = 0.06
"""Of the card's memory: for CUDA graphs, plans of cuDNN, and what ONNX Runtime's arena cannot use."""

_DRAWING_ROWS = 16
"""The graphs that draw take as much as so many times the logits that they draw from."""


def page_tokens(head_size: int) -> int:
    """The smallest page that attention reads as it lies; of smaller ones it makes a copy first."""
    return 256 if head_size <= 64 else 128


def open_runner(model: ModelFolder, settings: EngineSettings) -> PagedRunner:
    """The model on the GPU, with a cache as large as the settings or the card allow.

    GpuUnusable if there is no card to use, OutOfSlots if the cache does not hold one row.
    """
    memory = gpu.open_memory()
    session, captures = gpu.open_capturing(model.graph_path, memory, ort.SessionOptions)
    spec = model.spec
    layout = PageLayout(spec.layers, spec.kv_heads, spec.head_size, page_tokens(spec.head_size), element_bytes(session))
    room = room_on(memory, layout, spec, settings)
    try:
        paged = OrtPagedSession(session, memory, layout, room.pages, run_limits(room, settings), captures=captures)
        return PagedRunner(paged, room, gpu.open_sampler(memory, paged.logits.place))
    except OutOfMemory as error:
        raise gpu.GpuUnusable(gpu.cure_of(error)) from error


def room_on(memory: CudaMemory, layout: PageLayout, spec: ModelSpec, settings: EngineSettings) -> Room:
    """What is made of the memory granted."""
    context_tokens = min(spec.context_length, settings.context_tokens_max)
    taken = run_bytes(spec, settings) + (gathered_bytes(layout, context_tokens) if layout.element_bytes == 1 else 0)
    return sized(
        lambda bytes_max: room_within(bytes_max, layout, context_tokens, settings.slots_max), memory, settings, taken
    )


def sized(make: Callable[[int], T], memory: CudaMemory, settings: EngineSettings, taken_bytes: int) -> T:
    """A cache of the bytes that the settings grant, or else of what is free on the card beside what a run takes;
    GpuUnusable if that does not hold one text.
    """
    if settings.kv_bytes_max:
        return make(settings.kv_bytes_max)
    facts = memory.facts
    free = max(0, facts.free_bytes - int(facts.total_bytes * _KEPT_FREE) - taken_bytes)
    try:
        return make(free)
    except OutOfSlots as error:
        raise gpu.GpuUnusable(
            f"beside the model it has {free:,} bytes left, and texts of {settings.context_tokens_max:,} tokens take "
            f"{error.slot_bytes:,} at least; end what else runs on it (nvidia-smi shows it), choose a smaller model, "
            "lower GRISTMILL_SLOTS, or shorten the context"
        ) from error


def room_within(bytes_max: int, layout: PageLayout, context_tokens: int, slots_max: int) -> Room:
    """As many pages as fit, but no more than all can need. OutOfSlots if not even one row fits."""
    pages_each = -(-context_tokens // layout.tokens)
    stages = min(STAGES, slots_max)
    while True:
        room = Room(bytes_max // layout.page_bytes, layout.tokens, stages, slots_max, context_tokens)
        if room.pages >= room.pages_min:
            most = 1 + (stages + slots_max) * pages_each
            return Room(min(room.pages, most), layout.tokens, stages, slots_max, context_tokens)
        if stages == 1:
            raise OutOfSlots(room.pages_min * layout.page_bytes, bytes_max)
        stages //= 2


def run_limits(room: Room, settings: EngineSettings) -> RunLimits:
    """The most that one run of the engine's can be given."""
    sequences = max(bucket(room.slots), room.stages)
    return RunLimits(max(settings.chunk_tokens, sequences), sequences, width(room.pages_each))


def run_bytes(spec: ModelSpec, settings: EngineSettings) -> int:
    """What the tensors of one run take at once: those of the widest place of a layer, the logits, which are set aside
    too, and what is computed of them to draw tokens, in some graphs that each keep theirs.
    """
    sequences = max(bucket(settings.slots_max), STAGES)
    tokens = max(settings.chunk_tokens, sequences)
    intermediate = max(spec.intermediate, 4 * spec.hidden)  # which graphs that others made do not say
    widest = 4 * intermediate + 4 * spec.hidden + 3 * (spec.heads + 2 * spec.kv_heads) * spec.head_size
    drawing = _DRAWING_ROWS * min(sequences, ROWS_AT_ONCE)
    return 2 * tokens * widest + 4 * (3 * sequences + drawing) * spec.vocabulary


def gathered_bytes(layout: PageLayout, context_tokens: int) -> int:
    """What prompts take beside, where the cache is in 8 bits: the operator lays out all that they attend to in 16."""
    return 2 * 2 * STAGES * context_tokens * layout.kv_heads * layout.head_size
