"""How guard models are asked, and what their answers mean. Text in, text out: knows nothing of tokens."""

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Final, Protocol

from worker.moderation.conversation import Speaker, Turn
from worker.moderation.judge import JudgeFailed

# By their codes in the MLCommons taxonomy: as models were trained to read them, and as we call them. What Azure
# has a name for has that name.
HAZARDS: Final = {
    "S1": ("Violent Crimes", "violent_crimes"),
    "S2": ("Non-Violent Crimes", "non_violent_crimes"),
    "S3": ("Sex Crimes", "sex_crimes"),
    "S4": ("Child Exploitation", "child_exploitation"),
    "S5": ("Defamation", "defamation"),
    "S6": ("Specialized Advice", "specialized_advice"),
    "S7": ("Privacy", "privacy"),
    "S8": ("Intellectual Property", "intellectual_property"),
    "S9": ("Indiscriminate Weapons", "indiscriminate_weapons"),
    "S10": ("Hate", "hate"),
    "S11": ("Self-Harm", "self_harm"),
    "S12": ("Sexual Content", "sexual"),
    "S13": ("Elections", "elections"),
    "S14": ("Code Interpreter Abuse", "code_interpreter_abuse"),
}


class GuardFormat(Protocol):
    """The words that a family of guard models was trained on."""

    answer_tokens_max: int

    def prompt(self, turns: Sequence[Turn]) -> str:
        """Asks about the last turn. Its control tokens are the only ones, if the turns hold none."""
        ...

    def categories(self, answer: str) -> frozenset[str]:
        """What an answer names, nothing if it is that all is well. JudgeFailed if it is neither."""
        ...


def of_template(template: str) -> GuardFormat | None:
    """The format of the model that has this chat template; None if it is no guard model that we know."""
    codes = [code for code, (name, _) in HAZARDS.items() if re.search(rf"{code}\W+{name}", template)]
    # Its predecessors have other codes for the same, its successor has other control tokens.
    if "S10" in codes and "<|start_header_id|>" in template:
        return LlamaGuard(codes)
    if "<start_of_risk_definition>" in template:
        return GraniteGuardian()
    return None


class LlamaGuard:
    """Llama Guard 3: https://www.llama.com/docs/model-cards-and-prompt-formats/llama-guard-3/.

    The smaller of its models knows fewer hazards; its own template says which.
    """

    answer_tokens_max = 64  # the codes of all hazards
    _FRAME: Final = re.compile("<((?:BEGIN|END) (?:CONVERSATION|UNSAFE CONTENT CATEGORIES))>")

    def __init__(self, codes: Sequence[str]) -> None:
        self._hazards = "\n".join(f"{code}: {HAZARDS[code][0]}." for code in codes)

    def prompt(self, turns: Sequence[Turn]) -> str:
        """The whole conversation."""
        role = turns[-1].speaker
        said = "".join(f"{turn.speaker}: {turn.text}\n\n" for turn in _plain(turns, self._FRAME))
        return (
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
            f"Task: Check if there is unsafe content in '{role}' messages in conversations according our safety policy "
            "with the below categories.\n\n"
            f"<BEGIN UNSAFE CONTENT CATEGORIES>\n{self._hazards}\n<END UNSAFE CONTENT CATEGORIES>\n\n"
            f"<BEGIN CONVERSATION>\n\n{said}<END CONVERSATION>\n\n"
            f"Provide your safety assessment for ONLY THE LAST {role} message in the above conversation:\n"
            " - First line must read 'safe' or 'unsafe'.\n"
            " - If unsafe, a second line must include a comma-separated list of violated categories."
            "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        )

    def categories(self, answer: str) -> frozenset[str]:
        """`safe`, or `unsafe` and a line of codes. A code that we do not know stays as it is."""
        verdict, _, codes = answer.strip().partition("\n")
        if verdict.strip() == "safe":
            return frozenset()
        if verdict.strip() == "unsafe":
            named = [code.strip() for code in codes.split(",") if code.strip()] or ["unsafe"]
            return frozenset(HAZARDS[code][1] if code in HAZARDS else code for code in named)
        raise JudgeFailed(f"the guard model answered {answer[:40]!r}, neither 'safe' nor 'unsafe'")


class GraniteGuardian:
    """Granite Guardian 3.0 to 3.2, asked for harm of any kind: https://huggingface.co/ibm-granite."""

    answer_tokens_max = 24  # one word, and in later versions how sure the model is of it
    _FRAME: Final = re.compile("<((?:start|end)_of_(?:turn|risk_definition))>")
    _ROLES: Final = {Speaker.USER: "User", Speaker.AGENT: "Assistant"}
    _VERDICT: Final = re.compile(r"(yes|no)\b", re.IGNORECASE)

    def prompt(self, turns: Sequence[Turn]) -> str:
        """An answer together with what it answers; a prompt by itself."""
        role = self._ROLES[turns[-1].speaker]
        heard = _plain(turns, self._FRAME)[-1 if role == "User" else -2 :]
        said = "".join(f"{self._ROLES[turn.speaker]} Message: {turn.text}\n" for turn in heard)
        return (
            "<|start_of_role|>user<|end_of_role|>You are a safety agent trying to help determine whether the "
            f"{role.lower()} message is harmful according to the safety risk definition below.\n\n"
            f"<start_of_turn>\n{said}<end_of_turn>\n\n"
            "Our safety risk definition is defined below:\n<start_of_risk_definition>\n"
            f"* The '{role}' message is harmful by common-sense.\n<end_of_risk_definition>\n\n"
            f"Is the {role.lower()} message harmful based on the risk definition? Your answer must be either 'Yes' or "
            "'No'.<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>"
        )

    def categories(self, answer: str) -> frozenset[str]:
        """`Yes` or `No`, whatever follows."""
        verdict = self._VERDICT.match(answer.strip())
        if verdict is None:
            raise JudgeFailed(f"the guard model answered {answer[:40]!r}, neither 'Yes' nor 'No'")
        return frozenset({"harm"}) if verdict[1].lower() == "yes" else frozenset()


def _plain(turns: Sequence[Turn], frame: re.Pattern[str]) -> list[Turn]:
    """Each speaker once in a row, and nothing in the text that reads like the frame around it."""
    return [
        Turn(speaker, frame.sub(r"\1", "\n\n".join(turn.text.strip() for turn in own)))
        for speaker, own in groupby(turns, key=lambda turn: turn.speaker)
    ]
