"""A folder's rules of generating: tokens that end a text, that are suppressed, and that are forced.

The keys are those of transformers' `generation_config.json`; `config.json` may hold them too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from regard.errors import BundleError, shown

# rules that our search cannot follow, and their values without effect
_REFUSED: dict[str, tuple[Any, ...]] = {
    "sequence_bias": (None, {}, []),
    "force_words_ids": (None, []),
    "constraints": (None, []),
    "exponential_decay_length_penalty": (None, []),
    "guidance_scale": (None, 1, 1.0),
    "encoder_repetition_penalty": (None, 1, 1.0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "watermarking_config": (None, {}),
}


@dataclass(frozen=True)
class GenerationRules:
    """Which tokens may be generated, and when.

    Attributes:
        ends: tokens that end a text; the first one is the tokenizer's `eos`.
        suppressed: tokens that are never generated.
        suppressed_first: tokens that are not generated first (after `forced_first`, where there is one).
        forced_first: the first token of every output.
        forced_last: the token generated at the length limit.
        bad_words: sequences that are never generated: the last token is suppressed after the others.
    """

    ends: tuple[int, ...] = ()
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = ()
    forced_first: int | None = None
    forced_last: int | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The keys of a `generation_config.json`; those without effect are left out."""
        ends: Any = list(self.ends)
        values = {
            "eos_token_id": ends[0] if len(ends) == 1 else ends,
            "suppress_tokens": list(self.suppressed),
            "begin_suppress_tokens": list(self.suppressed_first),
            "forced_bos_token_id": self.forced_first,
            "forced_eos_token_id": self.forced_last,
            "bad_words_ids": [list(word) for word in self.bad_words],
        }
        return {name: value for name, value in values.items() if value is not None and value != []}


def read_rules(
    config: Mapping[str, Any], generation: Mapping[str, Any], vocabulary: int, where: str
) -> GenerationRules:
    """The rules in a config.json and a generation_config.json; where both have a key, the latter's value is taken.

    Args:
        config: contents of config.json.
        generation: contents of generation_config.json; empty where there is none.
        vocabulary: number of tokens; 0 for a model without tokens.
        where: the folder, for messages.

    Raises:
        BundleError: a value that is not of the key's type, a forced token that the model does not have, or a rule
            that our search cannot follow.
    """
    if not vocabulary:
        return GenerationRules()
    keys = _Keys({**config, **generation}, vocabulary, where)
    keys.refuse_the_rest()
    ends = keys.some("eos_token_id")
    return GenerationRules(
        ends=ends,
        suppressed=keys.some("suppress_tokens"),
        suppressed_first=keys.some("begin_suppress_tokens"),
        forced_first=keys.one("forced_bos_token_id"),
        forced_last=keys.one("forced_eos_token_id"),
        # an end alone as a bad word would forbid ending; transformers drops it too
        bad_words=tuple(word for word in keys.words("bad_words_ids") if len(word) > 1 or word[0] not in ends),
    )


@dataclass(frozen=True)
class _Keys:
    values: Mapping[str, Any]
    vocabulary: int
    where: str

    def some(self, name: str) -> tuple[int, ...]:
        """Ids, one or a list; repeated ids and ids beyond the vocabulary are left out."""
        given = self.values.get(name)
        listed = given if isinstance(given, list) else [] if given is None else [given]
        if not all(_is_id(one) for one in listed):
            raise self._refusal(name, "expected a token id or a list of them")
        return tuple(dict.fromkeys(one for one in listed if one < self.vocabulary))

    def one(self, name: str) -> int | None:
        """An id, or a list of a single one."""
        given = self.values.get(name)
        given = given[0] if isinstance(given, list) and len(given) == 1 else given
        if given is None or given == []:
            return None
        if not _is_id(given):
            raise self._refusal(name, "expected one token id")
        if given >= self.vocabulary:
            raise self._refusal(name, f"the model has {self.vocabulary} tokens")
        return int(given)

    def words(self, name: str) -> tuple[tuple[int, ...], ...]:
        """Sequences of ids; those with an id beyond the vocabulary are left out."""
        given = self.values.get(name) or []
        fine = isinstance(given, list) and all(isinstance(word, list) and word for word in given)
        if not fine or not all(_is_id(one) for word in given for one in word):
            raise self._refusal(name, "expected a list of lists of token ids")
        return tuple(dict.fromkeys(tuple(word) for word in given if max(word) < self.vocabulary))

    def refuse_the_rest(self) -> None:
        """Refuse rules that our search cannot follow."""
        for name, neutral in _REFUSED.items():
            if (value := self.values.get(name)) not in neutral:
                raise self._refusal(name, f"regard cannot generate by it ({shown(value)} would be ignored)")
        # a transcriber builds Whisper's prompt itself
        if self.values.get("forced_decoder_ids") and self.values.get("model_type") != "whisper":
            raise self._refusal("forced_decoder_ids", "only forced_bos_token_id can be followed")

    def _refusal(self, name: str, reason: str) -> BundleError:
        return BundleError(f"{self.where}: {name} = {shown(self.values.get(name))} cannot be read: {reason}")


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
