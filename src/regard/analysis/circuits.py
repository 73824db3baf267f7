"""What a head writes about the token it looks at, by weights alone: the OV circuit W_U W_O W_V W_E.

Elhage et al. 2021, "A mathematical framework for transformer circuits", section "Splitting attention head terms into
circuits". Only the direct path: norms and the layers between are left out.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import erfc, sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ORDERS = (
    "monday tuesday wednesday thursday friday saturday sunday",
    "january february march april may june july august september october november december",
    "one two three four five six seven eight nine ten eleven twelve",
    " ".join(map(str, range(100))),
    " ".join("abcdefghijklmnopqrstuvwxyz"),
)
FEWEST = 8  # pairs that a successor is tested with
MOST = 512  # tokens whose ranks are counted
PROJECTIONS = (  # regard's; Llama's; OPT's and Marian's; T5's; DistilBERT's
    ("value", "output"), ("v_proj", "o_proj"), ("v_proj", "out_proj"), ("v", "o"), ("v_lin", "out_lin"),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Circuit:
    """What one head writes about tokens that are looked at, and which logits the role expects it to raise.

    copying: every token raises its own logit. successor: every member of an order the next one's (Gould et al. 2024).

    Attributes:
        site, head: which head.
        role: "copying" or "successor".
        looked: embeddings of the tokens that are looked at `[n, d]`.
        expected: the output embeddings of the tokens that the role expects `[n, d]`, less the mean of all candidates'.
        value: W_V `[d_v, d]`.
        output: W_O `[d, d_v]`.
    """

    site: str
    head: int
    role: str
    looked: Tensor
    expected: Tensor
    value: Tensor
    output: Tensor

    def test(self) -> tuple[str, float, float, tuple[float, float], float, float, int]:
        """(role, effect, p, interval, share, chance, tokens), as in `Role`.

        share: for a token, how many of the others' expected logits are below its own; chance ½. p: the sum of the
        expected logits is tr(W G), W = W_O W_V and G = Σ e uᵀ; were W's outputs rotated at random, its mean would be 0
        and its variance ‖W G‖²/d, near normal (Diaconis and Freedman 1987).
        """
        moved = self.looked @ self.value.mT @ self.output.mT
        score = float((moved * self.expected).sum())
        spread = float((self.output @ (self.value @ (self.looked.mT @ self.expected))).norm()) / sqrt(moved.shape[1])
        p = 0.5 * erfc(score / spread / sqrt(2)) if spread else 1.0
        every = max(1, len(moved) // MOST)
        logits = moved[::every] @ self.expected.mT
        own = logits[torch.arange(len(logits)), torch.arange(0, len(moved), every)]
        shares = (logits < own[:, None]).double().sum(-1) / (len(moved) - 1)
        effects = (2 * shares - 1).cpu().numpy()
        draws = effects[np.random.default_rng(0).integers(len(effects), size=(1000, len(effects)))].mean(-1)
        low, high = np.quantile(draws, [0.025, 0.975])
        return self.role, float(effects.mean()), p, (float(low), float(high)), float(shares.mean()), 0.5, len(moved)


def circuits(
    module: nn.Module, heads: Mapping[str, int], vocabulary: Callable[[int], Sequence[str]] | None
) -> Iterator[Circuit]:
    """The circuits of heads whose weights are at hand; none where the embeddings or a site's projections are not.

    Args:
        module: a model with an embedding and an output layer.
        heads: {site: number of heads}.
        vocabulary: the strings of its tokens, from their number; None: no successors.
    """
    embeddings = _embeddings(module)
    if embeddings is None:
        return
    table, readout = (one.detach().double() for one in embeddings)
    roles = {"copying": (table, readout - readout.mean(0))}
    pairs = [] if vocabulary is None else _pairs(vocabulary(len(table)))
    if len(pairs) >= FEWEST:
        first, second = (torch.tensor(side, device=table.device) for side in zip(*pairs, strict=True))
        roles["successor"] = table[first], readout[second] - readout[second].mean(0)
    for site, count in heads.items():
        projections = _projections(module, "" if site == "." else site)
        if projections is None or projections[0].shape[1] != table.shape[1] or projections[1].shape[1] % count:
            continue
        value, output = (one.detach().double() for one in projections)
        width = output.shape[1] // count
        group = max(1, count * width // len(value))  # query heads that share a value head
        if output.shape[0] != readout.shape[1] or len(value) * group != count * width:
            continue
        for head in range(count):
            own, shared = head * width, head // group * width
            of_head = value[shared : shared + width], output[:, own : own + width]
            for role, (looked, expected) in roles.items():
                yield Circuit(site, head, role, looked, expected, *of_head)


def _embeddings(module: Any) -> tuple[Tensor, Tensor] | None:
    """Input and output embeddings, both `[V, d]`, of a model that has one of each."""
    if hasattr(module, "readout") and isinstance(getattr(module, "embedding", None), nn.Embedding):
        return module.embedding.weight, module.readout()[0]
    if hasattr(module, "get_output_embeddings"):
        first, last = module.get_input_embeddings(), module.get_output_embeddings()
        return None if first is None or last is None else (first.weight, last.weight)
    tables = [part for part in module.modules() if isinstance(part, nn.Embedding)]
    pairs = [
        (table.weight, layer.weight)
        for table in tables
        for layer in module.modules()
        if isinstance(layer, nn.Linear) and layer.weight.shape == table.weight.shape
    ]
    return pairs[0] if len(pairs) == 1 else None


def _projections(module: nn.Module, site: str) -> tuple[Tensor, Tensor] | None:
    """W_V `[key heads · d_v, d]` and W_O `[d, heads · d_v]` of the attention at a site."""
    attention: Any = module.get_submodule(site)
    if isinstance(attention, nn.MultiheadAttention) and attention.in_proj_weight is not None:
        return attention.in_proj_weight.chunk(3)[2], attention.out_proj.weight
    for names in PROJECTIONS:
        value, output = (getattr(attention, name, None) for name in names)
        if isinstance(value, nn.Linear) and isinstance(output, nn.Linear):
            return value.weight, output.weight
    joint, output = (getattr(getattr(attention, name, None), "weight", None) for name in ("c_attn", "c_proj"))
    if isinstance(joint, Tensor) and isinstance(output, Tensor) and joint.shape[1] == 3 * len(joint) == 3 * len(output):
        return joint.chunk(3, 1)[2].mT, output.mT  # GPT-2's: queries, keys and values side by side, `[d, 3 d]`
    value, beside = getattr(attention, "value", None), site.rpartition(".")[0]
    output = getattr(getattr(module.get_submodule(beside), "output", None), "dense", None) if beside else None
    if isinstance(value, nn.Linear) and isinstance(output, nn.Linear):  # BERT's: the output stands beside the attention
        return value.weight, output.weight
    return None


def _pairs(tokens: Sequence[str]) -> list[tuple[int, int]]:
    """Tokens and those that come after them in days, months, numbers and letters; of several spellings the first."""
    index: dict[str, int] = {}
    for number, token in enumerate(tokens):
        index.setdefault(token.strip("▁Ġ ").lower(), number)
    orders = [order.split() for order in ORDERS]
    return [
        (index[one], index[after])
        for order in orders
        for one, after in pairwise(order)
        if one in index and after in index
    ]
