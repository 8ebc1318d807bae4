"""The official `openai` package against `gristmill up`: a batch from upload to answers.

    python examples/openai_client.py API_KEY [URL]

`gristmill up` prints the URL, which ends in /v1, and the key or the file that keeps it.
"""

import json
import sys
import time
from pathlib import Path

from openai import OpenAI

QUESTIONS = Path(__file__).parent / "demo.jsonl"
ENDED = {"completed", "failed", "expired", "cancelled"}


def main(key: str, url: str) -> None:
    """Send demo.jsonl, wait, and print each answer."""
    client = OpenAI(api_key=key, base_url=url)
    file = client.files.create(file=QUESTIONS, purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    while batch.status not in ENDED:
        time.sleep(1)
        batch = client.batches.retrieve(batch.id)
        counts = batch.request_counts
        print(batch.status, f"{counts.completed}/{counts.total}" if counts else "", file=sys.stderr)
    if batch.output_file_id is None:
        sys.exit(f"The batch is {batch.status} and has no answers.")
    for line in client.files.content(batch.output_file_id).text.splitlines():
        answer = json.loads(line)
        print(f"{answer['custom_id']}: {answer['response']['body']['choices'][0]['message']['content']!r}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else "http://127.0.0.1:8000/v1")
