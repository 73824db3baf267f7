"""Heads over a corpus, as the page orders them: what the output owes to each, and the roles that are significant."""

from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

import torch

from regard.analysis.ablations import ablations
from regard.analysis.base import ForwardPass
from regard.analysis.roles import roles
from regard.device import device_of, random_numbers_kept, seed_generators
from regard.errors import ConfigError

MOST = 64  # texts
SAMPLES = {"fr": "source.txt", "en": "reference.txt"}  # of `regard samples`, by language
SAMPLED = 16


def atlas_of(pipeline: Any, texts: Sequence[str] = ()) -> dict[str, Any]:
    """Importance and roles of a model's heads over some texts.

    The importance of a head is the fall of the mean log-probability of an output's tokens, in nats, when the head's
    output is replaced by 0 (Michel et al. 2019, section 3.2), averaged over the texts; its roles are those of
    `regard.roles`.

    Args:
        pipeline: what `regard.load` returns, with a forward pass of a text.
        texts: two or more; by default the first 16 sentences of `regard samples` in the model's source language.

    Raises:
        ConfigError: fewer than two texts or more than 64; no samples in the model's language; an empty output.
    """
    given = list(texts) or samples_for(pipeline)
    if not 2 <= len(given) <= MOST:
        raise ConfigError(
            f"heads are compared over 2 to {MOST} texts; got {len(given)}: give more, or fewer, sentences"
        )
    passes = [pipeline.forward_pass(text) for text in given]
    with random_numbers_kept(device_of(pipeline.model)):
        seed_generators(0, device_of(pipeline.model))
        found = ablations(pipeline, given, [_mean_log_prob(one) for one in passes], ["zero"])
        tested = roles(pipeline, given)
    table = found.table["zero"]
    counts = [found.heads(site) for site in found.sites]
    return {
        "texts": len(given),
        "own": bool(texts),
        "importance": {
            site: [-change for change in row[:count].tolist()]
            for site, row, count in zip(found.sites, table, counts, strict=True)
        },
        "roles": [
            {"site": one.site, "head": one.head, "role": one.role, "effect": one.effect, "p": one.p} for one in tested
        ],
    }


def samples_for(pipeline: Any) -> list[str]:
    """The sentences of `regard samples` in the model's source language; none in any other."""
    languages = getattr(pipeline.bundle, "languages", None) or [""]
    if languages[0] not in SAMPLES:
        return []
    lines = files("regard").joinpath("samples", SAMPLES[languages[0]]).read_text(encoding="utf-8").splitlines()
    return lines[:SAMPLED]


def _mean_log_prob(one: ForwardPass) -> Callable[[Any], float]:
    """Of the output's tokens; of a text without an output, of its own tokens after the first."""
    tokens = next(iter(one.arguments.values()))[0]
    wanted = torch.tensor(one.predicted, device=tokens.device) if one.predicted else tokens[1:]
    if not len(wanted):
        raise ConfigError("a text of one token has no prediction: give longer texts")

    def metric(output: Any) -> float:
        logits = output if isinstance(output, torch.Tensor) else output.logits
        places = logits[0] if one.predicted else logits[0, :-1]
        logs = places[-len(wanted) :].float().log_softmax(-1)
        return float(logs.gather(-1, wanted[:, None]).mean())

    return metric
