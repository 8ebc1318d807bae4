"""What a body tells the chat template beyond its messages: how much to think, and the template's own switches."""

from typing import Final

from jobs.contract.chat import ChatCompletion
from jobs.errors import BadRequest

SWITCHES: Final = ("enable_thinking", "thinking")
"""What templates call the thinking that can be left out."""
_OURS: Final = frozenset({"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"})


def of(wanted: ChatCompletion, known: frozenset[str], *, thinks: bool) -> dict[str, object]:
    """By name, for a template that reads the `known` variables, of a model that thinks or does not. BadRequest for
    what they would not notice.
    """
    if not thinks and wanted.thinking_tokens_max is not None:
        _refuse("thinking_token_budget")
    given = wanted.chat_template_kwargs or {}
    for name in given:
        if name in _OURS or name not in known:
            _refuse(f"chat_template_kwargs.{name}")
    return {**_effort(wanted.reasoning_effort, known, thinks=thinks), **given}


def _effort(effort: str | None, known: frozenset[str], *, thinks: bool) -> dict[str, object]:
    """A template that knows no efforts may know a switch; and who never thinks need not be told."""
    if effort is None:
        return {}
    if "reasoning_effort" in known:
        return {"reasoning_effort": effort}
    for switch in SWITCHES:
        if switch in known:
            return {switch: effort != "none"}
    if thinks or effort != "none":
        _refuse("reasoning_effort")
    return {}


def _refuse(param: str) -> None:
    raise BadRequest(
        f"Unsupported parameter: '{param}' is not supported with this model.",
        code="unsupported_parameter",
        param=param,
    )
