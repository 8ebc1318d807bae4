"""Reads models that are ONNX graphs already, in the folders of onnxruntime-genai and of Hugging Face.

The first has a genai_config.json beside its graph; the second, which optimum writes and transformers.js reads, a
config.json beside it or one folder above. Tokenizer and template are Hugging Face's in both.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from worker.model import config, hugging_face, ready_graph, ready_weights, rope, words
from worker.model.checkpoint import Checkpoint
from worker.model.config import Config
from worker.model.errors import UnreadableWeights, UnsupportedModel
from worker.model.precision import Precision
from worker.model.ready_edits import Ports
from worker.model.ready_graph import ReadyGraph
from worker.model.spec import ModelSpec

GENAI_NAME: Final = "genai_config.json"
SUFFIX: Final = ".onnx"

_BESIDE_TEXT: Final = ("vision", "speech", "embedding", "encoder")
_GRAPH_FOLDER: Final = "onnx"
_CPU_NAMES: Final = ("model", "model_q4", "model_fp16", "model_q4f16")
_CUDA_NAMES: Final = ("model_fp16", "model_q4f16", "model", "model_q4")
"""What Hugging Face's exporters call their files, best first."""


@dataclass(frozen=True, slots=True)
class _Said:
    """What the settings beside a graph say of it."""

    folder: Path  # that has tokenizer and template
    ports: Ports
    settings: Config
    architecture: str
    hidden: int
    head_size: int
    vocabulary: int
    context_length: int


def graph_of(folder: Path) -> Path | None:
    """The graph that is meant by a folder's name; None if it holds none, or weights of another kind too."""
    if not ((folder / GENAI_NAME).is_file() or hugging_face.is_model(folder)) or any(folder.glob("*.safetensors")):
        return None
    return next((path for name in graphs_in(folder) if (path := folder / name).is_file()), None)


def graphs_in(folder: Path) -> list[str]:
    """Where in a folder with settings a graph may lie, the best for this machine first."""
    if (folder / GENAI_NAME).is_file():
        decoder = config.read(folder / GENAI_NAME).part("model").part("decoder")
        return [Path(decoder.text("filename", "model.onnx")).name]
    names = _CUDA_NAMES if Precision.preferred() is Precision.BF16 else _CPU_NAMES
    return [f"{place}{name}{SUFFIX}" for name in names for place in (f"{_GRAPH_FOLDER}/", "")]


def files_of(path: Path) -> list[Path]:
    """The files of which the model with this graph consists."""
    folder = _settings_path(path).parent
    beside = [place for name in words.NAMES if (place := folder / name).is_file()]
    return [_settings_path(path), *beside, path, *ready_weights.files_of(ready_graph.load(path), path.parent)]


def read(path: Path, chat_template: str | None = None) -> Checkpoint:
    """Open the model with this graph; its files must stay in place until it is written.

    A `chat_template` is taken instead of its own. Raises UnreadableWeights if a file is missing or broken,
    UnsupportedModel if we cannot run what it holds.
    """
    place = _settings_path(path)
    said = _genai(place) if place.name == GENAI_NAME else _hugging_face(place)
    graph = ready_graph.read(path, said.ports, head_size=said.head_size)
    spoken = words.read(said.folder, (said.settings,), chat_template)
    spec = _spec(said, graph, spoken.eos_token_ids)
    return Checkpoint(
        spec=spec,
        weights=graph,
        tokenizer=spoken.tokenizer,
        chat_template=spoken.chat_template,
        tool_template=spoken.tool_template,
        bos_token=spoken.bos_token,
        eos_token=spoken.eos_token,
        named_context=said.context_length if said.context_length > spec.context_length else 0,
    )


def _settings_path(path: Path) -> Path:
    for place in (path.parent / GENAI_NAME, *(folder / hugging_face.CONFIG_NAME for folder in path.parents[:2])):
        if place.is_file():
            return place
    raise UnreadableWeights(f"{path.name} has neither {GENAI_NAME} nor {hugging_face.CONFIG_NAME} beside it")


def _genai(path: Path) -> _Said:
    settings = config.read(path).part("model")
    decoder = settings.part("decoder")
    if more := [name for name in _BESIDE_TEXT if settings.has(name)]:
        raise UnsupportedModel(f"{settings.origin} has a graph for {more[0]} too; only models of text are supported")
    if decoder.has("pipeline"):
        raise UnsupportedModel(f"{settings.origin} has its decoder in several graphs, which is not supported")
    inputs, outputs = decoder.part("inputs"), decoder.part("outputs")
    usual = Ports()
    ports = Ports(
        input_ids=inputs.text("input_ids", usual.input_ids),
        attention_mask=inputs.text("attention_mask", usual.attention_mask),
        position_ids=inputs.text("position_ids", usual.position_ids),
        logits_indices=inputs.text("logits_indices", usual.logits_indices),
        logits=outputs.text("logits", usual.logits),
    )
    return _Said(
        path.parent,
        ports,
        settings,
        architecture=settings.text("type"),
        hidden=decoder.whole("hidden_size"),
        head_size=decoder.whole("head_size"),
        vocabulary=settings.whole("vocab_size"),
        context_length=settings.whole("context_length"),
    )


def _hugging_face(path: Path) -> _Said:
    settings = hugging_face.text_part(config.read(path))
    hidden = settings.whole("hidden_size")
    return _Said(
        path.parent,
        Ports(),
        settings,
        architecture=settings.text("model_type"),
        hidden=hidden,
        head_size=settings.whole("head_dim", max(1, hidden // settings.whole("num_attention_heads"))),
        vocabulary=settings.whole("vocab_size"),
        context_length=rope.context_length(settings),
    )


def _spec(said: _Said, graph: ReadyGraph, eos_token_ids: tuple[int, ...]) -> ModelSpec:
    return ModelSpec(
        architecture=said.architecture,
        layers=graph.layers,
        heads=graph.heads,
        kv_heads=graph.kv_heads,
        head_size=said.head_size,
        hidden=said.hidden,
        intermediate=said.settings.whole("intermediate_size", 1),  # nobody asks
        vocabulary=said.vocabulary,
        context_length=min(said.context_length, graph.positions or said.context_length),
        norm_epsilon=0.0,  # it is in the graph
        tied_embeddings=False,
        eos_token_ids=eos_token_ids,
        bos_token_id=next(iter(said.settings.ids("bos_token_id")), None),
        pad_token_id=next(iter(said.settings.ids("pad_token_id")), None),
    )
