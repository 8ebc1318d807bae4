"""2,000 strings on which tokenizers tend to differ: many scripts, emoji, code, control characters, look-alikes."""

import random
from collections.abc import Callable, Sequence

SCRIPTS = {
    "Latin": (0x41, 0x5A, 0x61, 0x7A, 0xC0, 0x17F),
    "Greek": (0x391, 0x3A1, 0x3B1, 0x3C9),
    "Cyrillic": (0x410, 0x44F),
    "Armenian": (0x531, 0x556, 0x561, 0x586),
    "Hebrew": (0x5D0, 0x5EA, 0x5B0, 0x5BC),
    "Arabic": (0x621, 0x64A, 0x64B, 0x652),
    "Devanagari": (0x905, 0x939, 0x93E, 0x94D),
    "Bengali": (0x985, 0x98C, 0x9BE, 0x9C4),
    "Tamil": (0xB85, 0xB8A, 0xBBE, 0xBC2),
    "Thai": (0xE01, 0xE30, 0xE31, 0xE4E),
    "Tibetan": (0xF40, 0xF47, 0xF71, 0xF7E),
    "Myanmar": (0x1000, 0x1021),
    "Georgian": (0x10D0, 0x10F0),
    "Hangul parts": (0x1100, 0x1112, 0x1161, 0x1175, 0x11A8, 0x11C2),
    "Hangul": (0xAC00, 0xD7A3),
    "Ethiopic": (0x1200, 0x1248),
    "Cherokee": (0x13A0, 0x13F5),
    "Khmer": (0x1780, 0x17B3),
    "Mongolian": (0x1820, 0x1842),
    "Kana": (0x3041, 0x3096, 0x30A1, 0x30FA),
    "Han": (0x4E00, 0x9FFF),
    "Han beyond": (0x20000, 0x2A6DF),
    "Gothic": (0x10330, 0x1034A),
    "letters of mathematics": (0x1D400, 0x1D454),
    "titles and modifiers": (0x1C5, 0x1C5, 0x1C8, 0x1C8, 0x2B0, 0x2B8, 0xAA, 0xAA, 0x2160, 0x216F),
    "marks": (0x300, 0x36F),
}
DIGITS = "0123456789٠١٢٣४५६൧൨²³½¾Ⅷ①〇九𝟘𝟙"
BLANKS = [
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\n\n",
    "\r\n",
    "\r",
    " \n",
    "\n ",
    "\u00a0",
    "\u2003",
    "\u3000",
    "\u200b",
    "\u2028",
]
EMOJI = ["😀", "👩‍👩‍👧", "🏳️‍🌈", "👍🏽", "🇩🇪", "1️⃣", "❤️", "☃", "🫠", "🧑🏿‍🚀", "\ufe0f", "🏴󠁧󠁢󠁥󠁮󠁧󠁿"]
SIGNS = list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~¡«»¿–—‘’“”…€™→≠∑▁Ġ")
CONTRACTIONS = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'LL", "'Re", "’s", "'ſ", "''s", "'x"]
CODE = [
    "def f(x):\n    return x**2 if x else None\n",
    "for (int i=0;i<n;++i) {\n\t\ta[i] += b[i]>>1;\r\n\t}",
    '<div class="a b">&nbsp;</div>\n<!-- x -->',
    "SELECT * FROM t WHERE a='it''s' AND b>=1e-5;",
    'x = {"k": [1, 2.5, null], "é": "\\u00e9\\n"}',
    "https://example.org/a%20b?q=1&r=ü#top /usr/bin/env",
    "0xDEADBEEF 1_000_000 3.14159 1,234.56 -17 1e10 v1.2.3-rc4",
]  # fmt: skip
PROSE = [
    *("It", "is", "a", "truth", "universally", "acknowledged,", "that", "single", "man", "possession", "fortune,"),
    *("I'd", "said", "they'll", "come;", "we've", "3", "of", "12", "don't", "you?", "NASA's", "HTTPServer"),
    *("camelCase", "snake_case", "E-Mail", "naïve", "Straße", "中文", "Ελλάδα", "Привет", "1st", "x86"),
]
CONTROL = [
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>", "<|end|>"),
    *("<|start_header_id|>", "<|fim_prefix|>", "<|endofprompt|>", "<|reserved_special_token_0|>", "<think>"),
    *("<s>", "</s>", "<unk>", "<pad>", "<bos>", "<eos>", "<mask>", "<start_of_turn>", "<end_of_turn>", "<unused0>"),
    *("[INST]", "<0x41>", "<0x0A>", "<tool_call>", "</tool_call>", "[multimodal]", "<|user|>", "<|assistant|>"),
]
ODD = [
    *map(chr, range(0x20)),
    "\x7f",
    "\x85",
    "\xad",
    "\ufeff",
    "\ufffd",
    "\ufffe",
    "\ufdd0",
    "\ue000",
    "\u202e",
    "\u200d",
]

