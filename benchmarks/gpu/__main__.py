"""What the engine does on a GPU, part by part: `make bench-gpu`. It needs no network and no weights.

Each part runs in a process of its own, within its share of the time: one that fails, hangs or finds no memory is told
in the results with what it had found until then, and the others go on. What a part found is in the JSON file as soon as
it has ended; a second run with the same file does what is missing. `--device cpu --tiny` tries the benchmark itself in
half a minute.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any, Final

from benchmarks.gpu import parts
from benchmarks.gpu.given import Given
from benchmarks.gpu.tables import tables

SHAPES: Final = ("8b", "0.5b", "1.5b")
_LOGITS_SHAPE: Final = "0.5b"
"""Small enough to be computed on a CPU too."""
_LEAST_SECONDS: Final = 20.0
_GRACE_SECONDS: Final = 60.0
"""For a part that ends by itself to come to its end: it has to open a model first."""


def main() -> None:
    given = _arguments()
    began = monotonic()
    results: dict[str, Any] = json.loads(given.out.read_text("utf-8")) if given.out.exists() else {}
    for title, part, shape in _planned(given):
        left = given.seconds - (monotonic() - began)
        before = results.get(title, {})
        if "found" in before and "failure" not in before and not given.again:
            print(f"{title}: done before", flush=True)
            continue
        if left < (1 if given.tiny else _LEAST_SECONDS):
            print(f"{title}: no time left", flush=True)
            continue
        print(f"{title}: at most {min(left, given.part_seconds):.0f} s", flush=True)
        told = Given(given.device, shape, given.tiny, min(left, given.part_seconds), results)
        results[title] = parts.in_process(part, told, max(1.0, min(left, given.part_seconds + _GRACE_SECONDS)))
        if "failure" in results[title]:
            print(f"  failed: {results[title]['failure']}", flush=True)
        given.out.write_text(json.dumps(results, indent=1), "utf-8")
    print("\n" + tables(results))
    if not any("found" in result for result in results.values()):
        sys.exit(1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", type=_listed(parts.PARTS), default=list(parts.PARTS), help=f"of {','.join(parts.PARTS)}"
    )
    parser.add_argument("--shapes", type=lambda text: text.split(","), default=[], help="of 8b,0.5b,1.5b; else all")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a trial of the benchmark itself, with a model of no size")
    parser.add_argument("--out", type=Path, default=Path("bench-gpu.json"), help="where results are kept and added to")
    parser.add_argument("--again", action="store_true", help="also what the file has already")
    parser.add_argument("--seconds", type=float, default=3600, help="of the whole run")
    parser.add_argument("--part-seconds", type=float, default=240, help="of one part, at most")
    return parser.parse_args()


def _listed(known: Mapping[str, object]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        wanted = text.split(",")
        if unknown := set(wanted) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)} is not one of {', '.join(known)}")
        return wanted

    return read


def _planned(given: argparse.Namespace) -> list[tuple[str, str, str]]:
    """Title, part and shape: what everything else needs first, then all of one shape before the next."""
    shapes = given.shapes or (["tiny"] if given.tiny else list(SHAPES))
    planned = [("device", "device", "tiny")] if "device" in given.only else []
    if "logits" in given.only:
        shape = "tiny" if given.tiny else _LOGITS_SHAPE
        planned.append((f"logits {shape}", "logits", shape))
    rest = [part for part in given.only if part not in {"device", "logits"}]
    return planned + [(f"{part} {shape}", part, shape) for shape in shapes for part in rest]


if __name__ == "__main__":
    main()
