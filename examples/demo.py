"""`make demo`: answers the 24 requests of demo.jsonl on this machine and shows them beside their answers."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
MODEL = "smollm2-135m"
QUESTIONS = HERE / "demo.jsonl"
OUTPUT = Path("demo-output") / "output.jsonl"
DATA_DIR = ".gristmill"
ASKED_CHARACTERS, ANSWER_CHARACTERS = 60, 150


def main() -> int:
    """Add the model, run the file, show the answers; the exit status of the run."""
    os.environ.setdefault("GRISTMILL_DATA_DIR", DATA_DIR)
    console = Console()
    if gristmill("models", "show", MODEL, quiet=True):
        console.print(f"Adding the model {MODEL}, once.")
        if status := gristmill("models", "add", MODEL):
            return status
    console.print(f"[bold]gristmill run {shown(QUESTIONS)} -o {OUTPUT}[/bold]")
    status = gristmill("run", str(QUESTIONS), "-o", str(OUTPUT))
    if status not in (0, 1):
        return status
    console.print(table())
    console.print(
        f"\nThe requests are in {shown(QUESTIONS)}, the answers in {OUTPUT}.\n"
        "The model is the smallest that chats: quick to fetch, and often wrong.\n"
        "Run it again and it fetches the same answers at once; to answer anew, or to start a server:\n\n"
        "  . .venv/bin/activate\n"
        f"  export GRISTMILL_DATA_DIR={shlex.quote(str(Path(os.environ['GRISTMILL_DATA_DIR']).absolute()))}\n"
        f"  gristmill run {shown(QUESTIONS)} -o {OUTPUT} --fresh\n"
        "  gristmill up",
        markup=False,
        highlight=False,
    )
    return status


def gristmill(*arguments: str, quiet: bool = False) -> int:
    """Run the command as a person would; its exit status."""
    silence = subprocess.DEVNULL if quiet else None
    command = [sys.executable, "-m", "gristmill.cli", *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=silence) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:  # it got the same signal and says so
            return process.wait()


def table() -> Table:
    """Each request beside its first answer."""
    answers = {line["custom_id"]: line["response"]["body"] for line in read(OUTPUT)}
    shown_table = Table(show_lines=True)
    for name in ("custom_id", "asked", "answered", "finish", "tokens"):
        shown_table.add_column(name, justify="right" if name == "tokens" else "left")
    for request in read(QUESTIONS):
        body = answers.get(request["custom_id"])
        shown_table.add_row(request["custom_id"], asked(request), *(answered(body) if body else ("(failed)", "", "")))
    return shown_table


def asked(request: dict[str, Any]) -> str:
    """The last message of a request, and what is special about it."""
    body = request["body"]
    special = [f"{name}={body[name]}" for name in ("n", "temperature", "stop") if body.get(name)]
    if "response_format" in body:
        special.append("JSON")
    note = f" ({', '.join(special)})" if special else ""
    return plain(short(body["messages"][-1]["content"], ASKED_CHARACTERS) + note)


def answered(body: dict[str, Any]) -> tuple[str, str, str]:
    """The answers, why they ended, and how many tokens they took."""
    choices = body["choices"]
    texts = [short(choice["message"]["content"] or "", ANSWER_CHARACTERS // len(choices)) for choice in choices]
    if len(texts) > 1:
        texts = [f"{number}. {text}" for number, text in enumerate(texts, start=1)]
    reasons = ", ".join(choice["finish_reason"] for choice in choices)
    return plain("\n".join(texts)), reasons, str(body["usage"]["completion_tokens"])


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON objects."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]


def short(text: str, characters: int) -> str:
    """Text on one line, cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= characters else f"{line[: characters - 1]}…"


def plain(text: str) -> str:
    """Text that rich shows as it is, brackets too."""
    return text.replace("[", r"\[")


def shown(path: Path) -> Path:
    """A path as short as the current folder allows."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    sys.exit(main())
