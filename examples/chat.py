"""One chat completion with the official `openai` package, against `gristmill up`.

    python examples/chat.py API_KEY [URL [MODEL]]

`gristmill up` prints the URL, which ends in /v1, and the key or the file that keeps it.
"""

import sys

from openai import OpenAI


def main(key: str, url: str = "http://127.0.0.1:8000/v1", model: str = "smollm2-135m") -> None:
    """Ask, and print what is answered."""
    client = OpenAI(api_key=key, base_url=url)
    response = client.chat.completions.create(
        model=model,
        messages=[
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "What is a grist mill?"},
        ],
        temperature=0.8,
    )
    print(response.choices[0].message.content)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])
