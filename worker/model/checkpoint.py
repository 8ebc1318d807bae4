"""A model as its makers published it, read but not yet converted: what every file format is turned into."""

from dataclasses import dataclass

import tokenizers

from worker.model.ready_graph import ReadyGraph
from worker.model.spec import ModelSpec
from worker.model.weights import Weights


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights, or a graph that has them already, tokenizer and chat template of one model."""

    spec: ModelSpec
    weights: Weights | ReadyGraph
    tokenizer: tokenizers.Tokenizer
    chat_template: str  # Jinja, as Hugging Face renders it
    bos_token: str  # for the template; "" where the model has none
    eos_token: str
    tool_template: str | None = None  # another one for requests with tools, where there is one
    named_context: int = 0  # the tokens that its makers name, where that is more than can be used; else 0
