"""Reads a folder as Hugging Face models are published in: config.json, safetensors, tokenizer, chat template."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import tokenizers

from worker.model import config, reading, safetensors, spelling
from worker.model.checkpoint import Checkpoint
from worker.model.config import Config
from worker.model.errors import NoChatTemplate, UnreadableWeights, UnsupportedModel
from worker.model.reading import Names
from worker.model.spec import ModelSpec
from worker.model.tensors import Tensors

CONFIG_NAME: Final = "config.json"
_GENERATION_NAME: Final = "generation_config.json"
_TOKENIZER_NAME: Final = "tokenizer.json"
_TOKENS_NAME: Final = "tokenizer_config.json"
_TEMPLATE_NAME: Final = "chat_template.jinja"
_TOOL_TEMPLATE_NAME: Final = "additional_chat_templates/tool_use.jinja"
_OLD_TEMPLATE_NAME: Final = "chat_template.json"

_BESIDE_TEXT: Final = re.compile(r"(model\.)?(vision_tower|multi_modal_projector|vision_model)\.")
"""Tensors of a model that also sees, which text needs not."""
_TEXT_PREFIXES: Final = ("model.", "language_model.model.", "model.language_model.")


def is_model(folder: Path) -> bool:
    return (folder / CONFIG_NAME).is_file()


def files_of(folder: Path) -> list[Path]:
    """The files of which a model consists, by name."""
    said = [CONFIG_NAME, _GENERATION_NAME, _TOKENIZER_NAME, _TOKENS_NAME]
    said += [_TEMPLATE_NAME, _TOOL_TEMPLATE_NAME, _OLD_TEMPLATE_NAME]
    return sorted([path for name in said if (path := folder / name).is_file()] + safetensors.files_of(folder))


def read(folder: Path, chat_template: str | None = None) -> Checkpoint:
    """Open a folder; it must stay in place until the checkpoint's weights have been read.

    A `chat_template` is taken instead of the folder's. Raises UnreadableWeights if a file is missing or broken,
    UnsupportedModel if we cannot run what it holds.
    """
    settings = config.read(folder / CONFIG_NAME)
    _refuse_variants(settings)
    text_settings = _text_part(settings)
    tensors = Tensors(folder.name, safetensors.read(folder))
    names = _names(tensors)
    backend = _tokenizer(folder)
    tokens = config.read_if_there(folder / _TOKENS_NAME)
    templates = _Templates(chat_template, None) if chat_template else _templates(folder, tokens)
    described = reading.describe(
        text_settings,
        tied_embeddings=names.lm_head not in tensors.stored,
        eos_token_ids=_ends(folder, text_settings, settings, backend.token_to_id(_token(tokens, "eos_token"))),
    )
    weights = reading.weights(described, tensors, names)
    tensors.ignore(lambda name: _is_needless(name, names, described.spec))
    tensors.refuse_unused()
    return Checkpoint(
        spec=described.spec,
        weights=weights,
        tokenizer=backend,
        chat_template=templates.chat,
        tool_template=templates.tools,
        bos_token=_token(tokens, "bos_token"),
        eos_token=_token(tokens, "eos_token"),
    )


def _refuse_variants(settings: Config) -> None:
    """What would change the arithmetic without changing the tensors' names."""
    if settings.has("quantization_config"):
        raise UnsupportedModel(
            f"{settings.origin} says that the weights are quantized already; use the model they were made from"
        )
    if settings.values.get("use_bidirectional_attention"):
        raise UnsupportedModel(f"{settings.origin} is of a model that reads both ways, which does not write answers")


def _text_part(settings: Config) -> Config:
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


def _ends(folder: Path, text_settings: Config, settings: Config, eos: int | None) -> tuple[int, ...]:
    """All ids that any of the files says to end an answer."""
    said = [config.read_if_there(folder / _GENERATION_NAME), text_settings, settings]
    ids = {index for part in said for index in part.ids("eos_token_id")} | ({eos} if eos is not None else set())
    if not ids:
        raise UnreadableWeights(f"{folder.name} does not say which token ends an answer (eos_token_id)")
    return tuple(sorted(ids))


def _tokenizer(folder: Path) -> tokenizers.Tokenizer:
    path = folder / _TOKENIZER_NAME
    try:
        backend = tokenizers.Tokenizer.from_str(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UnreadableWeights(f"{folder.name} has no {_TOKENIZER_NAME}") from None
    except Exception as error:  # the library raises nothing narrower
        raise UnreadableWeights(f"{folder.name}/{_TOKENIZER_NAME} is not a tokenizer ({error})") from error
    spelling.of(backend)  # or we could not read its answers
    backend.no_padding()
    backend.no_truncation()
    return backend


def _token(tokens: Config, key: str) -> str:
    """A token by its text, which may lie inside an object; "" where there is none."""
    found = tokens.values.get(key)
    if isinstance(found, Mapping):
        found = found.get("content")
    return found if isinstance(found, str) else ""


@dataclass(frozen=True, slots=True)
class _Templates:
    chat: str
    tools: str | None


def _templates(folder: Path, tokens: Config) -> _Templates:
    """The chat templates, from the places where they have been kept over the years, newest first."""
    if chat := _text_of(folder / _TEMPLATE_NAME):
        return _Templates(chat, _text_of(folder / _TOOL_TEMPLATE_NAME))
    kept = [place.values.get("chat_template") for place in (config.read_if_there(folder / _OLD_TEMPLATE_NAME), tokens)]
    for found in kept:
        named = _by_name(found)
        if "default" in named:
            return _Templates(named["default"], named.get("tool_use"))
    raise NoChatTemplate(folder.name)


def _by_name(kept: Any) -> dict[str, str]:
    """One template, or a list of templates with names."""
    listed = kept if isinstance(kept, list) else [{"name": "default", "template": kept}]
    entries = [entry for entry in listed if isinstance(entry, Mapping)]
    return {str(entry.get("name")): entry["template"] for entry in entries if isinstance(entry.get("template"), str)}


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableWeights(f"{path.parent.name}/{path.name} cannot be read: {error}") from error
