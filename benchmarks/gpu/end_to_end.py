"""Part `engine`: whole sets of prompts through the engine, and what share of the roofline that is."""

from time import perf_counter
from typing import Any

from benchmarks.gpu import roofline
from benchmarks.gpu.given import Given
from benchmarks.gpu.opened import Opened, open_shape
from benchmarks.gpu.sets import SETS, TINY, PromptSet
from worker.engine import Engine, EngineSettings, Prompt, Sampling


def measure(given: Given) -> dict[str, Any]:
    """Each set once, after a few prompts that do not count; greedy, and sampled where there is time."""
    chosen = TINY if given.is_tiny else SETS
    slots = 4 if given.is_tiny else 256
    settings = EngineSettings(
        context_tokens_max=max(one.context for one in chosen.values()) + 8,
        slots_max=slots,
        chunk_tokens=64 if given.is_tiny else 8192,
    )
    opened = open_shape(given.shape, given.device, settings)
    began, found = perf_counter(), {}
    for temperature in (0.0, 1.0):
        for name, prompts in chosen.items():
            if perf_counter() - began > given.seconds:
                print("  the time of this part is up", flush=True)
                return found
            title = name if temperature == 0 else f"{name}, sampled"
            found[title] = _answered(given, opened, settings, prompts, temperature)
            print(f"  {title}: {found[title]['output_tokens_a_second']:,.0f} output tokens a second", flush=True)
    return found


def _answered(
    given: Given, opened: Opened, settings: EngineSettings, prompts: PromptSet, temperature: float
) -> dict[str, Any]:
    """One engine for each set; the session stays, and with it what has been captured."""
    ids = prompts.prompts(opened.spec.vocabulary)
    asked = [
        Prompt(one, Sampling(seed=number, temperature=temperature), prompts.answer) for number, one in enumerate(ids)
    ]
    runner = opened.runner()
    runner.close = lambda: None  # type: ignore[method-assign]
    with Engine(runner, settings) as engine:
        warm = [engine.submit(Prompt(one[::-1][:50], asked[0].sampling, 8)) for one in ids[:4]]
        for future in warm:
            future.result()
        before, began = engine.progress, perf_counter()
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
        "outside_runner_ms_a_step": 1e3 * (busy - (after.runner_seconds - before.runner_seconds)) / steps,
        **_share(given, opened, prompts, settings.slots_max, seconds),
    }


def _share(given: Given, opened: Opened, prompts: PromptSet, slots: int, seconds: float) -> dict[str, float]:
    """Of the roofline of this set, computed in full rows: what is shared is computed once."""
    if given.rates is None:
        return {}
    sizes = {"weight_bytes": 4 if given.device == "cpu" else 2, "cache_bytes": opened.cache_element_bytes}
    rows = min(slots, prompts.requests)
    whole = roofline.prefill(rows, prompts.own)
    reading = rows * prompts.own * prompts.shared
    first = roofline.Work(whole.tokens, whole.logits, whole.positions + reading, whole.pairs + reading)
    middle = roofline.decode(rows, prompts.shared + prompts.own + prompts.answer // 2)
    least = roofline.seconds(opened.spec, first, given.rates, **sizes)
    least += prompts.answer * roofline.seconds(opened.spec, middle, given.rates, **sizes)
    return {"roofline_share": least * prompts.requests / rows / seconds}