Draw = Callable[[random.Random], str]


def strings() -> list[str]:
    """The same strings at every call, those of each kind about as many."""
    dice = random.Random(20_25)
    kinds: Sequence[Draw] = (_words, _words, _mixed, _numbers, _emoji, _code, _odd, _look_alike, _look_alike, _blanks)
    found = ["", " ", "\n", *CONTROL, *CONTRACTIONS, *EMOJI, *CODE, " ".join(PROSE)]
    while len(found) < 2000:
        found.append(kinds[len(found) % len(kinds)](dice))
    return found


def _letters(dice: random.Random, script: str, most: int = 9) -> str:
    ends = SCRIPTS[script]
    ranges = list(zip(ends[::2], ends[1::2], strict=True))
    return "".join(chr(dice.randint(*dice.choice(ranges))) for _ in range(dice.randint(1, most)))


def _words(dice: random.Random) -> str:
    script = dice.choice([*SCRIPTS])
    words = [_letters(dice, script) + dice.choice(["", "", "", ",", ".", "!"]) for _ in range(dice.randint(1, 8))]
    return dice.choice(["", " "]) + " ".join(words)


def _mixed(dice: random.Random) -> str:
    pieces: list[Draw] = [
        lambda d: _letters(d, d.choice([*SCRIPTS]), 4),
        lambda d: d.choice(PROSE),
        lambda d: d.choice(SIGNS),
        lambda d: d.choice(BLANKS),
        lambda d: d.choice(CONTRACTIONS),
        lambda d: d.choice(DIGITS),
        lambda d: d.choice(EMOJI),
    ]
    return "".join(dice.choice(pieces)(dice) for _ in range(dice.randint(2, 25)))


def _numbers(dice: random.Random) -> str:
    return "".join(dice.choice(dice.choice([DIGITS, DIGITS[:10], ",.- e"])) for _ in range(12))


def _emoji(dice: random.Random) -> str:
    return "".join(dice.choice([*EMOJI, *EMOJI, " ", "a"]) for _ in range(dice.randint(1, 8)))


def _code(dice: random.Random) -> str:
    text = dice.choice(CODE)
    start = dice.randint(0, len(text) - 2)
    return " " * dice.randint(0, 9) + text[start : start + dice.randint(2, 40)]


def _odd(dice: random.Random) -> str:
    return "".join(dice.choice([dice.choice(ODD), dice.choice(PROSE), dice.choice(SIGNS)]) for _ in range(6))


def _look_alike(dice: random.Random) -> str:
    """A control token, whole or nearly, among words."""
    token = dice.choice(CONTROL)
    place = dice.randint(0, len(token) - 1)
    near = [token, token * 2, token.upper(), token[:place], token[place:], f"{token[:place]} {token[place:]}"]
    near += [token[:place] + dice.choice(ODD) + token[place:], "<" + token + ">", token.replace("|", "｜")]
    return (
        dice.choice(["", "a", " ", "\n"]) + dice.choice(near) + dice.choice(["", "b", " ", "\n", dice.choice(CONTROL)])
    )


def _blanks(dice: random.Random) -> str:
    return "".join(dice.choice([dice.choice(BLANKS), dice.choice(BLANKS), dice.choice(PROSE)]) for _ in range(9))
