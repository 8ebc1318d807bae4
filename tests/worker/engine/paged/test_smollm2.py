"""The demo's model on pages, against what transformers wrote: all that a card runs but the kernels, which are played.

The weights are taken out of the model that is installed. The beginnings of two of the 20 recorded answers, for it takes
a while; `make paged` compares them all.
"""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

from tests.worker.engine.paged.fake_card import Card, paged_session, runner_on
from worker.engine import Engine, EngineSettings, Prompt, Sampling
from worker.engine.paged.occupancy import Room
from worker.engine.paged.opening import page_tokens
from worker.engine.paged.ort_session import PageLayout
from worker.model import ModelFolder, Precision, onnx_file, paged_graph, rope
from worker.model.spec import ModelSpec
from worker.model.weights import LayerWeights, Linear, StoredTensor, Weights

EXPECTED: Final = Path(__file__).parents[2] / "model" / "expected_tokens.json"
ANSWERS, TOKENS = (20, 64) if "PAGED" in os.environ else (2, 32)
CONTEXT: Final = 384
ROPE_BASE: Final = 100_000.0


def test_greedy_answers_on_pages_equal_those_of_transformers_token_for_token(
    smollm2_fp32: ModelFolder, tmp_path: Path
) -> None:
    spec = replace(smollm2_fp32.spec, context_length=CONTEXT)
    paged_graph.write(spec, taken(smollm2_fp32, spec), Precision.FP32, tmp_path)
    answers = json.loads(EXPECTED.read_text("utf-8"))["answers"][:ANSWERS]
    page = page_tokens(spec.head_size)
    room = Room(1 + 2 * (4 + len(answers)), page, 4, len(answers), CONTEXT)
    layout = PageLayout(spec.layers, spec.kv_heads, spec.head_size, page, element_bytes=4)
    knobs = EngineSettings(context_tokens_max=CONTEXT, slots_max=len(answers), chunk_tokens=1024)
    card = Card()
    runner = runner_on(card, paged_session(card, tmp_path / "model.onnx", room), layout, room, knobs)
    with Engine(runner, knobs) as engine:
        greedy = Sampling(seed=0, temperature=0)
        futures = [engine.submit(Prompt(answer["prompt_ids"], greedy, TOKENS)) for answer in answers]
        found = [future.result(1800)[0].token_ids for future in futures]
    assert [list(tokens) for tokens in found] == [answer["answer_ids"][:TOKENS] for answer in answers]
    assert card.ahead_max > 1, "no step began before the one before was read"


def taken(model: ModelFolder, spec: ModelSpec) -> Weights:
    """Of a model on slots, in whose graph linear layers are [inputs, outputs] and some are one."""
    tensors = {tensor.name: tensor for tensor in onnx_file.load(model.graph_path).graph.initializer}

    def array(name: str) -> NDArray[Any]:
        return numpy_helper.to_array(tensors[name])

    def linear(name: str, start: int = 0, stop: int | None = None) -> Linear:
        return Linear(lambda: np.ascontiguousarray(array(name).T[start:stop]))

    def layer(index: int) -> LayerWeights:
        place = f"layers.{index}"
        queries = spec.heads * spec.head_size
        keys = queries + spec.kv_heads * spec.head_size
        qkv, gate_up = f"{place}.attention.qkv.weight", f"{place}.feed_forward.gate_up.weight"
        return LayerWeights(
            attention_norm=array(f"{place}.attention_norm.weight"),
            query=linear(qkv, 0, queries),
            key=linear(qkv, queries, keys),
            value=linear(qkv, keys),
            output=linear(f"{place}.attention.output.weight"),
            feed_forward_norm=array(f"{place}.feed_forward_norm.weight"),
            gate=linear(gate_up, 0, spec.intermediate),
            up=linear(gate_up, spec.intermediate),
            down=linear(f"{place}.feed_forward.down.weight"),
            rotary=rope.plain(spec.head_size, ROPE_BASE),
        )

    table = array("embedding.weight")
    np.testing.assert_allclose(
        array(next(name for name in tensors if name.startswith("rotary") and name.endswith("cos")))[:CONTEXT],
        np.cos(np.outer(np.arange(CONTEXT), rope.plain(spec.head_size, ROPE_BASE))),
        atol=1e-4,
    )
    assert spec.tied_embeddings
    embedding = StoredTensor.of(table)
    return Weights(embedding, layer, lambda: array("final_norm.weight"), lm_head=embedding)
