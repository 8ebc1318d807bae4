"""A guard model that gives the same verdict on everything: each of its tokens decides the next."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from tests import tiny_model
from tests.tiny_model import CONTROL, SPEC
from worker.model import ModelFolder, byte_level, folder
from worker.model.precision import Precision
from worker.model.weights import LayerWeights, Linear, StoredTensor

TEMPLATE = "{{ '<start_of_risk_definition>' }}"  # of Granite Guardian, whose prompt ends with ">"


def write(path: Path, verdict: str) -> ModelFolder:
    """Write the model into `path`, which is made. No two signs of the verdict may be the same."""
    path.mkdir(parents=True)
    spec = replace(SPEC, context_length=2_048)
    made = tiny_model.checkpoint(spec)
    signs = [len(CONTROL) + list(byte_level.BYTE_OF_SIGN).index(sign) for sign in f">{verdict}"]
    embedding = made.weights.embedding.read()
    head = np.zeros_like(embedding)
    for before, after in pairwise([*signs, CONTROL.index("<|im_end|>")]):
        head[after] = embedding[before]
    weights = replace(
        made.weights,
        layer=lambda index: _silent(made.weights.layer(index)),
        lm_head=StoredTensor.of(head * np.float32(8)),
    )
    return folder.write(
        path,
        replace(made, weights=weights, chat_template=TEMPLATE),
        name=path.name,
        source=verdict,
        reference=path.name,
        precision=Precision.FP32,
    )


def _silent(layer: LayerWeights) -> LayerWeights:
    """A layer that adds nothing."""

    def nothing(like: Linear) -> Linear:
        return like.each(np.zeros_like)

    return replace(layer, output=nothing(layer.output), down=nothing(layer.down))
