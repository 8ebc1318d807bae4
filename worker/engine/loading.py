"""Makes an engine of a model folder: opens its graph, takes the memory, picks the device."""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import onnxruntime as ort

from worker.engine.block_runner import BlockRunner, BlockSizes
from worker.engine.blocks import BlockLayout
from worker.engine.device import gpu
from worker.engine.device.cuda_memory import CudaMemory
from worker.engine.device.logits import DeviceLogits
from worker.engine.device.sampler_graph import FLOAT
from worker.engine.engine import Engine
from worker.engine.errors import EngineError, OutOfMemory, OutOfSlots
from worker.engine.paged import opening
from worker.engine.runner import Runner
from worker.engine.session import has_cuda, inputs_on_host, open_session
from worker.engine.settings import Device, EngineSettings
from worker.engine.slot_ports import IDS, DevicePorts, HostPorts, SlotPorts
from worker.engine.slot_runner import SlotRunner, cache_element
from worker.engine.slots import DeviceSlots, HostSlots, Layout
from worker.model.block_ports import BLOCK, STAGES
from worker.model.folder import ModelFolder
from worker.model.paged_graph import is_paged
from worker.model.precision import Precision
from worker.model.spec import ModelSpec

logger = logging.getLogger(__name__)

_PAGED_CHUNK_TOKENS: Final = 8_192
_CPU_SLOTS: Final = 64
_GPU_SLOTS: Final = 256


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
    precision = model.manifest.precision
    if is_paged(model.graph_path):
        if settings.device is Device.CPU:
            raise EngineError(f"{model.name} is stored for GPUs; add it again with --precision int8 to use the CPU")
        return opening.open_runner(model, _with_slots(settings, _GPU_SLOTS))
    if precision is Precision.FP16 and _is_cuda_chosen(settings.device, model.name):
        return _slots_on_cuda(model, _with_slots(settings, _GPU_SLOTS))
    if precision is not Precision.FP16 and settings.device is Device.CUDA:
        raise EngineError(
            f"{model.name} is stored in {precision}, which is for CPUs; add it again with --precision bf16"
        )
    settings = _with_slots(settings, _CPU_SLOTS)
    session = open_session(model.graph_path, threads=settings.threads)
    if precision is Precision.INT8:
        return _block_runner(session, model, settings)
    return _slots_on_host(session, model, settings)


def _with_slots(settings: EngineSettings, usual: int) -> EngineSettings:
    return replace(settings, slots_max=settings.slots_max or usual)


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
    sizes = partial(_slot_sizes, session, model.spec, settings)
    layout, count, stages = opening.sized(sizes, memory, settings, opening.run_bytes(model.spec, settings))
    try:
        slots = DeviceSlots(layout, count, memory)
        ports = _ports_on(memory, session, count, model.spec.vocabulary)
    except OutOfMemory as error:
        raise gpu.GpuUnusable(gpu.cure_of(error)) from error
    return SlotRunner(session, slots, ports, stages, model.spec.vocabulary)


def _ports_on(memory: CudaMemory, session: ort.InferenceSession, rows_max: int, vocabulary: int) -> SlotPorts:
    """On the card, but for graphs of others whose ids are wanted on the host: those cannot be drawn elsewhere."""
    on_host = inputs_on_host(session)
    if IDS in on_host:
        return HostPorts(rows_max, vocabulary)
    logits = DeviceLogits(memory, rows_max, vocabulary, FLOAT)
    return DevicePorts(memory, logits, gpu.open_sampler(memory, logits.place), on_host)


def _slots_on_host(session: ort.InferenceSession, model: ModelFolder, settings: EngineSettings) -> SlotRunner:
    granted, vocabulary = settings.kv_bytes_max or _free_bytes() // 2, model.spec.vocabulary
    layout, count, stages = _slot_sizes(session, model.spec, settings, granted)
    return SlotRunner(session, HostSlots(layout, count), HostPorts(count, vocabulary), stages, vocabulary)


def _slot_sizes(
    session: ort.InferenceSession, spec: ModelSpec, settings: EngineSettings, granted: int
) -> tuple[Layout, int, int]:
    """The cache, how many slots it has, and how many of them are stages. OutOfSlots if there are not two."""
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
    return layout, count, stages


def _free_bytes() -> int:
    """What the system could give to this process now."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, amount = line.partition(":")
        if name == "MemAvailable":
            return int(amount.split()[0]) * 1024
    raise EngineError("this system does not tell how much memory is free; set kv_bytes_max")
