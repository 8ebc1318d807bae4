"""The graph on pages: the recorded logits of every architecture, and types that ONNX Runtime's schemas accept."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from tests import tiny_model
from tests.worker.model.test_architectures import assert_same, recorded, source, token_ids, truth
from worker.engine.paged import packing
from worker.engine.paged.cpu_session import CpuPagedSession
from worker.model import Precision, paged_graph
from worker.model.onnx_file import OnnxGraph
from worker.model.paged_graph import CacheFormat, PagedCache
from worker.model.ready_edits import get

PAGE = 4


@pytest.fixture(params=recorded())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def session(name: str, tmp_path: Path) -> CpuPagedSession:
    loaded = source(tmp_path / "source", name, recorded()[name]["config"])
    paged_graph.write(loaded.spec, loaded.weights, Precision.FP32, tmp_path)
    return CpuPagedSession(tmp_path / "model.onnx", pages=30, page_tokens=PAGE)


def compute(session: CpuPagedSession, pieces: list[tuple[list[int], int, list[int]]]) -> NDArray[np.float32]:
    """The logits after every token of pieces, each with its start and its pages."""
    width = max(len(pages) for _, _, pages in pieces)
    table = np.array([[*pages, *[0] * (width - len(pages))] for _, _, pages in pieces], np.int32)
    ids = [np.array(piece) for piece, _, _ in pieces]
    run = packing.of_pieces(ids, [start for _, start, _ in pieces], [True] * len(pieces), table)
    tokens = len(run.input_ids)
    return session.logits_at(session.run(replace(run, logits_indices=np.arange(tokens, dtype=np.int32))))


def test_prompts_packed_without_padding_give_the_logits_of_transformers(session: CpuPagedSession, name: str) -> None:
    ids, pages = token_ids(name), [[3, 7, 1, 12, 4, 9, 2, 20, 21, 22, 23], [6, 5], [8, 11, 10, 13, 14, 15, 16, 17, 18]]
    lengths = (len(ids), 7, 30)
    logits = compute(session, [(ids[:length], 0, own) for length, own in zip(lengths, pages, strict=True)])
    for found, length in zip(np.split(logits, np.cumsum(lengths)[:-1]), lengths, strict=True):
        assert_same(found, truth(name)[:length])


def test_a_prompt_in_pieces_and_an_answer_alone_give_the_logits_of_transformers(
    session: CpuPagedSession, name: str
) -> None:
    ids, pages = token_ids(name), [3, 7, 1, 12, 4, 9, 2, 20, 21, 22, 23]
    prompt_tokens = len(recorded()[name]["prompt"])
    pieces = [(0, 1), (1, 10), (10, prompt_tokens), *((at, at + 1) for at in range(prompt_tokens, len(ids)))]
    for start, stop in pieces:
        assert_same(compute(session, [(ids[start:stop], start, pages)]), truth(name)[start:stop])


@pytest.mark.parametrize("cache", CacheFormat)
def test_in_bf16_its_types_are_those_of_the_operators(cache: CacheFormat, tmp_path: Path) -> None:
    """There is no kernel on the CPU, which is looked for only after all types have been found to be right."""
    loaded = tiny_model.checkpoint()
    paged_graph.write(loaded.spec, loaded.weights, Precision.BF16, tmp_path, PagedCache(cache))
    with pytest.raises(ort.capi.onnxruntime_pybind11_state.NotImplemented, match="Could not find an implementation"):
        ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("precision", "kept"),
    [(Precision.BF16, onnx.TensorProto.BFLOAT16), (Precision.BF16_FP8, onnx.TensorProto.FLOAT8E4M3FN)],
)
def test_a_model_is_stored_with_the_cache_that_its_precision_names(
    precision: Precision, kept: int, tmp_path: Path
) -> None:
    model = tiny_model.write(tmp_path / "tiny", precision=precision)
    graph = onnx.load(model.graph_path, load_external_data=False).graph
    caches = {value.type.tensor_type.elem_type for value in graph.input if value.name.startswith("past_key_values.")}
    assert caches == {kept}
    assert {tensor.data_type for tensor in graph.initializer} >= {onnx.TensorProto.BFLOAT16}


def test_inputs_and_outputs_are_those_of_the_builder_of_onnxruntime_genai(tmp_path: Path) -> None:
    """By name, type and the names of sizes, of which its engine goes by some."""
    loaded = tiny_model.checkpoint()
    paged_graph.write(loaded.spec, loaded.weights, Precision.BF16, tmp_path)

    def told(path: Path) -> dict[str, tuple[int, list[str | int]]]:
        graph = onnx.load(path, load_external_data=False).graph
        tensors = {value.name: value.type.tensor_type for value in (*graph.input, *graph.output)}
        return {
            name: (tensor.elem_type, [dim.dim_param or dim.dim_value for dim in tensor.shape.dim])
            for name, tensor in tensors.items()
        }

    assert told(tmp_path / "model.onnx") == told(Path(__file__).parent / "ready_graphs" / "llama-bf16-paged.onnx")


def test_every_node_is_one_that_a_captured_run_may_have(tmp_path: Path) -> None:
    """None that computes a shape or branches: those would run on the host."""
    loaded = tiny_model.checkpoint()
    paged_graph.write(loaded.spec, loaded.weights, Precision.BF16, tmp_path)
    graph = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph
    assert {node.op_type for node in graph.node} == {
        *("Gather", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "Gemm"),
        *("PagedAttention", "QuickGelu", "Mul", "Cast"),
    }
    assert paged_graph.is_paged(tmp_path / "model.onnx")
    scales = {get(node, "scale") for node in graph.node if node.op_type == "PagedAttention"}
    assert scales == {loaded.spec.head_size**-0.5}, "two computations of it may differ in the last bit"


def test_weights_in_memory_reach_a_session_without_a_file() -> None:
    """Also those in bf16, whose type numpy does not know by itself."""
    graph = OnnxGraph()
    weight = np.arange(12, dtype=np.float32).reshape(3, 4) / 7
    graph.weight("weight", weight.astype(Precision.BF16.dtype))
    graph.weight("whole", weight)
    graph.node("Cast", ["weight"], "widened", to=onnx.TensorProto.FLOAT)
    graph.node("Add", ["widened", "whole"], "sum")
    graph.save([], [onnx.helper.make_tensor_value_info("sum", onnx.TensorProto.FLOAT, [3, 4])])
    options = ort.SessionOptions()
    graph.give_weights(options)
    [found] = ort.InferenceSession(graph.content, options, providers=["CPUExecutionProvider"]).run(None, {})
    np.testing.assert_allclose(found, 2 * weight, rtol=2**-8)
    assert (found != 2 * weight).any(), "it was not in 16 bits"
