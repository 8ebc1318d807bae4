"""Makes an engine of a model folder: opens its graph, takes the memory, picks the device."""

from worker.engine.engine import Engine
from worker.engine.settings import Device, EngineSettings
from worker.engine.slot_runner import SlotRunner, cache_element, has_cuda, open_session
from worker.engine.slots import CudaSlots, HostSlots, Layout
from worker.model.folder import ModelFolder


def load(model: ModelFolder, settings: EngineSettings | None = None) -> Engine:
    """An engine over a model, not started. OutOfSlots if the memory granted holds no slot."""
    settings = settings or EngineSettings()
    return Engine(open_runner(model, settings), settings)


def open_runner(model: ModelFolder, settings: EngineSettings) -> SlotRunner:
    """The model on its device, with a KV cache as large as the settings allow."""
    use_cuda = settings.device is Device.CUDA or (settings.device is Device.AUTO and has_cuda())
    session = open_session(model.graph_path, threads=settings.threads, use_cuda=use_cuda)
    spec = model.spec
    layout = Layout(
        layers=spec.layers,
        kv_heads=spec.kv_heads,
        head_size=spec.head_size,
        length=min(spec.context_length, settings.context_tokens_max),
        element=cache_element(session),
    )
    count = layout.slots_within(settings.kv_bytes_max, settings.slots_max)
    slots = CudaSlots(layout, count, device_id=0) if use_cuda else HostSlots(layout, count)
    return SlotRunner(session, slots, spec.vocabulary)
