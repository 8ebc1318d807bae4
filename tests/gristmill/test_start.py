"""The first moments of the command, while it is loaded."""

import subprocess
import sys

from gristmill.faults import EXIT_INTERRUPTED

CTRL_C_WHILE_LOADING = """
import sys

class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == "gristmill.cli":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupted())
from gristmill.__main__ import main
main()
"""


def test_ctrl_c_while_the_command_is_loaded_ends_it_with_one_word() -> None:
    command = [sys.executable, "-c", CTRL_C_WHILE_LOADING]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (EXIT_INTERRUPTED, "", "Stopped.\n")


def test_the_package_can_be_run_by_its_name() -> None:
    command = [sys.executable, "-m", "gristmill", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert "Batch inference" in done.stdout
