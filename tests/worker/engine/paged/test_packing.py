"""The inputs of a run: rows in buckets, bounds that hold, and nothing that a captured run would not read again."""

import numpy as np
import pytest

from worker.engine.paged import packing
from worker.engine.paged.pages import NOBODYS

PAGE = 16


@pytest.mark.parametrize("rows", [1, 2, 3, 9, 33, 64, 65, 200, 256, 257, 512])
def test_rows_of_nobodys_fill_a_bucket_and_write_to_nobodys_page(rows: int) -> None:
    past = np.arange(rows, dtype=np.int32) + PAGE
    table = np.full((rows, 64), 7, np.int32)
    run = packing.of_rows(range(rows), past, table, PAGE)
    sequences, pages = run.shape
    assert sequences == packing.bucket(rows) >= rows
    assert run.block_table[:rows].tolist() == table.tolist()
    assert (run.block_table[rows:] == NOBODYS).all()
    assert run.past_sequence_lengths.tolist() == [*past.tolist(), *[0] * (sequences - rows)]
    assert run.input_ids.tolist() == [*range(rows), *[0] * (sequences - rows)]
    assert run.cumulative_sequence_lengths.tolist() == [*range(sequences + 1)]
    assert run.rows == sequences
    assert pages == 64


def test_runs_of_one_shape_differ_in_numbers_alone() -> None:
    """What a captured run has read once is the same for all others of its shape: the bounds, which are host memory."""
    shapes: dict[tuple[int, int], list[int]] = {}
    for rows in range(1, 40):
        for longest in range(0, 8 * PAGE, 5):
            pages = packing.width(longest // PAGE + 1)
            past = np.linspace(0, longest, rows).astype(np.int32)
            past[-1] = longest
            run = packing.of_rows([1] * rows, past, np.ones((rows, pages), np.int32), PAGE)
            most_new, most, least = run.attention_metadata.tolist()
            assert least <= longest + 1 <= most
            assert most_new == 1
            assert shapes.setdefault(run.shape, run.attention_metadata.tolist()) == run.attention_metadata.tolist()
    assert len(shapes) == len({packing.bucket(rows) for rows in range(1, 40)}) * 4


def test_pieces_lie_one_after_the_other_and_only_the_ends_of_prompts_give_logits() -> None:
    pieces = [np.array([1, 2, 3]), np.array([4]), np.array([5, 6])]
    table = np.array([[1, 2], [3, 0], [4, 5]], np.int32)
    run = packing.of_pieces(pieces, [14, 0, 3], [True, False, True], table)
    assert run.input_ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert run.cumulative_sequence_lengths.tolist() == [0, 3, 4, 6]
    assert run.past_sequence_lengths.tolist() == [14, 0, 3]
    assert run.attention_metadata.tolist() == [3, 17, 0]
    assert run.logits_indices.tolist() == [2, 5]
    assert not run.is_captured
    for name, array in run.inputs().items():
        assert array.dtype == (np.int64 if name == "input_ids" else np.int32), name


def test_a_run_without_logits_to_give_gives_one_row_all_the_same() -> None:
    run = packing.of_pieces([np.array([1, 2]), np.array([3])], [0, 5], [False, False], np.ones((2, 3), np.int32))
    assert run.logits_indices.tolist() == [2]


def test_pieces_of_one_token_are_not_told_to_be_rows_and_tables_have_few_widths() -> None:
    """Or attention would make a plan for each number and each width, of which there are few for rows."""
    for pages in range(1, 10):
        table = np.arange(1, 2 * pages + 1, dtype=np.int32).reshape(2, pages)
        run = packing.of_pieces([np.array([1]), np.array([2])], [5, 6], [True, True], table)
        assert run.attention_metadata.tolist() == [2, 7, 0]
        assert run.shape == (2, packing.width(pages))
        assert run.block_table[:, :pages].tolist() == table.tolist()
        assert (run.block_table[:, pages:] == NOBODYS).all()
