"""Byte-level BPE, the tokenizer of the GPT-2 family: its vocabulary spells each byte as a printable sign."""

from collections.abc import Mapping, Sequence
from typing import Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from worker.model.errors import UnreadableWeights, UnsupportedModel

# What OpenAI's tiktoken calls cl100k, as Llama 3 took it over, and with every digit alone, as Qwen did; then o200k.
_CONTRACTIONS: Final = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BLANKS: Final = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_CL100K: Final = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,DIGITS}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _BLANKS
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_O200K: Final = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _BLANKS
)
_WORDS: Final = {
    "llama-bpe": _CL100K.replace("DIGITS", "3"),
    "smaug-bpe": _CL100K.replace("DIGITS", "3"),
    "dbrx": _CL100K.replace("DIGITS", "3"),
    "qwen2": _CL100K.replace("DIGITS", "1"),
    "deepseek-r1-qwen": _CL100K.replace("DIGITS", "1"),
    "gpt-4o": _O200K,
}
_COMPOSING: Final = ("qwen2", "deepseek-r1-qwen")
"""Text is brought to the form NFC first."""
_WHOLE_WORDS: Final = ("llama-bpe", "smaug-bpe")
"""A word that is a token is taken as it is, whether merges lead to it or not."""


def build(
    vocabulary: Sequence[str],
    merges: Sequence[str],
    pre: str,
    *,
    control: Sequence[int],
    whole: Sequence[int],
) -> Tokenizer:
    """A tokenizer as Hugging Face's file of the same model describes it.

    `merges` holds pairs joined by a space, best first; `pre` names how text is cut into words before merging,
    as GGUF files do; `control` holds the ids of tokens that steer the model; `whole` those of text that is
    never split. Raises UnsupportedModel for an unknown `pre`, UnreadableWeights for merges that do not fit
    the vocabulary.
    """
    cut_words = _pre_tokenizer(pre)
    ids = {token: index for index, token in enumerate(vocabulary)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    try:
        tokenizer = Tokenizer(models.BPE(ids, pairs, ignore_merges=pre in _WHOLE_WORDS))
    except Exception as error:  # the library raises nothing narrower
        raise UnreadableWeights(f"the tokenizer's vocabulary and merges do not fit ({error})") from error
    if pre in _COMPOSING:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = cut_words
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(vocabulary[index], special=True, normalized=False) for index in control])
    tokenizer.add_tokens([AddedToken(vocabulary[index], special=False, normalized=False) for index in whole])
    return tokenizer


def _pre_tokenizer(pre: str) -> pre_tokenizers.PreTokenizer:
    """How text is cut into words, by the name that llama.cpp gave to it."""
    if pre in ("gpt-2", "olmo"):
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre in ("smollm", "refact", "starcoder"):
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    if pre not in _WORDS:
        known = ", ".join(["gpt-2", "olmo", "smollm", "refact", "starcoder", *_WORDS])
        raise UnsupportedModel(
            f"the tokenizer cuts text in the way named '{pre}', which is not supported; supported: {known}"
        )
    cut = pre_tokenizers.Split(Regex(_WORDS[pre]), "isolated")
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def token_bytes(token: str) -> bytes:
    """What a token of the vocabulary stands for; signs outside the alphabet stand for themselves."""
    return b"".join(BYTE_OF_SIGN.get(sign, sign.encode()) for sign in token)


def _byte_of_sign() -> Mapping[str, bytes]:
    """GPT-2's alphabet: printable Latin-1 spells itself; the other bytes are 256, 257, ... in their order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
    others = [byte for byte in range(256) if byte not in printable]
    signs = {byte: chr(byte) for byte in printable}
    signs |= {byte: chr(256 + place) for place, byte in enumerate(others)}
    return {sign: bytes([byte]) for byte, sign in signs.items()}


BYTE_OF_SIGN: Final = _byte_of_sign()
