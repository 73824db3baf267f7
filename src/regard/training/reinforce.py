"""Hard attention by REINFORCE: each query attends to one sampled position, rewarded by the log-likelihood that follows.

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

DECAY = 0.9  # of the moving average of the baseline (Xu et al. 2015, section 4.1)


@dataclass
class Draws:
    """A change of attention (`regard.attention.watch.changing`): each query attends to one sampled key.

    Attributes:
        log_probs: of the sampled keys, one `[B]` per query.
        entropies: of the distributions in nats, one `[B]` per query.
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
    """Σ (R_t - b_t) log p(s_t), whose gradient is the second term of ∇L, and the entropy of the samples; both summed.

    Args:
        draws: of T queries.
        log_p: of every target token, given the samples.
        real: True at target tokens.
        baseline: average log-likelihood of a token; b_t is the baseline times the number of remaining tokens.
    """
    reward = log_p.detach().masked_fill(~real, 0.0)
    to_come = reward.flip(1).cumsum(1).flip(1)
    tokens = real.flip(1).cumsum(1).flip(1)
    advantage = (to_come - baseline * tokens).masked_fill(~real, 0.0)
    chosen = torch.stack(draws.log_probs, 1)
    entropy = torch.stack(draws.entropies, 1).masked_fill(~real, 0.0)
    return (advantage * chosen).sum(), entropy.sum()


def move_baseline(baseline: Tensor, log_p: Float[Tensor, "B T"], real: Bool[Tensor, "B T"]) -> None:
    """Update the moving average by one batch, in place."""
    now = log_p.detach().masked_fill(~real, 0.0).sum() / real.sum()
    baseline.mul_(DECAY).add_((1 - DECAY) * now.to(baseline.dtype))
