"""Opens a classifier's folder: `model.onnx`, `tokenizer.json` and `config.json`, as Hugging Face exports them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import onnxruntime as ort
import tokenizers
from pydantic import BaseModel, Field, ValidationError

from jobs.settings import SettingsError
from worker.engine.session import open_session
from worker.moderation.classifier import Classifier, Labels

THRESHOLD: Final = 0.5
WINDOW_TOKENS_MIN, WINDOW_TOKENS_MAX = 16, 512
OVERLAP_SHARE: Final = 8  # one in eight tokens of a window stands in the next one too
_INPUTS: Final = frozenset({"input_ids", "attention_mask", "token_type_ids"})


class Config(BaseModel):
    """What we read of a `config.json`."""

    id2label: dict[int, str]
    problem_type: str | None = None
    max_position_embeddings: Annotated[int, Field(ge=WINDOW_TOKENS_MIN + 2)] = WINDOW_TOKENS_MAX
    pad_token_id: int | None = None

    @property
    def is_exclusive(self) -> bool:
        """As the pipelines of transformers decide it."""
        return self.problem_type != "multi_label_classification" and len(self.id2label) > 1

    @property
    def window_tokens(self) -> int:
        """Two positions fewer than there are, for RoBERTa and its kin begin to count at two."""
        return min(WINDOW_TOKENS_MAX, self.max_position_embeddings - 2)


@contextmanager
def opened(folder: Path, chosen: str | None) -> Iterator[Classifier]:
    """The classifier in a folder. SettingsError says in one sentence what is wrong with it.

    `chosen` names the labels that are filtered, as `toxic=0.5,threat=0.3`.
    """
    try:
        config = Config.model_validate_json((folder / "config.json").read_bytes())
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        session = open_session(folder / "model.onnx", threads=1)
    except ValidationError as error:
        fault = error.errors()[0]
        raise _unusable(folder, " ".join(map(str, ("config.json:", *fault["loc"], fault["msg"])))) from error
    except Exception as error:  # the readers of tokenizers and ONNX Runtime raise many kinds
        raise _unusable(folder, str(error).splitlines()[0]) from error
    _refuse_inputs(folder, session)
    tokenizer.no_padding()
    tokenizer.enable_truncation(config.window_tokens, stride=config.window_tokens // OVERLAP_SHARE)
    known = labels(config, chosen)
    thread = ThreadPoolExecutor(1, thread_name_prefix="classifier")
    classifier = Classifier(session, tokenizer, known, thread, padding_id=config.pad_token_id or 0)
    try:
        yield classifier
    finally:
        classifier.stop()


def labels(config: Config, chosen: str | None) -> Labels:
    """All at one threshold if none is chosen, which where a text has exactly one label would filter every text."""
    names = tuple(name for _, name in sorted(config.id2label.items()))
    thresholds = _thresholds(chosen, names) if chosen else dict.fromkeys(names, THRESHOLD)
    if config.is_exclusive and not chosen:
        raise SettingsError(
            "GRISTMILL_FILTER_LABELS must say which labels of this classifier are filtered, for each text has one of: "
            + ", ".join(names)
        )
    return Labels(names, tuple(map(thresholds.get, names)), config.is_exclusive)


def _thresholds(chosen: str, names: tuple[str, ...]) -> dict[str, float]:
    found: dict[str, float] = {}
    for one in chosen.split(","):
        name, _, least = one.partition("=")
        if name.strip() not in names:
            raise SettingsError(
                f"GRISTMILL_FILTER_LABELS names '{name.strip()}', which is not a label of this classifier; they are "
                + ", ".join(names)
            )
        found[name.strip()] = _threshold(one, least)
    return found


def _threshold(whole: str, least: str) -> float:
    try:
        threshold = float(least) if least else THRESHOLD
    except ValueError:
        threshold = 0.0
    if not 0 < threshold <= 1:
        raise SettingsError(
            f"GRISTMILL_FILTER_LABELS: '{whole}' is not as 'label=0.5', a probability above 0, up to 1."
        )
    return threshold


def _refuse_inputs(folder: Path, session: ort.InferenceSession) -> None:
    if unknown := {one.name for one in session.get_inputs()} - _INPUTS:
        raise _unusable(folder, f"model.onnx wants {', '.join(sorted(unknown))}")


def _unusable(folder: Path, fault: str) -> SettingsError:
    return SettingsError(f"The classifier in {folder} cannot be used: {fault}.")
