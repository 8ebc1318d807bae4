"""Models that are ONNX graphs already run as their makers meant, or are refused in one sentence."""

import contextlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper

from tests.worker.model import ready_folder
from worker import model
from worker.engine.loading import open_runner
from worker.engine.runner import Runner, Span
from worker.engine.settings import Device, EngineSettings
from worker.model import ModelError, ModelFolder, UnreadableWeights, UnsupportedModel, ready_made

KNOBS = EngineSettings(device=Device.CPU, context_tokens_max=64, slots_max=3, stages=2)
IDS = [int(index) for index in np.random.default_rng(7).integers(3, 259, 26)]

# 8 bits of an int4 model's activations may fall to either side where sums are made in another order.
NEARLY = {"fp32": 1e-5, "fp16": 1e-2, "int4": 2e-2}


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    return tmp_path / "models"


def opened(added: ModelFolder) -> Runner:
    return open_runner(added, KNOBS)


def assert_as_made(runner: Runner, graph: Path, nearly: float) -> None:
    """A prompt in pieces, then two rows of several lengths written together, beside the graph as it was."""
    found = [runner.step([Span(0, 0, np.array(IDS[:9]), ends_prompt=False)], [])]
    found.append(runner.step([Span(0, 9, np.array(IDS[9:20]), ends_prompt=True)], []).copy())
    runner.place(0, 20)
    found.append(runner.step([Span(1, 0, np.array(IDS[:6]), ends_prompt=True)], []).copy())
    runner.place(1, 6)
    lengths = [20, 6]
    for step in range(6):
        found.append(runner.step([], [IDS[20 + step], IDS[6 + step]]).copy())
        lengths += [21 + step, 7 + step]
    runner.close()
    logits = np.concatenate(found)
    expected = np.array([ready_folder.as_made(graph, IDS[:length]) for length in lengths])
    assert np.abs(logits - expected).max() <= nearly * np.abs(expected).max()


@pytest.mark.parametrize(
    "name", ["llama-fp32", "llama-fp32-last", "llama-int4", "llama-fp16", "llama-fp16-positions", "qwen3-fp32"]
)
def test_a_folder_of_genai_gives_the_logits_that_its_makers_meant(name: str, tmp_path: Path, models_dir: Path) -> None:
    folder = ready_folder.genai(tmp_path / name, name)
    added = model.add(str(folder), models_dir)
    assert (added.name, added.spec.layers, added.spec.kv_heads, added.spec.head_size) == (name, 2, 2, 16)
    assert (added.spec.vocabulary, added.spec.context_length, added.spec.eos_token_ids) == (259, 64, (2,))
    assert_as_made(opened(added), folder / "model.onnx", NEARLY[name.split("-")[1]])


def keeping_few_logits(made: ModelProto) -> None:
    """As optimum exported it for a while: how many logits to keep is an input."""
    graph = made.graph
    last = next(node for node in graph.node if node.output[0] == "logits")
    value = helper.make_tensor_value_info("num_logits_to_keep", TensorProto.INT64, [])
    graph.input.append(value)
    for name, number in (("keep.axis", [1]), ("keep.end", [2**62])):
        graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [1], number))
    nodes = [
        helper.make_node("Neg", ["num_logits_to_keep"], ["keep.negative"]),
        helper.make_node("Unsqueeze", ["keep.negative", "keep.zero"], ["keep.start"]),
        helper.make_node("Slice", [last.input[0], "keep.start", "keep.end", "keep.axis"], ["keep.hidden"]),
    ]
    graph.initializer.append(helper.make_tensor("keep.zero", TensorProto.INT64, [1], [0]))
    place = list(graph.node).index(last)
    last.input[0] = "keep.hidden"
    for node in reversed(nodes):
        graph.node.insert(place, node)


@pytest.mark.parametrize(
    ("name", "variant", "change"),
    [
        ("llama-fp16-positions", "model_fp16", lambda _: None),
        ("llama-int4", "model_q4", lambda _: None),
        ("qwen3-fp32", "model", keeping_few_logits),
    ],
)
def test_a_folder_of_onnx_community_gives_the_logits_that_its_makers_meant(
    name: str, variant: str, change: ready_folder.Change, tmp_path: Path, models_dir: Path
) -> None:
    folder = ready_folder.transformers_js(tmp_path / "Tiny-ONNX", name, variant, change)
    added = model.add(str(folder), models_dir)
    assert added.name == "tiny-onnx"
    assert_as_made(opened(added), folder / "onnx" / f"{variant}.onnx", NEARLY[name.split("-")[1]])


def test_one_of_several_graphs_is_chosen_by_its_path(tmp_path: Path, models_dir: Path) -> None:
    folder = ready_folder.transformers_js(tmp_path / "tiny", "llama-fp32")
    other = ready_folder.transformers_js(tmp_path / "other", "llama-int4", "model_q4")
    for path in (other / "onnx").iterdir():
        path.rename(folder / "onnx" / path.name)
    usual = model.add(str(folder), models_dir)
    chosen = model.add(str(folder / "onnx" / "model_q4.onnx"), models_dir, name="q4")
    assert usual.manifest.source.startswith("onnx:tiny/model.onnx@sha256:")
    assert chosen.size_bytes < usual.size_bytes


