"""SentencePiece's BPE, the tokenizer of Llama 2 and Gemma: a space is a sign, and any byte can be a token."""

from collections.abc import Iterator, Sequence
from typing import Final

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from worker.model.errors import UnreadableWeights

_SPACE: Final = "▁"


def build(
    vocabulary: Sequence[str],
    scores: Sequence[float],
    *,
    unknown: str | None,
    control: Sequence[int],
    whole: Sequence[int],
    begins_with_space: bool,
) -> Tokenizer:
    """A tokenizer as Hugging Face's file of the same model describes it.

    `scores` say which of two neighbours to join first; `control` holds the ids of tokens that steer the model;
    `whole` those of text that is never split; with `begins_with_space`, one is put before every text. Raises
    UnreadableWeights for scores that do not fit the vocabulary.
    """
    if len(scores) != len(vocabulary):
        raise UnreadableWeights(f"the tokenizer has {len(vocabulary)} tokens and {len(scores)} scores")
    ids = {token: index for index, token in enumerate(vocabulary)}
    apart = {*control, *whole}
    joined = [index for index in range(len(vocabulary)) if index not in apart]
    joined.sort(key=lambda index: -scores[index])
    merges = [pair for index in joined for pair in _pairs(vocabulary[index], ids)]
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    first = [normalizers.Prepend(_SPACE)] if begins_with_space else []
    last = [decoders.Strip(" ", 1, 0)] if begins_with_space else []
    tokenizer.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", _SPACE)])
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *last])
    tokenizer.add_special_tokens([AddedToken(vocabulary[index], special=True, normalized=False) for index in control])
    tokenizer.add_tokens([AddedToken(vocabulary[index], special=False, normalized=False) for index in whole])
    return tokenizer


def _pairs(token: str, ids: dict[str, int]) -> Iterator[tuple[str, str]]:
    """All pairs of tokens that make this one, those of small ids first."""
    cuts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
    found = [(left, right) for left, right in cuts if left in ids and right in ids]
    yield from sorted(found, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
