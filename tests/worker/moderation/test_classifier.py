"""A classifier beside the engine: a real ONNX session over a tiny graph."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.settings import SettingsError
from tests.worker.moderation import tiny_classifier
from tests.worker.moderation.saying import said, verdict
from worker.engine import EngineStopped
from worker.moderation import classifier_folder
from worker.moderation.classifier import Classifier, Labels
from worker.moderation.judge import JudgeFailed

MULTI, SINGLE = "multi_label_classification", "single_label_classification"
DANGER = "please make bomb now"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_classifier.write(tmp_path_factory.mktemp("classifier") / "pair", problem_type=MULTI)


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Iterator[Classifier]:
    with classifier_folder.opened(folder, "danger=0.9") as opened:
        yield opened


def test_a_label_over_its_threshold_is_a_category(classifier: Classifier) -> None:
    assert verdict(classifier, DANGER) == {"danger"}
    assert verdict(classifier, "make the bath") == set()


def test_without_a_choice_every_label_counts(folder: Path) -> None:
    with classifier_folder.opened(folder, None) as opened:
        assert verdict(opened, DANGER) == {"danger"}
        assert verdict(opened, "the bath") == {"calm"}


def test_where_each_text_has_one_label_the_operator_says_which_are_filtered(tmp_path: Path) -> None:
    folder = tiny_classifier.write(tmp_path / "single", problem_type=SINGLE)
    with (
        pytest.raises(SettingsError, match=r"must say which labels .* danger, calm"),
        classifier_folder.opened(folder, None),
    ):
        pass
    with classifier_folder.opened(folder, "danger") as opened:
        assert verdict(opened, DANGER) == {"danger"}
        assert verdict(opened, "the bath") == set()


@given(filling=st.lists(st.sampled_from(["the", "a", "bath", "make", "strange"]), min_size=1, max_size=5))
@settings(max_examples=20, deadline=None)
def test_what_stands_across_the_border_of_two_windows_is_found(classifier: Classifier, filling: list[str]) -> None:
    """16 tokens a window, 14 of them the text's own: the pair stands in every place of three of them."""
    words = filling * 40
    for place in range(40):
        before, after = words[:place], words[place:40]
        assert verdict(classifier, " ".join([*before, *tiny_classifier.PAIR, *after])) == {"danger"}
        assert verdict(classifier, " ".join([*before, "the", "bomb", "make", "the", *after])) == set()


def test_texts_that_wait_together_get_each_their_own_verdict(classifier: Classifier) -> None:
    texts = [DANGER if number % 3 == 0 else "the " * (number % 40 + 1) for number in range(300)]
    verdicts = [classifier.judge(said(text)) for text in texts]
    assert [bool(future.result(10)) for future in verdicts] == [number % 3 == 0 for number in range(300)]


def test_what_was_said_before_is_not_judged_again(classifier: Classifier) -> None:
    assert not classifier.judge(said(DANGER, "the bath", fresh=1)).result(10)


class Broken:
    """A session that fails at texts with the word `strange`, which has no id of its own."""

    def __init__(self, session: object, logits: np.ndarray | None = None) -> None:
        self._session, self._logits = session, logits

    def run(self, outputs: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        if self._logits is not None:
            return [self._logits]
        if (inputs["input_ids"] == tiny_classifier.WORDS.index("[UNK]")).any():
            raise RuntimeError("no such id")
        return self._session.run(outputs, inputs)  # type: ignore[attr-defined]


def test_a_text_that_cannot_be_judged_costs_the_others_nothing(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifier, "_session", Broken(classifier._session))
    asked = [classifier.judge(said(text)) for text in ("the bath", "make bomb", "strange", "a bath")]
    with pytest.raises(RuntimeError, match="no such id"):
        asked[2].result(10)
    assert [set(future.result(10)) for future in (asked[0], asked[1], asked[3])] == [set(), {"danger"}, set()]


@pytest.mark.parametrize("logits", [[[np.nan, 0.0]], [[np.inf, 0.0]], [[0.0]], [[0.0, 0.0, 0.0]]])
def test_what_is_no_verdict_is_none(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch, logits: list[list[float]]
) -> None:
    monkeypatch.setattr(classifier, "_session", Broken(None, np.array(logits, np.float32)))
    with pytest.raises(JudgeFailed):
        classifier.judge(said("the bath")).result(10)


def test_probabilities_are_of_each_label_or_shared_between_them() -> None:
    logits = np.log([[1.0, 3.0], [6.0, 2.0]])
    assert Labels(("a", "b"), (0.76, 0.74), is_exclusive=True).reached(logits) == {"b"}, "3/4 of either"
    assert Labels(("a", "b"), (0.85, 0.76), is_exclusive=False).reached(logits) == {"a"}, "6/7 and 3/4"
    assert Labels(("a", "b"), (None, 0.75), is_exclusive=False).reached(logits + 1e-9) == {"b"}
    assert Labels(("a",), (0.5,), is_exclusive=False).reached(np.array([[0.0]])) == {"a"}, "the threshold itself"
    assert Labels(("a",), (0.5,), is_exclusive=False).reached(np.array([[-1e9]])) == set()


def test_a_classifier_that_has_ended_judges_nothing(folder: Path) -> None:
    with classifier_folder.opened(folder, None) as opened:
        pass
    with pytest.raises(EngineStopped):
        opened.judge(said(DANGER))


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("config.json", b"{}", "config.json: id2label Field required"),
        (
            "config.json",
            b'{"id2label": {"0": "a"}, "max_position_embeddings": 1}',
            "max_position_embeddings Input should",
        ),
        ("config.json", None, "No such file"),
        ("config.json", b"[", "config.json: Invalid JSON"),
        ("tokenizer.json", b"{}", "."),
        ("tokenizer.json", None, "No such file"),
        ("model.onnx", b"no model", "model.onnx"),
        ("model.onnx", None, "model.onnx"),
    ],
)
def test_a_folder_that_cannot_be_used_is_told_in_a_sentence(
    folder: Path, tmp_path: Path, name: str, content: bytes | None, fault: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / name).unlink() if content is None else (copy / name).write_bytes(content)
    with pytest.raises(SettingsError, match=f"copy cannot be used: .*{fault}") as told:
        classifier_folder.opened(copy, None).__enter__()
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("chosen", "fault"),
    [
        ("toxic", "not a label .* danger, calm"),
        ("danger=2", "danger=2"),
        ("danger=x", "danger=x"),
        ("calm=0", "calm=0"),
    ],
)
def test_a_choice_of_labels_that_cannot_be_used_is_told(folder: Path, chosen: str, fault: str) -> None:
    with pytest.raises(SettingsError, match=fault), classifier_folder.opened(folder, chosen):
        pass


def test_inputs_that_we_cannot_give_are_told(tmp_path: Path) -> None:
    folder = tiny_classifier.write(tmp_path / "odd", problem_type=MULTI)
    content = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(content.replace(b"attention_mask", b"attention_musk"))
    with pytest.raises(SettingsError, match="wants attention_musk"), classifier_folder.opened(folder, None):
        pass


def test_the_config_of_a_model_with_one_label_needs_no_type(folder: Path) -> None:
    config = orjson.loads((folder / "config.json").read_bytes()) | {"id2label": {"0": "toxic"}, "problem_type": None}
    known = classifier_folder.labels(classifier_folder.Config.model_validate(config), None)
    assert (known.names, known.is_exclusive) == (("toxic",), False)
