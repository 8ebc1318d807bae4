"""How large a cache is made of the memory there is."""

import pytest

from worker.engine.errors import OutOfSlots
from worker.engine.paged.opening import STAGES, page_tokens, room_within, run_limits
from worker.engine.paged.ort_session import PageLayout
from worker.engine.paged.packing import bucket
from worker.engine.settings import EngineSettings

LLAMA_8B = PageLayout(layers=32, kv_heads=8, head_size=128, tokens=128, element_bytes=2)
GIB = 2**30


def test_pages_are_those_that_attention_reads_as_they_lie() -> None:
    assert [page_tokens(size) for size in (64, 80, 128, 256)] == [256, 128, 128, 128]
    assert LLAMA_8B.page_bytes == 128 * 131_072


def test_memory_is_taken_as_far_as_it_goes_and_no_more_than_all_can_need() -> None:
    tight = room_within(100 * GIB, LLAMA_8B, context_tokens=4096, slots_max=256)
    assert tight.pages == 100 * GIB // LLAMA_8B.page_bytes
    assert (tight.stages, tight.slots, tight.pages_each) == (STAGES, 256, 32)
    ample = room_within(100 * GIB, LLAMA_8B, context_tokens=1000, slots_max=8)
    assert ample.stages == 8
    assert ample.pages == 1 + (8 + 8) * 8


def test_little_memory_is_for_few_prompts_at_once_before_it_is_for_none() -> None:
    one_text = 32 * LLAMA_8B.page_bytes
    few = room_within(4 * one_text, LLAMA_8B, context_tokens=4096, slots_max=256)
    assert few.stages == 2
    assert few.pages >= few.pages_min
    with pytest.raises(OutOfSlots, match="grant more memory or shorten the context"):
        room_within(2 * one_text, LLAMA_8B, context_tokens=4096, slots_max=256)


def test_a_run_has_room_for_every_bucket_of_rows_and_every_piece() -> None:
    room = room_within(100 * GIB, LLAMA_8B, context_tokens=5000, slots_max=130)
    limits = run_limits(room, EngineSettings(slots_max=130, chunk_tokens=8192))
    assert (limits.tokens, limits.sequences, limits.pages_each) == (8192, bucket(130), 64)
    small = run_limits(room_within(GIB * 9, LLAMA_8B, 5000, 4), EngineSettings(slots_max=4, chunk_tokens=1))
    assert small.tokens >= small.sequences >= 4
    assert limits.input_bytes >= 8192 * 8 + bucket(130) * 64 * 4
