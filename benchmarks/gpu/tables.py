"""Tables for docs/performance.md from what the parts have found."""

from collections.abc import Iterator, Mapping
from typing import Any

Results = Mapping[str, Mapping[str, Any]]


def tables(results: Results) -> str:
    """Markdown; of a part that failed, a line with its reason comes before what it had found."""
    lines: list[str] = []
    for part, result in results.items():
        lines += [f"### {part}", ""]
        if "failure" in result:
            lines += [f"failed: {result['failure']}", ""]
        if "found" in result:
            lines += [*_of_part(part, result["found"], results), ""]
    return "\n".join(lines)


def _of_part(part: str, found: Mapping[str, Any], results: Results) -> Iterator[str]:
    kind, _, shape = part.partition(" ")
    match kind:
        case "decode" | "decode-int8" | "decode-fp8" | "prefill":
            yield from _steps(found)
        case "engine":
            yield from _engine(found)
        case "transformers" | "vllm" | "genai":
            yield from _peer(found, results.get(f"engine {shape}", {}).get("found", {}))
        case _:
            for name, value in found.items():
                yield f"- {name}: {value}"


def _steps(found: Mapping[str, Any]) -> Iterator[str]:
    yield "| rows of logits | tokens | positions | ms | first run, ms | tokens a second | roofline |"
    yield "|---|---|---|---|---|---|---|"
    for step in found["steps"]:
        seconds = step["seconds"]
        share = f"{step['roofline_share']:.0%}" if "roofline_share" in step else ""
        yield (
            f"| {step['rows']} | {step['tokens']} | {step['positions']} | {seconds * 1e3:.2f} "
            f"| {step['first_seconds'] * 1e3:.0f} | {step['tokens'] / seconds:,.0f} | {share} |"
        )
    if fit := found.get("fit"):
        yield ""
        yield (
            f"step = {fit['fixed'] * 1e3:.3f} ms + {fit['row'] * 1e6:.2f} us a row + {fit['position'] * 1e9:.3f} ns a "
            f"position; off by {fit['error_max']:.0%} at most"
        )


def _engine(found: Mapping[str, Any]) -> Iterator[str]:
    yield "| set | output tokens a second | all | prompts computed | host, a step | of it scheduling | roofline |"
    yield "|---|---|---|---|---|---|---|"
    for name, one in found.items():
        computed = one["prompt_tokens_computed"] / one["prompt_tokens"]
        share = f"{one['roofline_share']:.0%}" if "roofline_share" in one else ""
        yield (
            f"| {name} | {one['output_tokens_a_second']:,.0f} | {one['tokens_a_second']:,.0f} | {computed:.0%} "
            f"| {one['host_ms_a_step']:.2f} ms | {one['outside_runner_ms_a_step']:.2f} ms | {share} |"
        )


def _peer(found: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[str]:
    """Output tokens a second, and how many times as many ours are."""
    yield "| set | requests | output tokens a second | Gristmill to it |"
    yield "|---|---|---|---|"
    for prompts, one in found.items():
        rate = one["output_tokens_a_second"]
        ratio = f"{ours[prompts]['output_tokens_a_second'] / rate:.1f}x" if prompts in ours else ""
        yield f"| {prompts} | {one['requests']} | {rate:,.0f} | {ratio} |"
