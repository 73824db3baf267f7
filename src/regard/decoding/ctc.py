"""Joint attention and CTC decoding: every token is scored by both (Watanabe et al. 2017, section II.C).

    score(c | g) = (1 - λ) log p_attention(c | g) + λ (log ψ(g c) - log ψ(g))

ψ(g) is the probability, under CTC, of all texts that begin with g (the recursion is their algorithm 2); EOS has the
probability of g alone.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.decoding.constraints import StepFunction
from regard.nn.state import gather_hypotheses

NEVER = -1e4  # the logarithm of what does not happen: finite, so that sums of it may be subtracted


@dataclass(frozen=True, eq=False)
class JointState:
    """A decoder's state beside CTC's.

    Attributes:
        inner: the decoder's.
        log_p: `[N, 1, S, V]`, of every token at every moment.
        ends: `[N, K, S + 1, 2]`, log-probability that the first t moments say this text and end in its last token, or
            in a blank.
        prefix: `[N, K]`, log ψ of the text.
        last: `[N, K]`, its last token; -1 for none.
        empty: there was no step yet, so the next token, BOS, is none of the text's.
    """

    inner: Any
    log_p: Tensor
    ends: Tensor
    prefix: Tensor
    last: Tensor
    empty: bool = False

    def select(self, parents: Int[Tensor, "N K"]) -> "JointState":
        """The state in which hypothesis k of sentence n goes on from hypothesis `parents[n, k]`."""
        ends, prefix, last = (gather_hypotheses(t, parents) for t in (self.ends, self.prefix, self.last))
        return replace(self, inner=self.inner.select(parents), ends=ends, prefix=prefix, last=last)

    def keep(self, sentences: Int[Tensor, "M"]) -> "JointState":
        """The state of some of the sentences."""
        log_p, ends, prefix, last = (t[sentences] for t in (self.log_p, self.ends, self.prefix, self.last))
        return replace(self, inner=self.inner.keep(sentences), log_p=log_p, ends=ends, prefix=prefix, last=last)


@dataclass(frozen=True, eq=False)
class CTC:
    """CTC as a constraint of `regard.decoding.generate`.

    Attributes:
        log_p: `[N, S, V]`, log-probabilities of the tokens at every state of the memory.
        allowed: `[N, S]`, True at real states.
        share: λ, the weight of CTC in a token's score.
        blank, bos, eos: ids.
    """

    log_p: Tensor
    allowed: Tensor
    share: float
    blank: int
    bos: int
    eos: int
    scored: bool = True

    def begin(self, state: Any, sentences: int) -> "JointState":  # noqa: ARG002
        """The state before the first token."""
        return begin(state, self.log_p, self.allowed, self.blank)

    def around(self, step: StepFunction) -> StepFunction:
        """The step that scores with both."""
        return joined(step, self.share, self.blank, self.bos, self.eos)


def begin(inner: Any, log_p: Float[Tensor, "N S V"], allowed: Bool[Tensor, "N S"], blank: int) -> JointState:
    """The state before the first token.

    Args:
        inner: the decoder's.
        log_p: log-probabilities of the tokens at every moment.
        allowed: True at real moments; the others say nothing.
        blank: the id of "nothing".
    """
    silent = torch.full_like(log_p, NEVER)
    silent[..., blank] = 0.0
    wide = torch.float32 if log_p.device.type == "mps" else torch.float64  # MPS has no float64
    log_p = torch.where(allowed[..., None], log_p, silent).to(wide).clamp(min=NEVER)
    blanks = torch.nn.functional.pad(log_p[..., blank].cumsum(-1), (1, 0))
    ends = torch.stack([torch.full_like(blanks, -torch.inf), blanks], -1)[:, None]
    nothing = torch.full((len(log_p), 1), -1, dtype=torch.long, device=log_p.device)
    return JointState(inner, log_p[:, None], ends, blanks.new_zeros(len(log_p), 1), nothing, empty=True)


def joined(step: StepFunction, share: float, blank: int, bos: int, eos: int) -> StepFunction:
    """A step that scores with both: (tokens `[N, K]`, JointState) -> (scores `[N, K, V]`, JointState).

    Args:
        step: the decoder's, whose scores are log-probabilities.
        share: λ, of CTC.
        blank, bos, eos: ids.
    """

    def both(token: Tensor, state: JointState) -> tuple[Tensor, JointState]:
        log_p, inner = step(token, state.inner)
        state = replace(_follow(state, token, blank), inner=inner, empty=False)
        longer = _prefixes(state, blank, bos, eos)
        gained = torch.where(longer > NEVER / 2, longer - state.prefix[..., None], -torch.inf)
        return (1 - share) * log_p + share * gained.to(log_p.dtype), state

    return both


def _follow(state: JointState, token: Tensor, blank: int) -> JointState:
    """The state once `token` has been said; BOS, the token of the first step, is not."""
    if state.empty:
        return state
    said = torch.take_along_dim(state.log_p, token[:, :, None, None], -1)[..., 0]  # [N, K, S]
    before = _before(state, token[..., None])[..., 0]
    nothing = state.log_p[..., blank].expand_as(said)
    # both recursions at once: x_t = log(e^{x_{t-1}} + e^{f_t}) + p_t is P_t + log Σ_{s ≤ t} e^{f_s - P_{s-1}}, P = Σ p
    in_token = _carry(before, said)
    in_blank = _carry(_shift(in_token), nothing)
    ends = torch.nn.functional.pad(torch.stack([in_token, in_blank], -1), (0, 0, 1, 0), value=-torch.inf)
    return replace(state, ends=ends, prefix=torch.logsumexp(before + said, -1), last=token)


def _carry(starts: Tensor, stays: Tensor) -> Tensor:
    """x_t = log(exp x_{t-1} + exp f_t) + p_t along the last axis, from nothing."""
    total = stays.cumsum(-1)
    return total + torch.logcumsumexp(starts - (total - stays), -1)


def _shift(x: Tensor) -> Tensor:
    """One moment later; nothing before the first."""
    return torch.nn.functional.pad(x[..., :-1], (1, 0), value=-torch.inf)


def _before(state: JointState, tokens: Tensor) -> Tensor:
    """`[N, K, S, C]`: log-probability that the text was said before each moment, so that each of `tokens` `[N, K, C]`
    may begin there: a token that is the text's last one needs a blank between."""
    either = torch.logaddexp(state.ends[..., 0], state.ends[..., 1])
    same = (tokens == state.last[..., None])[..., None, :]
    return torch.where(same, state.ends[..., :-1, 1:], either[..., :-1, None])


def _prefixes(state: JointState, blank: int, bos: int, eos: int) -> Tensor:
    """log ψ of the text with each token added `[N, K, V]`; of the text alone for the end."""
    vocabulary = state.log_p.shape[-1]
    tokens = torch.arange(vocabulary, device=state.prefix.device).expand(*state.prefix.shape, -1)
    longer = torch.logsumexp(_before(state, tokens) + state.log_p, -2)
    for special in (blank, bos):
        longer[..., special] = -torch.inf
    longer[..., eos] = torch.logaddexp(state.ends[..., -1, 0], state.ends[..., -1, 1])
    return longer
