"""A paged runner over the tiny model on the CPU: all is real but the device."""

from dataclasses import dataclass
from pathlib import Path

from tests import tiny_model
from worker.engine.errors import OutOfMemory
from worker.engine.paged.cpu_session import CpuPagedSession
from worker.engine.paged.occupancy import Room
from worker.engine.paged.packing import PackedRun
from worker.engine.paged.paged_runner import PagedRunner
from worker.engine.paged.session import Fill
from worker.engine.softmax import Ids
from worker.model import Precision, paged_graph
from worker.model.spec import ModelSpec

PAGE = 16
CONTEXT = 96


def write(folder: Path, spec: ModelSpec = tiny_model.SPEC) -> Path:
    """The tiny model as a paged graph in float32."""
    paged_graph.write(spec, tiny_model.checkpoint(spec).weights, Precision.FP32, folder)
    return folder / "model.onnx"


def room(*, pages: int = 0, stages: int = 3, slots: int = 8) -> Room:
    """Without `pages`, as many as all can need."""
    return Room(pages or 1 + (stages + slots) * -(-CONTEXT // PAGE), PAGE, stages, slots, CONTEXT)


class WatchedSession(CpuPagedSession):
    """Keeps the shapes of its runs; a run of more than `tokens_max` tokens finds no memory."""

    tokens_max = 10**9

    def __init__(self, graph: Path, place: Room) -> None:
        super().__init__(graph, place.pages, place.page_tokens)
        self.runs: list[PackedRun] = []

    def run(self, run: PackedRun, fill: Fill | None = None) -> Ids:
        if len(run.input_ids) > self.tokens_max:
            raise OutOfMemory("scripted")
        self.runs.append(run)
        return super().run(run, fill)


@dataclass
class Opened:
    """A runner, and the session below it."""

    runner: PagedRunner
    session: WatchedSession


def opened(graph: Path, place: Room) -> Opened:
    session = WatchedSession(graph, place)
    return Opened(PagedRunner(session, place), session)
