"""The paged runner on the CPU: whatever shares its pages and its runs, a text is computed as if it were alone."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.worker.engine.paged.opened import CONTEXT, PAGE, Opened, opened, room, write
from worker.engine.errors import OutOfBlocks, OutOfMemory
from worker.engine.paged.paged_runner import PagedRunner
from worker.engine.runner import Span
from worker.engine.softmax import Logits

TokenIds = npt.NDArray[np.int64]
EDGES = [1, 2, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 2 * PAGE + 1, CONTEXT - 3, CONTEXT - 1]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("paged"))


@pytest.fixture(scope="module")
def truth(graph: Path) -> Opened:
    return opened(graph, room(slots=1, stages=1))


def text(length: int, seed: int = 0) -> TokenIds:
    return np.random.default_rng([length, seed]).integers(0, 250, length)


def alone(truth: Opened, ids: TokenIds) -> Logits:
    """The logits after a whole text, computed in one piece."""
    last: Logits = truth.runner.step([Span(0, 0, ids, ends_prompt=True)], [])[0].copy()
    return last


def feed(runner: PagedRunner, stage: int, ids: TokenIds, start: int = 0) -> Logits:
    last: Logits = runner.step([Span(stage, start, ids[start:], ends_prompt=True)], [])[0].copy()
    return last


def same(found: Logits, expected: Logits) -> None:
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("length", EDGES)
def test_a_row_goes_on_at_every_border_as_the_whole_text_says(graph: Path, truth: Opened, length: int) -> None:
    runner = opened(graph, room()).runner
    ids = text(length)
    same(feed(runner, 0, ids), alone(truth, ids))
    row = runner.place(0, length)
    for token in range(min(CONTEXT - length, 2 * PAGE + 2)):
        ids = np.append(ids, token)
        same(runner.step([], [token])[row], alone(truth, ids))


def test_prompts_of_all_lengths_in_one_run_and_rows_at_all_borders_in_one(graph: Path, truth: Opened) -> None:
    runner = opened(graph, room(stages=len(EDGES), slots=len(EDGES))).runner
    spans = [Span(stage, 0, text(length), ends_prompt=True) for stage, length in enumerate(EDGES)]
    for found, span in zip(runner.step(spans, []).copy(), spans, strict=True):
        same(found, alone(truth, span.token_ids))
    for stage, length in enumerate(EDGES):
        runner.place(stage, length)
    for found, span in zip(runner.step([], [9] * len(EDGES)), spans, strict=True):
        same(found, alone(truth, np.append(span.token_ids, 9)))


def test_choices_that_read_on_from_one_prompt_keep_apart(graph: Path, truth: Opened) -> None:
    for length in (2 * PAGE - 1, 2 * PAGE, 2 * PAGE + 1):
        opening = opened(graph, room())
        runner, prompt = opening.runner, text(length)
        feed(runner, 0, prompt)
        rows = [runner.place(0, length) for _ in range(4)]
        texts = [prompt] * 4
        for step in range(PAGE + 2):
            tokens = [(step + row) % 7 for row in rows]
            texts = [np.append(ids, token) for ids, token in zip(texts, tokens, strict=True)]
            logits = runner.step([], tokens)
        for found, ids in zip(logits, texts, strict=True):
            same(found, alone(truth, ids))
        same(feed(runner, 0, np.append(prompt, 5), length), alone(truth, np.append(prompt, 5)))


def test_a_prompt_that_begins_as_one_of_a_running_row_shares_and_spoils_nothing(graph: Path, truth: Opened) -> None:
    runner = opened(graph, room()).runner
    first = text(40)
    feed(runner, 0, first)
    runner.place(0, 40)
    for shared in (39, 33, 32, 31, 16, 5):
        other = np.concatenate([first[:shared], text(20, seed=shared)])
        runner.copy(0, 1, shared)
        same(feed(runner, 1, other, shared), alone(truth, other))
        same(feed(runner, 0, first, 39), alone(truth, first))  # the last token again, where others read its page
    same(runner.step([], [3])[0], alone(truth, np.append(first, 3)))


class Crowd:
    """Texts that enter, are cut, share, are written and leave, each held against itself alone."""

    def __init__(self, runner: PagedRunner, truth: Opened, random: np.random.Generator) -> None:
        self.runner, self.truth, self.random = runner, truth, random
        self.stages: list[TokenIds] = [text(0)] * runner.stages
        self.rows: list[TokenIds] = []
        self.written = 0

    def compute(self) -> None:
        stage = int(self.random.integers(len(self.stages)))
        start = int(self.random.integers(len(self.stages[stage]) + 1))
        start = min(start, CONTEXT - 1)
        own = self.random.integers(0, 250, self.random.integers(1, CONTEXT - start + 1))
        self.stages[stage] = np.concatenate([self.stages[stage][:start], own])
        same(feed(self.runner, stage, self.stages[stage], start), alone(self.truth, self.stages[stage]))

    def copy(self) -> None:
        source, stage = self.random.permutation(len(self.stages))[:2].tolist()
        length = int(self.random.integers(len(self.stages[source]) + 1))
        self.runner.copy(source, stage, length)
        self.stages[stage] = self.stages[source][:length]

    def place(self) -> None:
        stage = int(self.random.integers(len(self.stages)))
        length = len(self.stages[stage])
        has_room = self.runner.free_tokens >= -(-length // PAGE) * PAGE and len(self.rows) < self.runner.slots
        if has_room and 0 < length < CONTEXT:
            assert self.runner.place(stage, length) == len(self.rows)
            self.rows.append(self.stages[stage])

    def write(self) -> None:
        for row in reversed(range(len(self.rows))):
            if len(self.rows[row]) == CONTEXT or self.random.random() < 0.1:
                self._remove(row)
        while sum(len(ids) % PAGE == 0 for ids in self.rows) * PAGE > self.runner.free_tokens:
            self._remove(len(self.rows) - 1)
        tokens = self.random.integers(0, 250, len(self.rows)).tolist()
        self.rows = [np.append(ids, token) for ids, token in zip(self.rows, tokens, strict=True)]
        if self.rows:
            self.written += 1
            for found, ids in zip(self.runner.step([], tokens), self.rows, strict=True):
                same(found, alone(self.truth, ids))

    def _remove(self, row: int) -> None:
        self.runner.remove(row)
        self.rows[row] = self.rows[-1]
        self.rows.pop()


def test_rows_that_come_and_go_between_runs_are_computed_as_alone(graph: Path, truth: Opened) -> None:
    random = np.random.default_rng(5)
    runner = opened(graph, room(pages=1 + 3 * 6 + 14, slots=6)).runner
    crowd = Crowd(runner, truth, random)
    for _ in range(150):
        [crowd.compute, crowd.copy, crowd.place, crowd.write][random.integers(4)]()
    assert crowd.written > 20


def test_a_step_of_both_kinds_gives_prompts_first(graph: Path, truth: Opened) -> None:
    runner = opened(graph, room()).runner
    feed(runner, 0, text(20))
    runner.place(0, 20)
    pieces = [Span(1, 0, text(7), ends_prompt=True), Span(2, 0, text(9), ends_prompt=False)]
    logits = runner.step(pieces, [4])
    same(logits[0], alone(truth, text(7)))
    same(logits[1], alone(truth, np.append(text(20), 4)))
    assert len(logits) == 2


@pytest.mark.parametrize("length", [1, PAGE - 1, PAGE, 40])
def test_tokens_fed_ahead_and_rows_not_read_change_nothing(graph: Path, truth: Opened, length: int) -> None:
    runner = opened(graph, room()).runner
    texts = [text(length), text(11)]
    for stage, ids in enumerate(texts):
        feed(runner, stage, ids)
        runner.place(stage, len(ids))
    assert runner.feeds(2, 40)
    assert not runner.feeds(1, 40)
    ahead = text(PAGE + 3, seed=8)
    runner.feed(0, ahead.tolist())
    texts[0] = np.append(texts[0], ahead)
    for unread in ([], [0], [1]):
        texts = [np.append(ids, 5) for ids in texts]
        read = [ids for row, ids in enumerate(texts) if row not in unread]
        logits = runner.step([], [5, 5], unread)
        assert len(logits) == len(read)
        for found, ids in zip(logits, read, strict=True):
            same(found, alone(truth, ids))


@pytest.mark.parametrize("length", EDGES[:-2])
def test_a_row_that_went_back_by_a_token_is_written_anew(graph: Path, truth: Opened, length: int) -> None:
    runner = opened(graph, room()).runner
    texts = [text(length), text(11)]
    for stage, ids in enumerate(texts):
        feed(runner, stage, ids)
        runner.place(stage, len(ids))
    runner.step([], [3, 4])
    runner.rewind(0)
    texts = [np.append(texts[0], 9), np.append(texts[1], [4, 5])]
    for found, ids in zip(runner.step([], [9, 5]), texts, strict=True):
        same(found, alone(truth, ids))


def test_pieces_that_end_no_prompt_give_no_logits(graph: Path) -> None:
    runner = opened(graph, room()).runner
    assert runner.step([Span(0, 0, text(30), ends_prompt=False)], []).shape == (0, runner.vocabulary)


def test_a_run_without_memory_changes_nothing_and_can_be_tried_again(graph: Path, truth: Opened) -> None:
    opening = opened(graph, room())
    runner, ids = opening.runner, text(2 * PAGE)
    feed(runner, 0, ids)
    runner.place(0, len(ids))
    free = runner.free_tokens
    for _ in range(2):
        opening.session.tokens_max = 0
        with pytest.raises(OutOfMemory):
            runner.step([], [8])
        opening.session.tokens_max = 10**9
    same(runner.step([], [8])[0], alone(truth, np.append(ids, 8)))
    assert runner.free_tokens == free - PAGE


def test_more_rows_than_slots_are_refused(graph: Path) -> None:
    runner = opened(graph, room(slots=1)).runner
    feed(runner, 0, text(3))
    runner.place(0, 3)
    with pytest.raises(OutOfBlocks):
        runner.place(0, 3)


def test_rows_are_run_in_few_shapes(graph: Path) -> None:
    opening = opened(graph, room(slots=8))
    for count in range(8):
        feed(opening.runner, 0, text(12 + count))
        opening.runner.place(0, 12 + count)
        for _ in range(5):
            opening.runner.step([], [1] * (count + 1))
    captured = [run for run in opening.session.runs if run.is_captured]
    assert len(captured) == 40
    assert {run.shape[0] for run in captured} == {1, 2, 4, 8}
    assert {run.shape[1] for run in captured} == {1, 2, 4}
