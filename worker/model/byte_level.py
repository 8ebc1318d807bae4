"""Byte-level BPE, the tokenizer of the GPT-2 family: its vocabulary spells each byte as a printable sign."""

from collections.abc import Mapping, Sequence
from typing import Final

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from worker.model.errors import UnreadableWeights, UnsupportedModel


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
        tokenizer = Tokenizer(models.BPE(ids, pairs))
    except Exception as error:  # the library raises nothing narrower
        raise UnreadableWeights(f"the tokenizer's vocabulary and merges do not fit ({error})") from error
    tokenizer.pre_tokenizer = cut_words
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(vocabulary[index], special=True, normalized=False) for index in control])
    tokenizer.add_tokens([AddedToken(vocabulary[index], special=False, normalized=False) for index in whole])
    return tokenizer


def _pre_tokenizer(pre: str) -> pre_tokenizers.PreTokenizer:
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    known = {"smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])}
    if pre not in known:
        raise UnsupportedModel(
            f"the tokenizer cuts text in the way named '{pre}', which is not supported; supported: " + ", ".join(known)
        )
    return known[pre]


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
