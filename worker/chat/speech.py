"""How one model speaks: its template, its way to call tools, its thinking. A body becomes the tokens of a prompt, and
what is read of an answer's tokens beside its text.
"""

from collections.abc import Sequence
from datetime import datetime
from functools import partial

from jobs.contract.chat import ChatCompletion
from worker.chat import conversation, reasoning, variables
from worker.chat.grammar import Grammar, Grammars
from worker.chat.reasoning import Thoughts
from worker.chat.template import Template
from worker.chat.tools import families, lark
from worker.chat.tools.beginning import Beginning
from worker.chat.tools.offer import Offer
from worker.model import ModelFolder, Tokenizer


class Speech:
    """Of one model; safe to use from several threads."""

    def __init__(self, model: ModelFolder, tokenizer: Tokenizer) -> None:
        source, bos, eos = model.chat_template(), model.manifest.bos_token, model.manifest.eos_token
        with_tools = model.tool_template() or source
        self._tokenizer = tokenizer
        self._template = self._tool_template = Template(source, bos_token=bos, eos_token=eos)
        if with_tools != source:
            self._tool_template = Template(with_tools, bos_token=bos, eos_token=eos)
        self._spoken = families.of_template(with_tools, knows_tools="tools" in self._tool_template.variables)
        self._tags = reasoning.tags_of(source, tokenizer)
        self.call_bytes = self._with_marks()
        """What each token adds to an answer that may call: as text, also where a mark is a control token."""

    @property
    def family(self) -> families.Family:
        return self._spoken.family

    def prompt_text(self, wanted: ChatCompletion, offer: Offer | None, created: datetime) -> str:
        """BadRequest for what the template cannot render, or would not notice."""
        shield = self._tokenizer.shield
        template = self._tool_template if offer else self._template
        said = conversation.of(wanted.messages, offer.shown if offer else (), self._spoken, shield)
        told = variables.of(wanted, template.variables, thinks=self._tags is not None)
        more = {name: conversation.shielded(value, shield) for name, value in told.items()}
        return template.render(said.turns, now=created, tools=said.tools, variables=more)

    def thoughts(self, prompt_ids: Sequence[int], tokens_max: int | None, *, is_held: bool) -> Thoughts | None:
        """What an answer begins with, for a model that thinks; `is_held` says that a grammar holds the answer."""
        if self._tags is None:
            return None
        return reasoning.thoughts_of(
            self._tags, prompt_ids, self._tokenizer.token_bytes, tokens_max=tokens_max, keeps_blanks=is_held
        )

    def call_grammar(self, offer: Offer, grammars: Grammars) -> Grammar:
        """All ways to call."""
        mark = partial(self._mark, grammars)
        text = self.family.grammar(offer.callable, mark, is_parallel=offer.is_parallel)
        return lark.compiled(text, grammars)

    def beginning(self) -> Beginning:
        """Where a choice's calls begin."""
        return Beginning(self.family.openings, only_first=self.family.only_first)

    def encode(self, text: str) -> list[int]:
        """The tokens of a prompt, or of what the model wrote itself: control tokens are read as such."""
        return self._tokenizer.encode_template(text)

    def _mark(self, grammars: Grammars, text: str) -> str:
        """By its id where it is one token that is never spelt out, be it a control token or, as of Qwen 3, text."""
        token_id = self._tokenizer.token_id(text)
        is_whole = token_id is not None and grammars.is_whole(token_id)
        return f"<[{token_id}]>" if is_whole else lark.literal(text)

    def _with_marks(self) -> Sequence[bytes]:
        table = list(self._tokenizer.token_bytes)
        for mark in self.family.marks:
            if (token_id := self._control_id(mark)) is not None:
                table[token_id] = mark.encode()
        return table

    def _control_id(self, text: str) -> int | None:
        token_id = self._tokenizer.token_id(text)
        return token_id if token_id in self._tokenizer.special_token_ids else None