def test_a_model_that_turns_longer_texts_otherwise_is_used_for_the_shorter_ones(
    tmp_path: Path, models_dir: Path
) -> None:
    folder = ready_folder.genai(tmp_path / "phi", "phi3-fp32")
    added = model.add(str(folder), models_dir)
    assert added.spec.context_length == 32
    assert_as_made(opened(added), folder / "model.onnx", NEARLY["fp32"])


def test_what_was_added_needs_its_source_no_more(tmp_path: Path, models_dir: Path) -> None:
    folder = ready_folder.genai(tmp_path / "tiny", "llama-fp32")
    added = model.add(str(folder), models_dir)
    shutil.rmtree(folder)
    assert model.verify(added.path) == added
    assert added.manifest.is_ready_made
    assert opened(added).step([Span(0, 0, np.array([5]), ends_prompt=True)], []).shape == (1, 259)


def test_tied_weights_are_kept_once(tmp_path: Path, models_dir: Path) -> None:
    def tie(made: ModelProto) -> None:
        gates = [tensor for tensor in made.graph.initializer if "gate_proj" in tensor.name]
        del gates[1].external_data[:]
        gates[1].external_data.extend(gates[0].external_data)

    apart = model.add(str(ready_folder.genai(tmp_path / "apart", "llama-fp32")), models_dir)
    tied = model.add(str(ready_folder.genai(tmp_path / "tied", "llama-fp32", tie)), models_dir)
    assert apart.size_bytes - tied.size_bytes >= 64 * 64 * 4


def test_a_precision_of_ones_own_choice_is_refused(tmp_path: Path, models_dir: Path) -> None:
    folder = ready_folder.genai(tmp_path / "tiny", "llama-fp32")
    with pytest.raises(UnsupportedModel, match=r"int8 because it is an ONNX graph already.*leave --precision out"):
        model.add(str(folder), models_dir, precision="int8")


def say(folder: Path, **values: object) -> None:
    path = folder / "genai_config.json"
    said = json.loads(path.read_text("utf-8"))
    said["model"] |= values
    path.write_text(json.dumps(said), "utf-8")


def test_a_model_that_sees_is_refused(tmp_path: Path, models_dir: Path) -> None:
    folder = ready_folder.genai(tmp_path / "tiny", "llama-fp32")
    say(folder, vision={"filename": "vision.onnx"})
    with pytest.raises(UnsupportedModel, match="has a graph for vision too; only models of text are supported"):
        model.add(str(folder), models_dir)


def test_a_decoder_in_several_graphs_is_refused(tmp_path: Path, models_dir: Path) -> None:
    folder = ready_folder.genai(tmp_path / "tiny", "llama-fp32")
    say(folder, decoder={"pipeline": [{}]})
    with pytest.raises(UnsupportedModel, match="its decoder in several graphs"):
        model.add(str(folder), models_dir)


def test_attention_of_another_kind_is_refused(tmp_path: Path, models_dir: Path) -> None:
    folder = ready_folder.genai(tmp_path / "tiny", "llama-fp32-other")
    with pytest.raises(UnsupportedModel, match=r"model\.onnx has no GroupQueryAttention"):
        model.add(str(folder), models_dir)
    assert not list(models_dir.glob("[!.]*"))


def renamed(old: str, new: str) -> ready_folder.Change:
    def change(made: ModelProto) -> None:
        next(value for value in made.graph.input if value.name == old).name = new
        for node in made.graph.node:
            node.input[:] = [new if name == old else name for name in node.input]

    return change


def with_cache_of(kind: int) -> ready_folder.Change:
    def change(made: ModelProto) -> None:
        for value in made.graph.input:
            if value.name.startswith("past_key_values."):
                value.type.tensor_type.elem_type = kind

    return change


def with_cast_caches(made: ModelProto) -> None:
    for node in [node for node in made.graph.node if node.op_type == "GroupQueryAttention"]:
        cast = helper.make_node("Cast", [node.input[3]], [f"{node.name}.cast"], to=TensorProto.FLOAT)
        node.input[3] = cast.output[0]
        made.graph.node.insert(0, cast)


def with_node(operator: str, inputs: Sequence[str], outputs: Sequence[str]) -> ready_folder.Change:
    return lambda made: made.graph.node.insert(0, helper.make_node(operator, inputs, outputs))


def with_another_end(made: ModelProto) -> None:
    last = next(node for node in made.graph.node if node.output[0] == "logits")
    last.output[0] = "logits.before"
    made.graph.node.append(helper.make_node("Softmax", ["logits.before"], ["logits"]))


def in_an_old_version(made: ModelProto) -> None:
    made.opset_import[0].version = 11


