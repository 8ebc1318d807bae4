"""Paged graphs of onnxruntime-genai run as those of ours, or are refused in one sentence."""

from pathlib import Path

import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from tests.worker.engine.paged.opened import opened, room
from tests.worker.model import ready_folder
from tests.worker.model.test_ready_made import assert_as_made
from worker import model
from worker.model import Precision, UnsupportedModel, paged_graph
from worker.model.ready_edits import get, put

INPUTS = [
    *("input_ids", "cumulative_sequence_lengths", "past_sequence_lengths", "block_table", "attention_metadata"),
    "logits_indices",
]


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.mark.parametrize(
    ("name", "alike"),
    [("llama-fp16-paged", "llama-fp16"), ("llama-fp16-paged-all", "llama-fp16"), ("qwen3-fp16-paged", "qwen3-fp32")],
)
def test_its_logits_are_those_that_the_same_builder_meant_for_slots(
    name: str, alike: str, tmp_path: Path, models_dir: Path
) -> None:
    folder = ready_folder.genai(tmp_path / name, name)
    added = model.add(str(folder), models_dir)
    assert (added.manifest.precision, added.manifest.is_ready_made) == (Precision.FP16, True)
    assert (added.spec.layers, added.spec.heads, added.spec.kv_heads, added.spec.vocabulary) == (2, 4, 2, 259)
    assert paged_graph.is_paged(added.graph_path)
    reference = ready_folder.genai(tmp_path / alike, alike)
    assert_as_made(opened(added.graph_path, room()).runner, reference / "model.onnx", 1e-2)


def test_in_bf16_it_is_taken_as_it_is(tmp_path: Path, models_dir: Path) -> None:
    added = model.add(str(ready_folder.genai(tmp_path / "tiny", "llama-bf16-paged")), models_dir)
    assert added.manifest.precision is Precision.BF16
    assert model.verify(added.path) == added
    graph = onnx.load(added.graph_path, load_external_data=False).graph
    caches = [f"past_key_values.{layer}.{part}" for layer in (0, 1) for part in ("key", "value")]
    assert [value.name for value in graph.input] == [*INPUTS, *caches]


def test_one_with_two_ways_of_turning_is_used_for_the_texts_of_the_first(tmp_path: Path, models_dir: Path) -> None:
    added = model.add(str(ready_folder.genai(tmp_path / "phi", "phi3-fp16-paged")), models_dir)
    assert added.spec.context_length == 32
    operators = {node.op_type for node in onnx.load(added.graph_path, load_external_data=False).graph.node}
    assert operators.isdisjoint({"If", "Shape", "Greater"})


def without_metadata(made: ModelProto) -> None:
    for node in attention(made):
        del node.input[16]
    made.graph.input.remove(next(value for value in made.graph.input if value.name == "attention_metadata"))


def renamed(made: ModelProto) -> None:
    for value in made.graph.input:
        for node in made.graph.node:
            node.input[:] = [f"{value.name}_" if name == value.name else name for name in node.input]
        value.name += "" if value.name in ("input_ids", "logits_indices") else "_"
        if not value.name.endswith("_"):
            for node in made.graph.node:
                node.input[:] = [name.removesuffix("_") if name == f"{value.name}_" else name for name in node.input]


def attention(made: ModelProto) -> list[onnx.NodeProto]:
    return [node for node in made.graph.node if node.op_type == "PagedAttention"]


def without_scale(made: ModelProto) -> None:
    for node in attention(made):
        put(node, "scale", None)


@pytest.mark.parametrize("change", [without_metadata, without_scale, renamed])
def test_what_its_makers_may_leave_out_or_call_otherwise_is_ours_then(
    change: ready_folder.Change, tmp_path: Path, models_dir: Path
) -> None:
    added = model.add(str(ready_folder.genai(tmp_path / "tiny", "llama-fp16-paged", change)), models_dir)
    graph = onnx.load(added.graph_path, load_external_data=False)
    assert [value.name for value in graph.graph.input][:6] == INPUTS
    assert {node.input[16] for node in attention(graph)} == {"attention_metadata"}
    assert {round(get(node, "scale") ** -2) for node in attention(graph)} == {added.spec.head_size}


