"""The 8-bit graph on blocks: near fp32, and bit for bit the same whatever runs beside it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests import tiny_model
from tests.worker.engine.test_forced import Form
from worker.engine.block_runner import BlockRunner
from worker.engine.blocks import BlockLayout
from worker.engine.engine import Engine
from worker.engine.loading import open_runner
from worker.engine.prompt import Completion, Prompt
from worker.engine.quality import compare
from worker.engine.runner import Span
from worker.engine.sampling import Sampling
from worker.engine.scheduler import WORTH_WAITING_TOKENS
from worker.engine.settings import EngineSettings
from worker.engine.softmax import Logits
from worker.model.block_ports import BLOCK, STAGES
from worker.model.folder import ModelFolder
from worker.model.precision import Precision

KNOBS = EngineSettings(threads=2, context_tokens_max=512, slots_max=24, kv_bytes_max=2**30)
PATIENCE_SECONDS = 60

TokenIds = npt.NDArray[np.int64]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return tiny_model.write(tmp_path_factory.mktemp("eighths") / "tiny", precision=Precision.INT8)


@pytest.fixture
def runner(model: ModelFolder) -> Iterator[BlockRunner]:
    opened = open_runner(model, KNOBS)
    assert isinstance(opened, BlockRunner)
    yield opened
    opened.close()


def text(length: int, seed: int = 0) -> TokenIds:
    return np.random.default_rng([length, seed]).integers(0, tiny_model.SPEC.vocabulary, length)


def compute(runner: BlockRunner, prompt: TokenIds, pieces: list[int], stage: int = 0) -> Logits:
    assert sum(pieces) == len(prompt)
    start = 0
    for length in pieces:
        span = Span(stage, start, prompt[start : start + length], ends_prompt=start + length == len(prompt))
        logits = runner.step([span], [])
        start += length
    last: Logits = logits[0].copy()
    return last


def test_it_changes_a_model_little(tmp_path: Path, model: ModelFolder) -> None:
    reference = tiny_model.write(tmp_path / "reference")
    runners = [open_runner(folder, KNOBS) for folder in (model, reference)]
    quality = compare(runners[0], runners[1], text(8 * 200), stretches=8, progress=lambda *_: None)
    assert quality.tokens == 8 * 135
    assert quality.same_top > 0.8
    assert quality.divergence < 0.05


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 128, 129, 300])
def test_pieces_of_any_length_give_the_bits_of_the_whole(runner: BlockRunner, length: int) -> None:
    prompt = text(length)
    whole = compute(runner, prompt, [length])
    for first in {1, 2, 43, 64, 129, 171, 257} & set(range(1, length)):
        assert np.array_equal(compute(runner, prompt, [first, length - first], stage=1), whole), first


@pytest.mark.parametrize("length", [1, 62, 63, 64, 127, 300])
def test_a_row_is_written_bit_for_bit_alike_alone_and_in_a_crowd_that_comes_and_goes(
    runner: BlockRunner, length: int
) -> None:
    prompt, steps = text(length), 70
    compute(runner, prompt, [length])
    runner.place(0, length)
    alone = [runner.step([], [step])[0].copy() for step in range(steps)]
    runner.remove(0)

    crowd = [20, 64, 65, 250, 129, 7, 63]
    for other in crowd:
        compute(runner, text(other), [other], stage=1)
        runner.place(1, other)
    compute(runner, prompt, [length])
    row, rows = runner.place(0, length), len(crowd) + 1
    for step in range(steps):
        if step in {10, 33} and row:  # the row before goes, and the last takes its number
            runner.remove(0)
            rows -= 1
            row = 0 if row == rows else row
        if step == 50:
            compute(runner, text(90), [90], stage=1)
            rows = runner.place(1, 90) + 1
        spans = [Span(3 - n, 0, text(30 + step), ends_prompt=True) for n in range(step % 3)]
        logits = runner.step(spans, [step] * rows)
        assert np.array_equal(logits[row + len(spans)], alone[step]), step


def test_logits_that_nobody_reads_change_no_bit_of_the_others(runner: BlockRunner) -> None:
    def crowd() -> None:
        for row, length in enumerate([20, 65, 7]):
            compute(runner, text(length), [length])
            assert runner.place(0, length) == row

    crowd()
    read = [runner.step([], [step] * 3).copy() for step in range(4)]
    for _ in range(3):
        runner.remove(0)
    crowd()
    assert np.array_equal(runner.step([], [0] * 3, unread={1}), read[0][[0, 2]])
    assert runner.step([], [1] * 3, unread={0, 1, 2}).shape == (0, runner.vocabulary)
    assert np.array_equal(runner.step([], [2] * 3, unread={0}), read[2][1:])
    span = Span(0, 0, text(9), ends_prompt=True)
    assert np.array_equal(runner.step([span], [3] * 3, unread={0, 2})[1:], read[3][[1]])


def test_prompts_side_by_side_are_computed_bit_for_bit_as_alone(runner: BlockRunner) -> None:
    prompts = [text(length) for length in (1, 63, 130, 301)]
    alone = [compute(runner, prompt, [len(prompt)]) for prompt in prompts]
    spans = [Span(stage, 0, prompt, ends_prompt=True) for stage, prompt in enumerate(prompts)]
    assert np.array_equal(runner.step(spans, []), np.array(alone))


@pytest.mark.parametrize("shared", [1, 64, 99])
def test_a_prompt_that_goes_on_from_a_copy_is_computed_and_written_bit_for_bit_as_alone(
    runner: BlockRunner, shared: int
) -> None:
    prompt = text(100)
    whole = compute(runner, prompt, [100])
    runner.place(0, 100)
    written = runner.step([], [7])[0].copy()
    runner.remove(0)
    compute(runner, np.concatenate([prompt[:shared], text(140)]), [shared + 140], stage=1)
    runner.copy(1, 2, shared)
    runner.step([Span(0, 0, text(33), ends_prompt=False)], [])  # a run of others, before the copy is used
    assert np.array_equal(runner.step([Span(2, shared, prompt[shared:], ends_prompt=True)], [])[0], whole)
    runner.place(2, 100)
    assert np.array_equal(runner.step([], [7])[0], written)


def test_an_answer_is_the_same_with_and_without_neighbours_a_prefix_or_another_chunk(model: ModelFolder) -> None:
    shared = text(100, seed=1).tolist()
    prompts = [[*shared, *text(20 + 7 * n, seed=2).tolist()] for n in range(10)]
    sampling = Sampling(seed=4, temperature=0.9)

    def answers(asked: list[list[int]], chunk_tokens: int, slots: int) -> dict[tuple[int, ...], tuple[int, ...]]:
        knobs = EngineSettings(threads=2, context_tokens_max=512, slots_max=slots, chunk_tokens=chunk_tokens)
        with Engine(open_runner(model, knobs), knobs) as engine:
            futures = [engine.submit(Prompt(prompt, sampling, 30)) for prompt in asked]
            done = [future.result(PATIENCE_SECONDS)[0] for future in futures]
        if len(asked) > 1:
            assert all(one.cached_tokens >= 100 - WORTH_WAITING_TOKENS for one in done[1:])
        return {tuple(prompt): one.token_ids for prompt, one in zip(asked, done, strict=True)}

    crowded = answers(prompts, chunk_tokens=512, slots=16)
    assert answers(prompts[::-1], chunk_tokens=33, slots=3) == crowded
    for prompt in prompts[:3]:
        assert answers([prompt], chunk_tokens=77, slots=1)[tuple(prompt)] == crowded[tuple(prompt)]


def test_an_answer_that_had_to_leave_its_row_is_the_same_to_the_last_bit(model: ModelFolder) -> None:
    asked = [Prompt(text(20, seed), Sampling(seed=8), 150, top_logprobs=1) for seed in range(4)]
    short = [Prompt(text(5), Sampling(seed=1), 1)] * 80  # so that answers are expected to be short

    def answers(asked: list[Prompt], blocks: int) -> tuple[list[Completion], int]:
        with Engine(open_runner(model, holding(model, blocks)), KNOBS) as engine:
            for future in [engine.submit(one) for one in short]:
                future.result(PATIENCE_SECONDS)
            before = engine.progress.prompt_tokens
            done = [future.result(PATIENCE_SECONDS)[0] for future in [engine.submit(one) for one in asked]]
            return done, engine.progress.prompt_tokens - before

    alone = [answers([one], blocks=5)[0][0] for one in asked]
    crowded, prompt_tokens = answers(asked, blocks=8)  # an answer needs 3 at its end
    assert prompt_tokens > 4 * 20, "none had to leave its row"
    for mine, theirs in zip(crowded, alone, strict=True):
        assert (mine.token_ids, mine.logprobs) == (theirs.token_ids, theirs.logprobs)


def test_what_follows_forced_tokens_is_the_same_in_any_crowd_and_after_it_left_its_row(model: ModelFolder) -> None:
    """Those that must come first, and many at once in the middle."""

    def asked(number: int) -> Prompt:
        form = [
            *text(20 + 3 * number, 5).tolist(),
            *[None] * 30,
            *text(20, 6).tolist(),
            None,
            *text(12, 7),
            *[None] * 75,
        ]
        return Prompt(text(20, number), Sampling(seed=number), 150, watch=lambda _: Form(form, tells=True))

    prompts = [asked(number) for number in range(4)]

    def answers(asked: list[Prompt], blocks: int, short: int) -> tuple[list[tuple[int, ...]], int]:
        with Engine(open_runner(model, holding(model, blocks)), KNOBS) as engine:
            for future in [engine.submit(Prompt(text(5), Sampling(seed=1), 1)) for _ in range(short)]:
                future.result(PATIENCE_SECONDS)
            before = engine.progress.prompt_tokens
            found = [future.result(PATIENCE_SECONDS)[0].token_ids for future in [engine.submit(one) for one in asked]]
            return found, engine.progress.prompt_tokens - before

    alone = [answers([one], blocks=5, short=0)[0][0] for one in prompts]
    crowded, prompt_tokens = answers(prompts, blocks=8, short=80)  # so that answers are expected to be short
    assert prompt_tokens > sum(40 + 3 * number for number in range(4)), "none had to leave its row"
    assert crowded == alone


def holding(model: ModelFolder, blocks: int) -> EngineSettings:
    """Settings that leave so many blocks to the rows."""
    spec, context_tokens = model.spec, 192
    layout = BlockLayout(spec.layers, spec.kv_heads, spec.head_size, BLOCK)
    stage_bytes = context_tokens * spec.kv_bytes_per_token(4) + (layout.blocks_for(context_tokens) + 1) * layout.bytes
    kv_bytes_max = STAGES * stage_bytes + blocks * layout.bytes
    return EngineSettings(threads=2, context_tokens_max=context_tokens, slots_max=4, kv_bytes_max=kv_bytes_max)


@pytest.mark.parametrize("length", [1, 50, 63, 130])
@pytest.mark.parametrize("ahead", [8, 71])
def test_a_row_that_takes_many_tokens_at_once_goes_on_bit_for_bit_alike_in_any_crowd(
    runner: BlockRunner, length: int, ahead: int
) -> None:
    """Beside rows, prompts in three stages and in all four, and rows that take many tokens too."""
    prompt, tokens = text(length), text(ahead + 1, 3).tolist()

    def placed() -> int:
        compute(runner, prompt, [length])
        return runner.place(0, length)

    def clear(rows: int) -> None:
        for row in reversed(range(rows)):
            runner.remove(row)

    row = placed()
    runner.feed(row, tokens[:-1])
    alone = [runner.step([], [tokens[-1]])[0].copy(), *(runner.step([], [step])[0].copy() for step in range(10))]
    clear(1)
    crowd = [20, 64, 65, 250, 129, 7]
    for prompts in (0, 3, STAGES):
        for other in crowd:
            compute(runner, text(other), [other], stage=1)
            runner.place(1, other)
        row, others = placed(), {1, 2, 4, 5}
        for number in (row, *others):
            runner.feed(number, tokens[:-1] if number == row else text(9, number).tolist())
        spans = [Span(n, 0, text(31 + n), ends_prompt=True) for n in range(prompts)]
        logits = runner.step(spans, [tokens[-1]] * (row + 1), unread={0, 4})
        assert len(logits) == prompts + row - 1
        assert np.array_equal(logits[-1], alone[0])
        lengths = [*(size + (10 if number in others else 1) for number, size in enumerate(crowd)), length + ahead + 1]
        assert runner._cache.lengths == lengths
        for step in range(10):
            assert np.array_equal(runner.step([], [step] * (row + 1))[row], alone[1 + step]), step
        clear(row + 1)


def test_tokens_taken_at_once_are_read_as_those_taken_one_by_one(runner: BlockRunner) -> None:
    """But for what 8 bits leave out."""
    tokens, read = text(20, 3).tolist(), []
    compute(runner, text(90), [90])
    for is_fed in (False, True):
        runner.place(0, 90)
        if is_fed:
            runner.feed(0, tokens[:-1])
        else:
            for token in tokens[:-1]:
                runner.step([], [token])
        read.append([runner.step([], [token])[0].copy() for token in (tokens[-1], 7, 8)])
        runner.remove(0)
    for one, other in zip(*read, strict=True):
        assert not np.array_equal(one, other), "they were taken alike"
        assert np.corrcoef(one, other)[0, 1] > 0.999
