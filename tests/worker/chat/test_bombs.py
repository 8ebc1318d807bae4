"""What looks harmless and is endless costs its own line an error, a while and some memory, and nothing else."""

import json
import subprocess
import sys
from pathlib import Path

from worker.model import ModelFolder

ROOT = Path(__file__).parents[3]
SECONDS_MAX = 60
"""A bomb that goes off takes minutes at least. Each of these takes less than a second on an idle machine."""
GROWN_MIB_MAX = 1024


def test_every_bomb_is_refused_or_served_within_bounds_of_time_and_memory(smollm2: ModelFolder) -> None:
    command = [sys.executable, "-m", "tests.worker.chat.bombs", str(smollm2.path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=900)
    told = json.loads(done.stdout)
    assert len(told["tried"]) > 50
    assert max(seconds for _, seconds in told["tried"].values()) < SECONDS_MAX
    assert told["grown_mib"] < GROWN_MIB_MAX
