"""How far the logits of each architecture are from those of transformers, for the table of `docs/models.md`.

    python -m benchmarks.differences

The prompt in one piece and in several, and 16 tokens one by one, over each of the models that
`benchmarks/reference_logits.py` recorded.
"""

import tempfile
from pathlib import Path

import numpy as np

from tests.worker.model import test_architectures as proofs
from tests.worker.model.graph_loop import GraphLoop


def difference(name: str) -> float:
    """The largest of all logits."""
    config, prompt, ids = (proofs.recorded()[name][part] for part in ("config", "prompt", "answer"))
    expected = proofs.truth(name)
    with tempfile.TemporaryDirectory() as folder:
        loop = GraphLoop(proofs.write(Path(folder), name, config), slots=2, room=48)
        found = [loop.run(0, [prompt], range(len(prompt))) - expected[: len(prompt)]]
        pieces = [
            (0, 1),
            (1, 10),
            (10, len(prompt)),
            *((place, place + 1) for place in range(len(prompt), len(expected))),
        ]
        for first, end in pieces:
            tokens = (prompt + ids)[first:end]
            found.append(loop.run(1, [tokens], range(end - first)) - expected[first:end])
    return float(np.abs(np.concatenate(found)).max())


def main() -> None:
    largest: dict[str, float] = {}
    for name, model in proofs.recorded().items():
        kind = model["config"]["model_type"]
        largest[kind] = max(largest.get(kind, 0.0), difference(name))
    for kind, value in largest.items():
        print(f"{kind:<12} {value:.0e}")


if __name__ == "__main__":
    main()
