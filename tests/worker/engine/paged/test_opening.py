"""How large a cache is made of the memory there is."""

from dataclasses import replace

import pytest

from benchmarks.gpu.shapes import SHAPES
from tests.worker.engine.device.fake_cuda import FakeCuda
from worker.engine.device.cuda_memory import CudaMemory
from worker.engine.device.gpu import GpuUnusable
from worker.engine.errors import OutOfSlots
from worker.engine.paged.opening import STAGES, page_tokens, room_on, room_within, run_bytes, run_limits
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


@pytest.mark.parametrize(("element_bytes", "gathered"), [(2, 0), (1, 2 * 2 * STAGES * 30_000 * 8 * 128)])
def test_room_is_left_for_what_prompts_take_where_the_cache_is_in_8_bits(element_bytes: int, gathered: int) -> None:
    """In which its keys and values are read in 16 bits: 2 GB of them, of 16 prompts of 30,000 tokens."""
    layout = replace(LLAMA_8B, element_bytes=element_bytes)
    settings = EngineSettings(slots_max=256, context_tokens_max=30_000)
    spec = SHAPES["8b"]
    card = CudaMemory(0, FakeCuda(free_bytes=100 * GIB))
    room = room_on(card, layout, replace(spec, context_length=32_768), settings)
    kept = int(card.facts.total_bytes * 0.06)
    expected = (100 * GIB - kept - run_bytes(spec, settings) - gathered) // layout.page_bytes
    assert room.pages == expected


def test_a_card_that_is_full_beside_the_model_is_told_with_what_to_do() -> None:
    card = CudaMemory(0, FakeCuda(free_bytes=GIB))
    settings = EngineSettings(slots_max=256, context_tokens_max=4096)
    with pytest.raises(GpuUnusable, match=r"it has 0 bytes left.* of 4,096 tokens.*nvidia-smi.* shorten the context"):
        room_on(card, LLAMA_8B, SHAPES["8b"], settings)
    with pytest.raises(OutOfSlots, match="grant more memory"):
        room_on(card, LLAMA_8B, SHAPES["8b"], replace(settings, kv_bytes_max=1))


def test_a_run_has_room_for_every_bucket_of_rows_and_every_piece() -> None:
    room = room_within(100 * GIB, LLAMA_8B, context_tokens=5000, slots_max=130)
    limits = run_limits(room, EngineSettings(slots_max=130, chunk_tokens=8192))
    assert (limits.tokens, limits.sequences, limits.pages_each) == (8192, bucket(130), 64)
    small = run_limits(room_within(GIB * 9, LLAMA_8B, 5000, 4), EngineSettings(slots_max=4, chunk_tokens=1))
    assert small.tokens >= small.sequences >= 4
    assert limits.input_bytes >= 8192 * 8 + bucket(130) * 64 * 4
