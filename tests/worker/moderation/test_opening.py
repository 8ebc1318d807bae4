"""A filter is made of settings, or says why it cannot be; a guard model judges through a real engine."""

from pathlib import Path

import orjson
import pytest

from jobs.errors import ContentFiltered
from jobs.settings import Settings, SettingsError
from tests import tiny_model
from tests.worker.moderation import tiny_classifier, tiny_guard
from worker import moderation
from worker.chat import Answer, Usage
from worker.model import DamagedModel, UnknownModel, UnsupportedModel

BODY = {"messages": [{"role": "user", "content": "Hello"}]}


def answer(content: str | None, **more: object) -> Answer:
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **more}, "finish_reason": "stop"}
    return Answer(orjson.dumps({"id": "chatcmpl-1", "choices": [choice]}).decode(), Usage(1, 0, 1))


def settings(data_dir: Path, **chosen: object) -> Settings:
    return Settings(data_dir=data_dir, threads=1, sequence_tokens=512, **chosen)  # type: ignore[arg-type]


def test_there_is_no_filter_unless_one_is_chosen(tmp_path: Path) -> None:
    with moderation.opened(settings(tmp_path)) as chosen:
        assert chosen is None


def test_several_kinds_judge_together_and_all_that_they_find_is_told(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("make")
    tiny_guard.write(tmp_path / "models" / "guard", "Yes")
    folder = tiny_classifier.write(tmp_path / "pair", problem_type="single_label_classification")
    asked = settings(
        tmp_path,
        filter_words=tmp_path / "words",
        filter_classifier=folder,
        filter_labels="danger",
        filter_guard="guard",
    )
    with moderation.opened(asked) as chosen:
        assert chosen is not None
        assert [engine.is_alive for engine in chosen.engines] == [True]
        with pytest.raises(ContentFiltered, match="custom_blocklists, danger, harm"):
            chosen.prompt({"messages": [{"role": "user", "content": "make bomb"}]}).result(30)
        judged = orjson.loads(chosen.answer(BODY, answer("make bomb")).result(30).body)
        assert set(judged["choices"][0]["content_filter_results"]) == {"custom_blocklists", "danger", "harm"}
    assert not any(engine.is_alive for engine in chosen.engines)


def test_a_guard_model_that_finds_nothing_lets_all_pass(tmp_path: Path) -> None:
    tiny_guard.write(tmp_path / "models" / "guard", "No")
    with moderation.opened(settings(tmp_path, filter_guard="guard")) as chosen:
        assert chosen is not None
        chosen.prompt(BODY).result(30)
        said = answer("Hi")
        assert chosen.answer(BODY, said).result(30) is said


@pytest.mark.parametrize("place", ["reasoning", "arguments"])
def test_thoughts_and_calls_are_judged_and_withheld_with_the_content(tmp_path: Path, place: str) -> None:
    (tmp_path / "words").write_text("bomb")
    texts = {"reasoning": "Well.", "arguments": '{"what": "bath"}'} | {place: '{"what": "bomb"}'}
    call = {"id": "call_1", "type": "function", "function": {"name": "buy", "arguments": texts["arguments"]}}
    with moderation.opened(settings(tmp_path, filter_words=tmp_path / "words")) as chosen:
        assert chosen is not None
        said = answer("Fine.", reasoning=texts["reasoning"], tool_calls=[call])
        (choice,) = orjson.loads(chosen.answer(BODY, said).result(0).body)["choices"]
    assert choice["message"] == {"role": "assistant", "content": None, "refusal": None, "annotations": []}
    assert choice["finish_reason"] == "content_filter"


def test_an_answer_that_says_nothing_is_not_judged(tmp_path: Path) -> None:
    tiny_guard.write(tmp_path / "models" / "guard", "Yes")
    with moderation.opened(settings(tmp_path, filter_guard="guard")) as chosen:
        assert chosen is not None
        said = answer(" \n")
        assert chosen.answer(BODY, said).result(30) is said


def test_a_guard_model_without_a_verdict_keeps_the_worker_from_starting(tmp_path: Path) -> None:
    tiny_guard.write(tmp_path / "models" / "guard", "Maybe")
    with pytest.raises(SettingsError, match="cannot judge: the guard model answered 'Maybe', neither 'Yes' nor 'No'"):
        moderation.opened(settings(tmp_path, filter_guard="guard")).__enter__()


def test_a_classifier_whose_labels_are_not_its_outputs_keeps_the_worker_from_starting(tmp_path: Path) -> None:
    folder = tiny_classifier.write(
        tmp_path / "three", labels=("a", "b", "c"), problem_type="multi_label_classification"
    )
    with pytest.raises(SettingsError, match=r"cannot judge: the classifier gave \(1, 2\) for 3 labels"):
        moderation.opened(settings(tmp_path, filter_classifier=folder)).__enter__()


def test_a_model_that_is_no_guard_or_is_not_there_keeps_the_worker_from_starting(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "models" / "tiny")
    with pytest.raises(UnsupportedModel, match="'tiny' is not a guard model that is known here"):
        moderation.opened(settings(tmp_path, filter_guard="tiny")).__enter__()
    with pytest.raises(UnknownModel, match="there is no model 'other'"):
        moderation.opened(settings(tmp_path, filter_guard="other")).__enter__()
    (tmp_path / "models" / "tiny" / "model.onnx").unlink()
    with pytest.raises(DamagedModel, match=r"model\.onnx is missing"):
        moderation.opened(settings(tmp_path, filter_guard="tiny")).__enter__()


def test_labels_without_a_classifier_are_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="GRISTMILL_FILTER_LABELS"):
        moderation.opened(settings(tmp_path, filter_labels="toxic")).__enter__()
