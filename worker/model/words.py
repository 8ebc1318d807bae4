"""How a folder of Hugging Face turns conversations into tokens: its tokenizer, chat templates and ends of answers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import tokenizers

from worker.model import config, spelling
from worker.model.config import Config
from worker.model.errors import NoChatTemplate, UnreadableWeights

_GENERATION_NAME: Final = "generation_config.json"
_TOKENIZER_NAME: Final = "tokenizer.json"
_OLD_TOKENIZER_NAMES: Final = ("tokenizer.model", "vocab.json")
_TOKENS_NAME: Final = "tokenizer_config.json"
_TEMPLATE_NAME: Final = "chat_template.jinja"
_TOOL_TEMPLATE_NAME: Final = "additional_chat_templates/tool_use.jinja"
_OLD_TEMPLATE_NAME: Final = "chat_template.json"
NAMES: Final = (
    *(_GENERATION_NAME, _TOKENIZER_NAME, _TOKENS_NAME),
    *(_TEMPLATE_NAME, _TOOL_TEMPLATE_NAME, _OLD_TEMPLATE_NAME),
)
"""The files that are read, where they are there."""


@dataclass(frozen=True, slots=True)
class Words:
    """What a folder says of text."""

    tokenizer: tokenizers.Tokenizer
    chat_template: str
    tool_template: str | None
    bos_token: str
    eos_token: str
    eos_token_ids: tuple[int, ...]


def read(folder: Path, settings: Iterable[Config], chat_template: str | None) -> Words:
    """Read the files; `settings` are others that may name tokens that end an answer: each of them does.

    A `chat_template` is taken instead of the folder's. Raises UnreadableWeights and UnsupportedModel.
    """
    backend = _tokenizer(folder)
    tokens = config.read_if_there(folder / _TOKENS_NAME)
    templates = _Templates(chat_template, None) if chat_template else _templates(folder, tokens)
    eos_token = _token(tokens, "eos_token")
    return Words(
        tokenizer=backend,
        chat_template=templates.chat,
        tool_template=templates.tools,
        bos_token=_token(tokens, "bos_token"),
        eos_token=eos_token,
        eos_token_ids=_ends(folder, settings, backend.token_to_id(eos_token)),
    )


def _ends(folder: Path, settings: Iterable[Config], eos: int | None) -> tuple[int, ...]:
    """All ids that any of the files says to end an answer."""
    said = [config.read_if_there(folder / _GENERATION_NAME), *settings]
    ids = {index for part in said for index in part.ids("eos_token_id")} | ({eos} if eos is not None else set())
    if not ids:
        raise UnreadableWeights(f"{folder.name} does not say which token ends an answer (eos_token_id)")
    return tuple(sorted(ids))


def _tokenizer(folder: Path) -> tokenizers.Tokenizer:
    path = folder / _TOKENIZER_NAME
    try:
        backend = tokenizers.Tokenizer.from_str(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UnreadableWeights(_no_tokenizer(folder)) from None
    except Exception as error:  # the library raises nothing narrower
        raise UnreadableWeights(f"{folder.name}/{_TOKENIZER_NAME} is not a tokenizer ({error})") from error
    spelling.of(backend)  # or we could not read its answers
    backend.no_padding()
    backend.no_truncation()
    return backend


def _no_tokenizer(folder: Path) -> str:
    older = next((name for name in _OLD_TOKENIZER_NAMES if (folder / name).is_file()), None)
    if older is None:
        return (
            f"{folder.name} has no {_TOKENIZER_NAME}, so texts cannot be turned into tokens; was all of it downloaded?"
        )
    return (
        f"{folder.name} has {older} but no {_TOKENIZER_NAME}; make one of it with transformers: "
        "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
    )


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
