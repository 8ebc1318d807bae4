"""A model folder with random weights, written in milliseconds: answers are nonsense, all else is real."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from worker.model import byte_level, folder, rope
from worker.model.checkpoint import Checkpoint
from worker.model.folder import ModelFolder
from worker.model.precision import Precision
from worker.model.spec import ModelSpec
from worker.model.weights import LayerWeights, Linear, StoredTensor, Tensor, Weights

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

SPEC = ModelSpec(
    architecture="llama",
    layers=2,
    heads=4,
    kv_heads=2,
    head_size=16,
    hidden=64,
    intermediate=128,
    vocabulary=len(CONTROL) + 256,
    context_length=512,
    norm_epsilon=1e-5,
    tied_embeddings=False,
    eos_token_ids=(CONTROL.index("<|im_end|>"),),
    bos_token_id=None,
    pad_token_id=None,
)


def write(
    path: Path,
    *,
    spec: ModelSpec = SPEC,
    seed: int = 0,
    precision: Precision = Precision.FP32,
    template: str = CHATML,
    control: Sequence[str] = (),
    whole: Sequence[str] = (),
) -> ModelFolder:
    """Write the model into `path`, which is made; the same seed gives the same weights. `control` and `whole` are more
    tokens: that steer the model, and of text that is never split.
    """
    path.mkdir(parents=True)
    return folder.write(
        path,
        checkpoint(spec, seed, template, control, whole),
        name="tiny",
        source=f"seed {seed}",
        reference="tiny",
        precision=precision,
    )


def checkpoint(
    spec: ModelSpec = SPEC,
    seed: int = 0,
    template: str = CHATML,
    control: Sequence[str] = (),
    whole: Sequence[str] = (),
) -> Checkpoint:
    vocabulary = [*CONTROL, *byte_level.BYTE_OF_SIGN, *control, *whole]
    ids = {token: place for place, token in enumerate(vocabulary)}
    spec = replace(spec, vocabulary=spec.vocabulary + len(control) + len(whole))
    return Checkpoint(
        spec=spec,
        weights=_weights(spec, seed),
        tokenizer=byte_level.build(
            vocabulary,
            [],
            "smollm",
            control=[ids[token] for token in (*CONTROL, *control)],
            whole=[ids[token] for token in whole],
        ),
        chat_template=template,
        bos_token="",
        eos_token="<|im_end|>",
    )


def _weights(spec: ModelSpec, seed: int) -> Weights:
    def draw(*shape: int, part: int) -> Tensor:
        noise = np.random.default_rng([seed, part]).standard_normal(shape, np.float32)
        return noise / np.float32(np.sqrt(shape[-1]))

    def linear(*shape: int, part: int) -> Linear:
        return Linear(lambda: draw(*shape, part=part))

    def layer(index: int) -> LayerWeights:
        queries, keys, part = spec.heads * spec.head_size, spec.kv_heads * spec.head_size, 10 * (index + 1)
        return LayerWeights(
            attention_norm=np.ones(spec.hidden, np.float32),
            query=linear(queries, spec.hidden, part=part),
            key=linear(keys, spec.hidden, part=part + 1),
            value=linear(keys, spec.hidden, part=part + 2),
            output=linear(spec.hidden, queries, part=part + 3),
            feed_forward_norm=np.ones(spec.hidden, np.float32),
            gate=linear(spec.intermediate, spec.hidden, part=part + 4),
            up=linear(spec.intermediate, spec.hidden, part=part + 5),
            down=linear(spec.hidden, spec.intermediate, part=part + 6),
            rotary=rope.plain(spec.head_size, 10_000.0),
        )

    return Weights(
        embedding=StoredTensor.of(draw(spec.vocabulary, spec.hidden, part=0)),
        layer=layer,
        final_norm=lambda: np.ones(spec.hidden, np.float32),
        lm_head=StoredTensor.of(draw(spec.vocabulary, spec.hidden, part=1) * np.float32(8)),
    )
