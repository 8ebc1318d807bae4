"""Part `engine`: whole sets of prompts through the engine, and what share of the roofline that is."""

from collections.abc import Callable
from itertools import product
from time import perf_counter
from typing import Any

from benchmarks.gpu import roofline
from benchmarks.gpu.given import Given
from benchmarks.gpu.opened import Opened, open_shape
from benchmarks.gpu.sets import SETS, TINY, PromptSet
from worker.engine import Engine, EngineSettings, Prompt, Sampling
from worker.engine.device.memory import DeviceMemory


def measure(given: Given) -> dict[str, Any]:
    """Each set greedily, then sampled, as far as the time allows."""
    chosen = TINY if given.is_tiny else SETS
    slots = 4 if given.is_tiny else 256
    settings = EngineSettings(
        context_tokens_max=max(one.context for one in chosen.values()) + 8,
        slots_max=slots,
        chunk_tokens=64 if given.is_tiny else 8192,
    )
    opened = open_shape(given.shape, given.device, settings)
    watch = Watch()
    if opened.memory is not None:
        watch.over(opened.memory)
    began, found = perf_counter(), {}
    # One engine for all: what a thread has captured is captured for this thread alone.
    with Engine(opened.runner(), settings) as engine:
        for temperature, (name, prompts) in product((0.0, 1.0), chosen.items()):
            if perf_counter() - began > given.seconds:
                print("  the time of this part is up", flush=True)
                break
            title = f"{name}, sampled" if temperature else name
            found[title] = _answered(given, opened, engine, prompts, temperature, watch)
            print(f"  {title}: {found[title]['output_tokens_a_second']:,.0f} output tokens a second", flush=True)
            given.tell(found)
    return found


class Watch:
    """Sums up how long the host waits for the card; the rest of its time is its own work."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def over(self, memory: DeviceMemory) -> None:
        """Watch all waiting for this memory from now on."""
        mark, wait = memory.mark, memory.wait
        memory.mark = lambda: self._timed(mark())  # type: ignore[method-assign]
        memory.wait = self._timed(wait)  # type: ignore[method-assign]

    def _timed(self, wait: Callable[[], None]) -> Callable[[], None]:
        def timed() -> None:
            began = perf_counter()
            wait()
            self.seconds += perf_counter() - began

        return timed


def _answered(
    given: Given, opened: Opened, engine: Engine, prompts: PromptSet, temperature: float, watch: Watch
) -> dict[str, Any]:
    """After some prompts of the same length, by which the shapes of its first steps are captured."""
    ids = prompts.prompts(opened.spec.vocabulary, seed=int(temperature))
    asked = [
        Prompt(one, Sampling(seed=number, temperature=temperature), prompts.answer) for number, one in enumerate(ids)
    ]
    others = prompts.prompts(opened.spec.vocabulary, seed=7)[: engine.slots]
    for future in [engine.submit(Prompt(one, asked[0].sampling, 2)) for one in others]:
        future.result()
    before, waited, began = engine.progress, watch.seconds, perf_counter()
    for future in [engine.submit(one) for one in asked]:
        assert len(future.result()[0].token_ids) == prompts.answer
    seconds, after = perf_counter() - began, engine.progress
    busy = after.busy_seconds - before.busy_seconds
    computed = after.prompt_tokens - before.prompt_tokens
    steps = after.steps - before.steps
    return {
        "seconds": seconds,
        "output_tokens_a_second": prompts.tokens_out / seconds,
        "tokens_a_second": (prompts.tokens_out + prompts.tokens_in) / seconds,
        "prompt_tokens": prompts.tokens_in,
        "prompt_tokens_computed": computed,
        "steps": steps,
        "host_ms_a_step": 1e3 * (busy - (watch.seconds - waited)) / steps,
        "outside_runner_ms_a_step": 1e3 * (busy - (after.runner_seconds - before.runner_seconds)) / steps,
        **_share(given, opened, prompts, engine.slots, seconds),
    }


def _share(given: Given, opened: Opened, prompts: PromptSet, slots: int, seconds: float) -> dict[str, float]:
    """Of the roofline of this set, computed in full rows: what is shared is computed once."""
    if given.rates is None:
        return {}
    sizes = {"weight_bytes": 4 if given.device == "cpu" else 2, "cache_bytes": opened.cache_element_bytes}
    rows = min(slots, prompts.requests)
    whole = roofline.prefill(rows, prompts.own)
    positions = whole.positions + rows * prompts.shared
    first = roofline.Work(whole.tokens, whole.logits, positions, whole.pairs + whole.tokens * prompts.shared)
    middle = roofline.decode(rows, prompts.shared + prompts.own + prompts.answer // 2)
    least = roofline.seconds(opened.spec, first, given.rates, **sizes)
    least += prompts.answer * roofline.seconds(opened.spec, middle, given.rates, **sizes)
    return {"roofline_share": least * prompts.requests / rows / seconds}
