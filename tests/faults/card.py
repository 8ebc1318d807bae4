"""An engine over a card that fails after some runs, as one does whose memory is read where there is none."""

import tempfile
from pathlib import Path

from tests import tiny_model
from tests.worker.engine.paged.fake_card import Card, paged_session, runner_on
from worker.engine import Engine, EngineSettings
from worker.engine.paged.occupancy import Room
from worker.engine.paged.ort_session import PageLayout
from worker.model import ModelFolder, Precision, paged_graph

RUNS = 8
"""Of the model, and the next one fails."""
PAGE, STAGES, SLOTS = 16, 4, 4


def load(folder: ModelFolder, settings: EngineSettings | None = None) -> Engine:
    """All is real but the card, which fails for good."""
    spec = folder.spec
    room = Room(1 + (STAGES + SLOTS) * -(-spec.context_length // PAGE), PAGE, STAGES, SLOTS, spec.context_length)
    layout = PageLayout(spec.layers, spec.kv_heads, spec.head_size, PAGE, element_bytes=4)
    knobs = EngineSettings(context_tokens_max=spec.context_length, slots_max=SLOTS)
    with tempfile.TemporaryDirectory() as place:
        paged_graph.write(spec, tiny_model.checkpoint(spec).weights, Precision.FP32, Path(place))
        card = Card(fails_at=RUNS)
        runner = runner_on(card, paged_session(card, Path(place, "model.onnx"), room), layout, room, knobs)
    return Engine(runner, knobs)
