"""Text to token ids and back. What a user wrote never becomes a control token.

A chat template joins its own control tokens and the user's text into one string. So that the two can be told
apart after it, `shield` puts an invisible mark into everything in the user's text that reads like a control
token; `encode_template` then finds only the template's own, and removes the marks. Text without look-alikes
is not touched, and its ids are those of an ordinary encoder.
"""

import re
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Final

import tokenizers

from worker.model import spelling

# A code point that Unicode keeps for a program's inner use. Text that holds it anyway gets it doubled.
_MARK: Final = "\ufdd0"
_MARKS: Final = re.compile(f"{_MARK}({_MARK}?)")
_BLANKS: Final = re.compile(r"\A\s+")
_SPACED: Final = re.compile(rb" [^ ]")

# A template says the same between its control tokens in every prompt, and so do many system prompts. What was
# encoded lately is kept: 256 texts, of which even the longest take 15 MB in all.
_KEPT_TEXTS: Final = 256
_KEPT_CHARACTERS: Final = 4096

# Longer texts are encoded as a batch of one, for which the library lets other threads go on: a text of a million
# characters takes it most of a second, in which an engine would stand still.
_SHORT_CHARACTERS: Final = 256


class Tokenizer:
    """One model's tokenizer; safe to use from several threads."""

    def __init__(self, backend: tokenizers.Tokenizer, *, vocabulary: int, eos_token_ids: tuple[int, ...]) -> None:
        self.vocabulary = vocabulary
        """How many ids the model knows, which can be more than there are tokens."""
        self.eos_token_ids = eos_token_ids
        self._backend = backend
        # Control tokens are found here; what is left for the backend is text, whatever it looks like.
        self._backend.encode_special_tokens = True
        self._inside = _without_first_space(backend)
        self._spelling = spelling.of(backend)
        added = backend.get_added_tokens_decoder()
        self._whole = {token.content for token in added.values() if not token.special}
        # A mark cannot break a single sign, so such a token is text to us.
        self._control = {
            token.content: index for index, token in added.items() if token.special and len(token.content) > 1
        }
        self._swallowing = {token.content for token in added.values() if token.rstrip}
        self._control_pattern = re.compile(f"({_any_of(self._control)})") if self._control else None
        self._suspicious = re.compile(f"[{re.escape(_MARK + ''.join({text[0] for text in self._control}))}]")
        self._control_beginnings = {text[:end] for text in self._control for end in range(1, len(text))}
        self._beginning_max = max(map(len, self._control_beginnings), default=0)
        self._encode_kept = lru_cache(_KEPT_TEXTS)(self._encode)

    @cached_property
    def token_bytes(self) -> Sequence[bytes]:
        """What each id adds to an answer, one entry per id; b"" for control tokens and unused ids."""
        table = [b""] * self.vocabulary
        for token, index in self._backend.get_vocab(with_added_tokens=True).items():
            if token not in self._control and index < self.vocabulary:
                spell = self._spelling.whole if token in self._whole else self._spelling.piece
                table[index] = spell(token)
        return table

    @cached_property
    def drops_first_space(self) -> bool:
        """Whether a text that begins with a space is told without it, as by the older SentencePiece tokenizers: they
        put one before every text that they read.
        """
        spaced = (index for index, spelt in enumerate(self.token_bytes) if _SPACED.match(spelt))
        first = next(spaced, None)
        return first is not None and not self._backend.decode([first]).startswith(" ")

    @cached_property
    def special_token_ids(self) -> frozenset[int]:
        """The control tokens: those that only a template or the model itself may write."""
        return frozenset(self._control.values())

    def shield(self, text: str) -> str:
        """Prepare a user's text for a template, so that nothing in it reads as a control token."""
        if self._control_pattern is None or not self._suspicious.search(text):
            return text
        text = text.replace(_MARK, _MARK * 2)
        text = self._control_pattern.sub(lambda found: found[0][0] + _MARK + found[0][1:], text)
        # What follows in the template could complete it.
        return text + _MARK if self._could_go_on(text) else text

    def encode_template(self, text: str) -> list[int]:
        """The ids of a rendered template whose foreign texts all went through `shield`."""
        # Texts and the control tokens between them, in turn.
        first, *others = self._control_pattern.split(text) if self._control_pattern else (text,)
        ids = [*self._ids(_without_marks(first), begins=True)]
        for control, said in zip(others[::2], others[1::2], strict=True):
            ids.append(self._control[control])
            if said:
                behind = _BLANKS.sub("", said, 1) if control in self._swallowing else said
                ids += self._ids(_without_marks(behind), begins=False)
        return ids

    def encode_plain(self, text: str) -> list[int]:
        """The ids of a text in which nothing is a control token."""
        return list(self._ids(text, begins=True))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer: without control tokens, bytes that are not UTF-8 replaced."""
        return b"".join([self.token_bytes[index] for index in ids]).decode("utf-8", "replace")

    def token_text(self, index: int) -> str:
        """How a token is written: a control token as itself, any other as its text, "" for an unused id."""
        token = self._backend.id_to_token(index)
        return token if index in self.special_token_ids and token else self.decode([index])

    def token_id(self, text: str) -> int | None:
        """The token that is written so, a control token among them; None if there is none."""
        found: int | None = self._backend.token_to_id(text)
        return found

    def as_json(self) -> str:
        """The tokenizer in Hugging Face's format."""
        return self._backend.to_str()

    def _could_go_on(self, text: str) -> bool:
        ends = range(1, 1 + min(self._beginning_max, len(text)))
        return any(text[-length:] in self._control_beginnings for length in ends)

    def _ids(self, text: str, *, begins: bool) -> tuple[int, ...]:
        if not text:
            return ()
        return self._encode_kept(text, begins) if len(text) <= _KEPT_CHARACTERS else self._encode(text, begins)

    def _encode(self, text: str, begins: bool) -> tuple[int, ...]:
        """A pure function of its arguments: what it gave once may be given again."""
        backend = self._backend if begins else self._inside
        if len(text) <= _SHORT_CHARACTERS:
            return tuple(backend.encode(text, add_special_tokens=False).ids)
        return tuple(backend.encode_batch_fast([text], add_special_tokens=False)[0].ids)


def _without_first_space(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """One for texts behind a control token, where some tokenizers put no space before the first word."""
    if getattr(backend.pre_tokenizer, "prepend_scheme", None) != "first":
        return backend
    inside = tokenizers.Tokenizer.from_str(backend.to_str())
    inside.encode_special_tokens = True
    inside.pre_tokenizer.prepend_scheme = "never"
    return inside


def load(path: Path, *, vocabulary: int, eos_token_ids: tuple[int, ...]) -> Tokenizer:
    """Read a tokenizer.json."""
    return Tokenizer(
        tokenizers.Tokenizer.from_str(path.read_text("utf-8")),
        vocabulary=vocabulary,
        eos_token_ids=eos_token_ids,
    )


def _any_of(texts: Iterable[str]) -> str:
    """A pattern that finds the longest of the texts at the first place where one stands.

    What texts have in common at their beginning is looked at once: some models have thousands of control tokens.
    """
    ends = False
    rest: dict[str, list[str]] = {}
    for text in texts:
        ends = ends or not text
        if text:
            rest.setdefault(text[0], []).append(text[1:])
    if not rest:
        return ""
    branches = "|".join(re.escape(sign) + _any_of(tails) for sign, tails in sorted(rest.items()))
    return f"(?:{branches})?" if ends else f"(?:{branches})"


def _without_marks(text: str) -> str:
    return _MARKS.sub(r"\1", text) if _MARK in text else text
