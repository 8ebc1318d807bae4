"""Makes an engine of a model folder: opens its graph, takes the memory, picks the device."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import onnxruntime as ort

from worker.engine.block_runner import BlockRunner, BlockSizes
from worker.engine.blocks import BlockLayout
from worker.engine.device import gpu
from worker.engine.engine import Engine
from worker.engine.errors import EngineError, OutOfMemory, OutOfSlots
from worker.engine.paged import opening
from worker.engine.runner import Runner
from worker.engine.session import has_cuda, open_session
from worker.engine.settings import Device, EngineSettings
from worker.engine.slot_runner import SlotRunner, cache_element
from worker.engine.slots import DeviceSlots, HostSlots, Layout, Slots
from worker.model.block_ports import BLOCK, STAGES
from worker.model.folder import ModelFolder
from worker.model.paged_graph import is_paged
from worker.model.precision import Precision

logger = logging.getLogger(__name__)

_DEVICE_BYTES = 4 * 2**30
_PAGED_CHUNK_TOKENS: Final = 8_192


def load(model: ModelFolder, settings: EngineSettings | None = None) -> Engine:
    """An engine over a model, not started. OutOfSlots if the memory granted does not hold one sequence."""
    settings = settings or EngineSettings()
    if is_paged(model.graph_path):
        # Prompts are computed alone, and a card needs some thousand tokens of them to have enough to do.
        settings = replace(settings, chunk_tokens=max(settings.chunk_tokens, _PAGED_CHUNK_TOKENS))
    return Engine(open_runner(model, settings), settings)


def open_runner(model: ModelFolder, settings: EngineSettings) -> Runner:
    """The model on its device, with a KV cache as large as the settings allow.

    GpuUnusable if it needs a GPU, or one was chosen, and there is none that can be used.
    """
    is_eighths = model.manifest.precision is Precision.INT8
    if is_paged(model.graph_path):
        if settings.device is Device.CPU:
            raise EngineError(f"{model.name} is stored for GPUs; add it again with --precision int8 to use the CPU")
        return opening.open_runner(model, settings)
    if settings.device is Device.CUDA and is_eighths:
        raise EngineError(f"{model.name} is stored in int8, which is for CPUs; add it again with --precision bf16")
    if not is_eighths and _is_cuda_chosen(settings.device, model.name):
        return _slots_on_cuda(model, settings)
    session = open_session(model.graph_path, threads=settings.threads)
    return _block_runner(session, model, settings) if is_eighths else _slots_on_host(session, model, settings)


def _is_cuda_chosen(device: Device, name: str) -> bool:
    """Whether to use the GPU, of those models that could do without. Why it is not used is told once."""
    if device in (Device.CPU, Device.CUDA):
        return device is Device.CUDA
    if device is Device.AUTO and has_cuda():
        return True  # and then it is an error if it cannot be used
    try:
        gpu.require()
    except gpu.GpuUnusable as error:
        logger.info("model runs on the CPU", extra={"model": name, "reason": str(error)})
        return False
    return True


def _block_runner(session: ort.InferenceSession, model: ModelFolder, settings: EngineSettings) -> BlockRunner:
    spec = model.spec
    layout = BlockLayout(spec.layers, spec.kv_heads, spec.head_size, BLOCK)
    context_tokens = min(spec.context_length, settings.context_tokens_max)
    least = layout.blocks_for(context_tokens) + 1
    # A stage holds its sequence in float32 and as blocks.
    stage_bytes = context_tokens * spec.kv_bytes_per_token(4) + least * layout.bytes
    granted = settings.kv_bytes_max or _free_bytes() // 2
    affordable = (granted - STAGES * stage_bytes) // layout.bytes
    if affordable < least:
        raise OutOfSlots(STAGES * stage_bytes + least * layout.bytes, granted)
    blocks = min(affordable, settings.slots_max * (least - 1) + 1)
    sizes = BlockSizes(settings.slots_max, context_tokens, blocks)
    return BlockRunner(session, layout, sizes, spec.heads, spec.vocabulary)


def _slots_on_cuda(model: ModelFolder, settings: EngineSettings) -> SlotRunner:
    memory = gpu.open_memory(needs_bf16=False)
    session = gpu.open_session(model.graph_path, memory, ort.SessionOptions(), captures=False)

    def take(layout: Layout, count: int) -> Slots:
        try:
            return DeviceSlots(layout, count, memory)
        except OutOfMemory as error:
            raise gpu.GpuUnusable(gpu.cure_of(error)) from error

    return _slot_runner(session, model, settings, settings.kv_bytes_max or _DEVICE_BYTES, take)


def _slots_on_host(session: ort.InferenceSession, model: ModelFolder, settings: EngineSettings) -> SlotRunner:
    return _slot_runner(session, model, settings, settings.kv_bytes_max or _free_bytes() // 2, HostSlots)


def _slot_runner(
    session: ort.InferenceSession,
    model: ModelFolder,
    settings: EngineSettings,
    granted: int,
    take: Callable[[Layout, int], Slots],
) -> SlotRunner:
    spec = model.spec
    layout = Layout(
        layers=spec.layers,
        kv_heads=spec.kv_heads,
        head_size=spec.head_size,
        length=min(spec.context_length, settings.context_tokens_max),
        element=cache_element(session),
    )
    count = layout.slots_within(granted, settings.slots_max + settings.stages)
    stages = min(settings.stages, count - 1)
    if not stages:
        raise OutOfSlots(2 * layout.slot_bytes, granted)
    return SlotRunner(session, take(layout, count), stages, spec.vocabulary)


def _free_bytes() -> int:
    """What the system could give to this process now."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, amount = line.partition(":")
        if name == "MemAvailable":
            return int(amount.split()[0]) * 1024
    raise EngineError("this system does not tell how much memory is free; set kv_bytes_max")