def with_weights_outside(made: ModelProto) -> None:
    tensor = next(tensor for tensor in made.graph.initializer if tensor.external_data)
    tensor.external_data[0].value = "../secret"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed("input_ids", "inputs_embeds"), "has no input 'input_ids', so it is not a whole language model"),
        (renamed("attention_mask", "use_cache_branch"), "wants the input 'use_cache_branch', which is not known"),
        (with_cache_of(TensorProto.INT8), "keys and values in a type that is not supported"),
        (with_cast_caches, "changes keys and values outside of GroupQueryAttention"),
        (with_node("DynamicQuantizeLinear", ["input_ids"], ["a", "b", "c"]), "would depend on their neighbours"),
        (with_node("If", ["input_ids"], ["a"]), "has If , whose meaning is not known"),
        (with_another_end, "has 'logits' of Softmax, where a linear layer was expected"),
        (in_an_old_version, "version 11 of ONNX's operators; 13 is needed"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(
    change: ready_folder.Change, message: str, tmp_path: Path, models_dir: Path
) -> None:
    folder = ready_folder.genai(tmp_path / "tiny", "llama-fp32", change)
    with pytest.raises(UnsupportedModel, match=message) as refusal:
        model.add(str(folder), models_dir)
    assert "\n" not in str(refusal.value)


def looking_at_its_length(made: ModelProto) -> None:
    """Logits that grow with the tokens of a run: right for its makers, who compute a prompt at once."""
    last = next(node for node in made.graph.node if node.output[0] == "logits")
    last.output[0] = "logits.before"
    made.graph.node.extend(
        [
            helper.make_node("Size", ["input_ids"], ["tokens"]),
            helper.make_node("Cast", ["tokens"], ["tokens.float"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["logits.before", "tokens.float"], ["logits"]),
        ]
    )


def test_a_graph_that_computes_otherwise_in_pieces_is_refused(tmp_path: Path, models_dir: Path) -> None:
    folder = ready_folder.genai(tmp_path / "tiny", "llama-fp32", looking_at_its_length)
    with pytest.raises(UnsupportedModel, match="computes a text otherwise in pieces"):
        model.add(str(folder), models_dir)
    assert not list(models_dir.glob("[!.]*"))


def test_a_graph_that_the_runtime_does_not_know_is_refused(tmp_path: Path, models_dir: Path) -> None:
    def change(made: ModelProto) -> None:
        next(node for node in made.graph.node if node.op_type == "Sigmoid").op_type = "Sigmund"

    folder = ready_folder.genai(tmp_path / "tiny", "llama-fp32", change)
    with pytest.raises(UnsupportedModel, match=r"cannot be run by ONNX Runtime .*Sigmund") as refusal:
        model.add(str(folder), models_dir)
    assert "\n" not in str(refusal.value)


def test_weights_outside_of_their_folder_are_refused(tmp_path: Path, models_dir: Path) -> None:
    folder = ready_folder.genai(tmp_path / "tiny", "llama-fp32", with_weights_outside)
    with pytest.raises(UnreadableWeights, match=r"lies in \.\./secret, which is not beside its graph"):
        model.add(str(folder), models_dir)


def test_weights_cut_short_are_refused(tmp_path: Path, models_dir: Path) -> None:
    weights = ready_folder.genai(tmp_path / "tiny", "llama-fp32") / "model.onnx.data"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UnreadableWeights, match=r"ends behind the end of model\.onnx\.data"):
        model.add(str(weights.parent), models_dir)
    weights.unlink()
    with pytest.raises(UnreadableWeights, match=r"model\.onnx\.data cannot be read: No such file"):
        model.add(str(weights.parent), models_dir)


@pytest.mark.parametrize("name", ["model.onnx", "genai_config.json", "tokenizer.json"])
def test_a_missing_file_is_named(name: str, tmp_path: Path, models_dir: Path) -> None:
    folder = ready_folder.genai(tmp_path / "tiny", "llama-fp32")
    (folder / name).unlink()
    with pytest.raises(ModelError, match=name.split(".")[0]):
        model.add(str(folder), models_dir)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_graph_does_worse_than_to_be_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    if not folder.exists():
        ready_folder.genai(folder, "phi3-fp32")
    graph = folder / "model.onnx"
    content = bytearray((ready_folder.RECORDED / "phi3-fp32.onnx").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 9))
        written = data.draw(st.binary(min_size=1, max_size=8))
        content[place : place + len(written)] = written
    graph.write_bytes(content)
    with contextlib.suppress(ModelError):
        ready_made.read(graph)


def test_a_graph_that_goes_in_a_circle_is_refused(tmp_path: Path, models_dir: Path) -> None:
    def change(made: ModelProto) -> None:
        last = next(node for node in made.graph.node if node.output[0] == "logits")
        last.op_type, last.domain = "Cast", ""
        last.input[:] = ["logits"]

    folder = ready_folder.genai(tmp_path / "tiny", "llama-fp32", change)
    with pytest.raises(UnreadableWeights, match=r"is not a graph as such models have them .*takes what nothing makes"):
        model.add(str(folder), models_dir)


def test_the_recorded_graphs_hold_no_weights() -> None:
    for path in ready_folder.RECORDED.glob("*.onnx"):
        graph = onnx.load(path, load_external_data=False).graph
        assert all(tensor.external_data or len(tensor.raw_data) < 2048 for tensor in graph.initializer)
