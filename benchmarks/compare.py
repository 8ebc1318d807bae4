"""Our engine against others on the same tokens, the same weights and the same cores: `make bench`.

Each engine has an environment of its own under `.venv/peers`, made once. Workload by workload they run one after
the other, each in a fresh process, as often as asked; a figure is the median. One that cannot be installed or
fails is told in the table, with the reason, and the others go on. Nothing else should run on the machine.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import onnxruntime

from benchmarks import engines, roofline, workloads
from benchmarks.engines import NotAvailable, Outcome, Ready
from benchmarks.roofline import Peaks
from benchmarks.workloads import Workload
from worker import model

OURS = "ours"


@dataclass(slots=True)
class Runs:
    """What one engine did with one workload; `failure` says why it did not."""

    title: str
    outcomes: list[Outcome] = field(default_factory=list)
    failure: str = ""

    def median(self, figure: str) -> float:
        return float(statistics.median(getattr(outcome, figure) for outcome in self.outcomes))


def main() -> None:
    given = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        ready, failures = _prepare(given.only, given.precision, Path(scratch))
        if OURS not in ready:
            raise SystemExit(f"our own engine cannot run: {failures[OURS]}")
        folder = model.open_model(ready[OURS].model)
        peaks = roofline.measure(given.threads)
        _say(f"{given.threads} threads, ONNX Runtime {onnxruntime.__version__}; measured peaks: {peaks}")
        for name in given.workloads:
            workload = workloads.make(name, folder.tokenizer().encode_template)
            runs = _run(ready, workload, given.threads, 1 if given.quick else 3)
            print("\n" + "\n".join(_table(workload, runs, failures)), flush=True)
            print("\n" + _about_ours(workload, runs[OURS], folder.spec, peaks), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [OURS, *(peer.name for peer in engines.PEER_LIST)]
    parser.add_argument("--only", type=_listed(known), default=known, help=f"of {','.join(known)}; ours always runs")
    parser.add_argument("--workloads", type=_listed(workloads.NAMES), default=workloads.NAMES)
    parser.add_argument("--quick", action="store_true", help="once, not the median of three")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default=model.Precision.preferred(), help="of our own model")
    return parser.parse_args()


def _listed(known: Sequence[str]) -> Callable[[str], list[str]]:
    """A reader of names with commas between them."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"there is no {', '.join(unknown)}; there are {', '.join(known)}")
        return names

    return parse


def _prepare(names: Sequence[str], precision: str, scratch: Path) -> tuple[dict[str, Ready], dict[str, str]]:
    """The engines that can run, ours first, and why the others cannot."""
    ready: dict[str, Ready] = {}
    failures: dict[str, str] = {}
    makers = {OURS: partial(engines.ours, precision, scratch, _say)}
    makers |= {peer.name: partial(engines.prepare, peer, _say) for peer in engines.PEER_LIST if peer.name in names}
    for name, make in makers.items():
        try:
            ready[name] = make()
        except NotAvailable as error:
            failures[name] = str(error)
    return ready, failures


def _run(ready: dict[str, Ready], workload: Workload, threads: int, repeats: int) -> dict[str, Runs]:
    """Each engine in turn, `repeats` times; one that failed is not tried again."""
    runs = {name: Runs(engine.title) for name, engine in ready.items()}
    for repeat in range(repeats):
        for name, engine in ready.items():
            if not runs[name].failure:
                _run_once(engine, workload, threads, runs[name], f"{repeat + 1} of {repeats}")
    return runs


def _run_once(engine: Ready, workload: Workload, threads: int, runs: Runs, turn: str) -> None:
    try:
        outcome = engines.run(engine, workload, threads)
    except NotAvailable as error:
        runs.failure = str(error)
        _say(f"{workload.name}, {turn}: {engine.title}: {error}")
        return
    runs.outcomes.append(outcome)
    rate = workload.rate(outcome.run_seconds)
    _say(f"{workload.name}, {turn}: {engine.title}: {outcome.run_seconds:.1f} s, {rate:,.0f} tok/s")


def _table(workload: Workload, runs: dict[str, Runs], failures: dict[str, str]) -> Iterator[str]:
    kind = "in + out" if workload.counts_input else "out"
    yield (
        f"**{workload.name}**: {len(workload.prompts)} requests, {workload.tokens_in:,} tokens in, "
        f"{workload.tokens_out:,} out ({workload.digest})\n"
    )
    yield f"| engine | seconds | {kind} tok/s | ours / it | start to first token | peak memory | first token as ours |"
    yield "|---|---|---|---|---|---|---|"
    own = runs[OURS]
    for engine in runs.values():
        yield _row(workload, engine, own)
    for name, reason in failures.items():
        yield f"| {name} | not run: {reason} | | | | | |"


def _row(workload: Workload, runs: Runs, own: Runs) -> str:
    if runs.failure:
        return f"| {runs.title} | failed: {runs.failure} | | | | | |"
    seconds = runs.median("run_seconds")
    cells = [runs.title, f"{seconds:.1f}", f"{workload.rate(seconds):,.0f}"]
    cells.append("" if own.failure else f"{seconds / own.median('run_seconds'):.2f}")
    cells.append(f"{runs.median('first_token_seconds'):.1f} s")
    cells.append(f"{runs.median('peak_rss_bytes') / 1e6:,.0f} MB")
    cells.append("" if own.failure else f"{_agreement(runs.outcomes[0], own.outcomes[0]):.0%}")
    return f"| {' | '.join(cells)} |"


def _agreement(one: Outcome, other: Outcome) -> float:
    """The share of requests whose answers begin with the same token: low if an engine answers something else."""
    same = [a[0] == b[0] for a, b in zip(one.outputs, other.outputs, strict=True)]
    return sum(same) / len(same)


def _about_ours(workload: Workload, runs: Runs, spec: model.ModelSpec, peaks: Peaks) -> str:
    """Where our own time went, in the last run."""
    if runs.failure:
        return f"{runs.title} failed: {runs.failure}"
    outcome, notes = runs.outcomes[-1], runs.outcomes[-1].notes
    computed = notes["prompt_tokens_computed"]
    operations = roofline.linear_operations(spec, computed + workload.tokens_out, workload.tokens_out)
    rate = operations / outcome.run_seconds
    return (
        f"{runs.title}: busy {notes['busy_share']:.1%} of the time, of which {notes['outside_share']:.1%} outside "
        f"ONNX Runtime; {notes['steps']:.0f} steps of {notes['tokens_a_step']:.1f} answered tokens; computed "
        f"{computed:,.0f} of {workload.tokens_in:,} prompt tokens ({workload.tokens_in_least:,} at least); "
        f"its linear layers alone are {rate / 1e9:.0f} Gop/s, {rate / peaks.int8:.0%} of the int8 peak and "
        f"{rate / peaks.fp32:.0%} of the fp32 peak"
    )


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
