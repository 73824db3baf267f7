"""Several translators as one: what comes back is the same `Generation`, with the attention of every member."""

from collections.abc import Sequence
from typing import Any

import torch

from regard.bundle import Bundle
from regard.errors import ConfigError
from regard.models.ensemble import Ensemble, EnsembleConfig, PlannedEnsemble
from regard.pipelines.base import Pipeline
from regard.pipelines.translator import Translator
from regard.training.objective import projected_nll


class EnsembleTranslator(Translator):
    """Translators with one tokenizer as one: the next token has the mean of the probabilities that they give it.

    p(y_t | y_<t, x) = 1/M Σ_m p_m(y_t | y_<t, x)

    `.model` is a `regard.models.ensemble.Ensemble`; its sites are the members', each behind the member's number. Word
    alignments are read from the first member for which site and heads were chosen when it was trained. Settings of the
    search are the first member's; a source is as long as all members take it.

    Attributes:
        members: the translators.

    Args:
        members: M ≥ 2 translators.

    Raises:
        ConfigError: one is not a translator, or its tokenizer, languages or rules on tokens differ from the first's.
    """

    measure = staticmethod(projected_nll)

    def __init__(self, members: Sequence[Pipeline[Any, Any]]) -> None:
        first = members[0]
        for other in members:
            if not isinstance(other, Translator):
                raise ConfigError(f"an ensemble is of translators; {other.name} is for `regard {other.bundle.task}`")
            _must_agree(first, other)
        self.members: list[Any] = list(members)
        own = first.bundle
        decoding = {**own.decoding, "longest_source": min(one.decoding.longest_source for one in self.members)}
        alignments = [
            {**found, "site": f"{number}.{found['site']}"}
            for number, one in enumerate(members)
            if "site" in (found := one.bundle.alignment)
        ]
        bundle = Bundle(
            own.task, own.languages, Ensemble([one.model for one in members]).eval(),
            EnsembleConfig(members=tuple(one.bundle.model_config for one in members)),
            own.tokenizer, decoding, next(iter(alignments), {}), own.rules, own.diacritics,
        )  # fmt: skip
        super().__init__(bundle, ",".join(one.name for one in members))

    def searched(self) -> tuple[Any, Any]:
        """What the members are searched with, as one."""
        planned = PlannedEnsemble([one.searched() for one in self.members])
        return planned, planned

    def use(self, precision: str, device: torch.device | None = None) -> None:
        """As `Pipeline.use`, of every member."""
        for one in self.members:
            one.use(precision, device)


def _must_agree(first: Pipeline[Any, Any], other: Pipeline[Any, Any]) -> None:
    """Refuse a member whose outputs' tokens or languages mean something else than the first's."""
    sizes = [len(one.model.readout()[0]) for one in (first, other)]
    if sizes[0] != sizes[1] or first.tokenizer.identity() != other.tokenizer.identity():
        counts = f": {sizes[0]:,} tokens and {sizes[1]:,}" if sizes[0] != sizes[1] else " in tokens, merges or rules"
        raise ConfigError(
            f"the members of an ensemble share one tokenizer; those of {first.name} and {other.name} differ{counts}; "
            "train the second with tokenizer_from set to the first"
        )
    for what, ours, theirs in (
        ("languages", first.bundle.languages, other.bundle.languages),
        ("rules on tokens", first.bundle.rules, other.bundle.rules),
    ):
        if ours != theirs:
            raise ConfigError(
                f"the members of an ensemble share their {what}; {first.name} has {ours}, {other.name} has {theirs}"
            )
