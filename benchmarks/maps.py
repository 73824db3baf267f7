"""What looking costs: statistics of an attention map against torch's attention alone, and against the other ways.

python benchmarks/maps.py            every table, as Markdown (about ten minutes on two idle cores)
python benchmarks/maps.py 8192       that length alone
"""

import sys
from collections.abc import Callable

import torch
from measure import compare, machine, table
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, scaled_dot_product_attention

import regard

HEADS, WIDTH = 8, 64
MOST = 8192  # positions up to which whole maps fit into memory


def ways(n: int, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """The ways to look at 8 heads of n positions."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, HEADS, n, WIDTH, dtype=dtype) for _ in range(3))

    def one_by_one() -> None:
        seen = regard.attention_map(query, key)
        seen.pool(256, 256)
        seen.entropy()
        seen.received()

    found: dict[str, Callable[[], object]] = {
        "torch's attention alone, nothing seen": lambda: scaled_dot_product_attention(query, key, value),
        "regard: pooled 256 × 256, entropy, received": one_by_one,
        "regard: the same and the top 8": lambda: regard.attention_map(query, key).summary((256, 256), 8),
    }
    if n <= MOST:
        found["whole matrix by hand, the same statistics"] = lambda: statistics(
            ((query @ key.mT).float() * WIDTH**-0.5).softmax(-1)
        )
    if n <= MOST and dtype == torch.float32:
        module = torch.nn.MultiheadAttention(HEADS * WIDTH, HEADS, batch_first=True).eval()
        states = torch.randn(1, n, HEADS * WIDTH)
        found["nn.MultiheadAttention(need_weights=True), the same statistics"] = lambda: statistics(
            module(states, states, states, average_attn_weights=False)[1]
        )
    if n <= 2048:
        found["value = identity, 64 columns at a time, the same statistics"] = lambda: statistics(
            by_identity(query, key).float()
        )
    return found


def statistics(weights: Tensor) -> tuple[Tensor, ...]:
    """Pooled map, entropy and received of a whole map."""
    return adaptive_max_pool2d(weights, 256), torch.special.entr(weights).sum(-1), weights.sum(-2)


def by_identity(query: Tensor, key: Tensor) -> Tensor:
    """The map as the attention of unit vectors: torch's kernel once for every 64 keys."""
    columns = torch.eye(key.shape[-2], dtype=key.dtype).split(WIDTH, -1)
    return torch.cat([scaled_dot_product_attention(query, key, c.expand_as(key)) for c in columns], -1)


def main() -> None:
    """Print every table."""
    lengths = [int(n) for n in sys.argv[1:]] or [2048, 8192, 32768]
    print(f"Measured on {machine()}: `python benchmarks/maps.py {' '.join(sys.argv[1:])}`".strip())
    with torch.no_grad():
        for n in lengths:
            for dtype in (torch.float32, torch.bfloat16):
                print(f"\n**N = {n:,}, {HEADS} heads of {WIDTH}, {str(dtype).removeprefix('torch.')}**\n")
                print(table(compare(ways(n, dtype), turns=9 if n <= MOST else 3)), flush=True)


if __name__ == "__main__":
    main()
