"""Reads a folder as Hugging Face models are published in: config.json, safetensors, tokenizer, chat template."""

import re
from pathlib import Path
from typing import Final

from worker.model import config, reading, rope, safetensors, words
from worker.model.checkpoint import Checkpoint
from worker.model.config import Config
from worker.model.errors import UnreadableWeights, UnsupportedModel
from worker.model.reading import Names
from worker.model.spec import ModelSpec
from worker.model.tensors import Tensors

CONFIG_NAME: Final = "config.json"

_BESIDE_TEXT: Final = re.compile(r"(model\.)?(vision_tower|multi_modal_projector|vision_model)\.")
"""Tensors of a model that also sees, which text needs not."""
_TEXT_PREFIXES: Final = ("model.", "language_model.model.", "model.language_model.")


def is_model(folder: Path) -> bool:
    return (folder / CONFIG_NAME).is_file()


def files_of(folder: Path) -> list[Path]:
    """The files of which a model consists, by name."""
    said = [path for name in (CONFIG_NAME, *words.NAMES) if (path := folder / name).is_file()]
    return sorted(said + safetensors.files_of(folder))


def read(folder: Path, chat_template: str | None = None) -> Checkpoint:
    """Open a folder; it must stay in place until the checkpoint's weights have been read.

    A `chat_template` is taken instead of the folder's. Raises UnreadableWeights if a file is missing or broken,
    UnsupportedModel if we cannot run what it holds.
    """
    settings = config.read(folder / CONFIG_NAME)
    _refuse_variants(settings)
    text_settings = text_part(settings)
    tensors = Tensors(folder.name, safetensors.read(folder))
    names = _names(tensors)
    said = words.read(folder, (text_settings, settings), chat_template)
    described = reading.describe(
        text_settings,
        tied_embeddings=names.lm_head not in tensors.stored,
        eos_token_ids=said.eos_token_ids,
    )
    weights = reading.weights(described, tensors, names)
    tensors.ignore(lambda name: _is_needless(name, names, described.spec))
    tensors.refuse_unused()
    return Checkpoint(
        spec=described.spec,
        weights=weights,
        tokenizer=said.tokenizer,
        chat_template=said.chat_template,
        tool_template=said.tool_template,
        bos_token=said.bos_token,
        eos_token=said.eos_token,
        named_context=rope.unused_context(described.config),
    )


def _refuse_variants(settings: Config) -> None:
    """What would change the arithmetic without changing the tensors' names."""
    if settings.has("quantization_config"):
        raise UnsupportedModel(
            f"{settings.origin} says that the weights are quantized already; use the model they were made from"
        )
    if settings.values.get("use_bidirectional_attention"):
        raise UnsupportedModel(f"{settings.origin} is of a model that reads both ways, which does not write answers")


def text_part(settings: Config) -> Config:
    """The settings of the language model inside one that also sees."""
    if not settings.has("text_config"):
        return settings
    return settings.part("text_config").over({"model_type": f"{settings.text('model_type')}_text"})


def _names(tensors: Tensors) -> Names:
    """Tensors have one of a few prefixes, by the age of the file and by what the model does beside text."""
    for prefix in _TEXT_PREFIXES:
        if f"{prefix}embed_tokens.weight" in tensors.stored:
            break
    else:
        raise UnreadableWeights(f"{tensors.origin} has no tensor 'model.embed_tokens.weight'")
    head = "language_model.lm_head.weight" if prefix.startswith("language_model.") else "lm_head.weight"
    return Names(f"{prefix}embed_tokens.weight", f"{prefix}norm.weight", head, prefix + "layers.{index}.{part}")


def _is_needless(name: str, names: Names, spec: ModelSpec) -> bool:
    """Old files hold tables that are computed now, and some an lm_head that is the embedding once more."""
    is_copy = spec.tied_embeddings and name == names.lm_head
    return is_copy or name.endswith(".rotary_emb.inv_freq") or bool(_BESIDE_TEXT.match(name))
