"""How much memory another process has had."""

from pathlib import Path

import pytest

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


def peak_kb(pid: int) -> int:
    """The most memory that a process ever had."""
    status = Path(f"/proc/{pid}/status").read_text("ascii", "replace")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1])
