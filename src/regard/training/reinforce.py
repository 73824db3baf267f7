"""Hard attention by REINFORCE: every look is at one place that is drawn, and the draw is rewarded by what followed.

    L = E_s[log p(y | s)],   ∇L = E_s[∇ log p(y | s) + Σ_t (R_t - b_t) ∇ log p(s_t)],   R_t = Σ_{t' ≥ t} log p(y_t' | s)

b_t may depend on anything but the draw (Xu et al. 2015, section 4.1; Williams 1992).
"""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import Categorical

from regard.attention.maps.map import AttentionMap
from regard.attention.normalizers import Softmax
from regard.attention.watch import Call

FORGETS = 0.9  # how much of the moving average stays (Xu et al. 2015, section 4.1)


@dataclass
class Draws:
    """A changer (`regard.attention.watch.changing`) that lets every query look at one key, drawn by the softmax.

    Attributes:
        log_probs: of the draws, one `[B]` per look.
        entropies: of what they were drawn from, in nats, one `[B]` per look.
    """

    log_probs: list[Tensor] = field(default_factory=list)
    entropies: list[Tensor] = field(default_factory=list)

    def __call__(self, call: Call) -> Tensor:
        spec = replace(call.spec, normalizer=Softmax())
        share = AttentionMap.from_spec(call.query, call.key, spec).full(force=True)[:, 0]
        drawn = Categorical(probs=share.clamp(min=1e-9))
        index = drawn.sample()
        self.log_probs.append(drawn.log_prob(index))
        self.entropies.append(drawn.entropy())
        return torch.take_along_dim(call.value, index[:, None, None], 1)


def estimator(
    draws: Draws, log_p: Float[Tensor, "B T"], real: Bool[Tensor, "B T"], baseline: Tensor
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Σ (R_t - b_t) log p(s_t), whose gradient is the second half of ∇L, and the draws' entropy; both summed.

    Args:
        draws: of T looks.
        log_p: of every target token, given the draws.
        real: where there is a target token.
        baseline: log-likelihood of a token, on average; b_t is that times the tokens that are still to come.
    """
    reward = log_p.detach().masked_fill(~real, 0.0)
    to_come = reward.flip(1).cumsum(1).flip(1)
    tokens = real.flip(1).cumsum(1).flip(1)
    advantage = (to_come - baseline * tokens).masked_fill(~real, 0.0)
    chosen = torch.stack(draws.log_probs, 1)
    entropy = torch.stack(draws.entropies, 1).masked_fill(~real, 0.0)
    return (advantage * chosen).sum(), entropy.sum()


def move_baseline(baseline: Tensor, log_p: Float[Tensor, "B T"], real: Bool[Tensor, "B T"]) -> None:
    """The moving average after one more batch, in place."""
    now = log_p.detach().masked_fill(~real, 0.0).sum() / real.sum()
    baseline.mul_(FORGETS).add_((1 - FORGETS) * now.to(baseline.dtype))