def with_ring(made: ModelProto) -> None:
    """As for layers that see a part of the text, with pages of their own."""
    made.graph.input.append(helper.make_tensor_value_info("block_table_windowed", TensorProto.INT32, ["b", "w"]))
    attention(made)[1].input[7] = "block_table_windowed"


def with_slots(made: ModelProto) -> None:
    made.graph.input.append(helper.make_tensor_value_info("slots", TensorProto.INT32, ["t"]))
    attention(made)[0].input[10] = "slots"


def with_scales_of_tokens(made: ModelProto) -> None:
    attention(made)[0].input.extend(["a", "b"])
    for name in ("a", "b"):
        made.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["t"]))


def with_an_image(made: ModelProto) -> None:
    made.graph.input.append(helper.make_tensor_value_info("image", TensorProto.FLOAT, [3]))


def in_four_bits(made: ModelProto) -> None:
    for value in made.graph.input:
        if value.name.startswith("past_key_values."):
            value.type.tensor_type.elem_type = TensorProto.UINT8


def of_embeddings(made: ModelProto) -> None:
    next(value for value in made.graph.input if value.name == "input_ids").name = "inputs_embeds"
    made.graph.node[0].input[1] = "inputs_embeds"


def of_another_type(made: ModelProto) -> None:
    """As if attention took what it cannot."""
    attention(made)[0].input[5] = "input_ids"
    attention(made)[1].input[5] = "input_ids"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_ring, "has layers with lengths or pages of their own"),
        (with_slots, "with inputs that are not known here"),
        (with_scales_of_tokens, "with inputs that are not known here"),
        (with_an_image, "wants the input 'image', which is not known here"),
        (in_four_bits, "keeps keys and values in a type that is not supported; supported: fp16, bf16, int8, fp8"),
        (of_embeddings, "has no input 'input_ids', so it is not a whole language model"),
        (of_another_type, "wants the input 'cumulative_sequence_lengths'|cannot be run by ONNX Runtime"),
    ],
)
def test_what_cannot_be_run_is_refused(
    change: ready_folder.Change, words: str, tmp_path: Path, models_dir: Path
) -> None:
    folder = ready_folder.genai(tmp_path / "tiny", "llama-fp16-paged", change)
    with pytest.raises(UnsupportedModel, match=words):
        model.add(str(folder), models_dir)
    assert not list(models_dir.glob("[!.]*"))


def test_types_that_the_operators_refuse_are_found_without_a_card(tmp_path: Path, models_dir: Path) -> None:
    def narrow(made: ModelProto) -> None:
        for value in made.graph.input:
            if value.name == "block_table":
                value.type.tensor_type.elem_type = TensorProto.INT64

    folder = ready_folder.genai(tmp_path / "tiny", "llama-fp16-paged", narrow)
    with pytest.raises(UnsupportedModel, match=r"model\.onnx cannot be run by ONNX Runtime .*int64"):
        model.add(str(folder), models_dir)


def test_rows_of_logits_are_those_wanted_whatever_the_graph_gave(tmp_path: Path, models_dir: Path) -> None:
    """A graph that computed them of all tokens computes as few as one that was told which."""
    for name in ("llama-fp16-paged", "llama-fp16-paged-all"):
        added = model.add(str(ready_folder.genai(tmp_path / name, name)), models_dir, name=name)
        [logits] = onnx.load(added.graph_path, load_external_data=False).graph.output[:1]
        assert [dim.dim_param or dim.dim_value for dim in logits.type.tensor_type.shape.dim] == ["rows", 259]
        assert logits.type.tensor_type.elem_type == TensorProto.FLOAT
