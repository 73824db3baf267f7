"""attend against torch's own kernels and the usual ways of writing it: time, ratio and peak memory, side by side.

python benchmarks/attend.py                  every table, as Markdown (about half an hour on two idle cores)
python benchmarks/attend.py window padded    those alone
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from math import sqrt

import torch
from measure import AGAINST, against, compare, machine, write
from torch import Tensor
from torch.nn.functional import normalize, scaled_dot_product_attention

import regard

Ways = Mapping[str, Callable[[], object]]
OURS = "regard.attend"
FLOATS = (torch.float32, torch.bfloat16)


def vectors(batch: int, heads: int, n: int, width: int, dtype: torch.dtype, learned: bool = False) -> list[Tensor]:
    """Queries, keys and values."""
    torch.manual_seed(0)
    return [torch.randn(batch, heads, n, width).to(dtype).requires_grad_(learned) for _ in range(3)]


def both(way: Callable[[], Tensor], *inputs: Tensor) -> Callable[[], object]:
    """A way forward and backward."""
    upstream = torch.randn_like(way())
    return lambda: torch.autograd.grad(way(), inputs, upstream)


def plain() -> Iterator[tuple[str, Ways]]:
    """Softmax over a scaled dot product: torch's own ground."""
    for n in (128, 512, 2048, 8192, 16384):
        for dtype in FLOATS:
            q, k, v = vectors(1, 8, n, 64, dtype)
            for causal in (False, True):
                mask = regard.causal() if causal else None
                yield (
                    f"{'causal' if causal else 'plain'}, N = {n:,}, {_name(dtype)}, forward",
                    {
                        "torch": lambda q=q, k=k, v=v, causal=causal: scaled_dot_product_attention(
                            q, k, v, is_causal=causal
                        ),
                        OURS: lambda q=q, k=k, v=v, mask=mask: regard.attend(q, k, v, mask=mask),
                    },
                )


def overhead() -> Iterator[tuple[str, Ways]]:
    """What attend itself costs: 100 calls on next to nothing."""
    q, k, v = vectors(1, 1, 1, 8, torch.float32)
    yield (
        "100 calls, one query, one key",
        {
            "torch": lambda: [scaled_dot_product_attention(q, k, v) for _ in range(100)],
            OURS: lambda: [regard.attend(q, k, v) for _ in range(100)],
        },
    )


def window() -> Iterator[tuple[str, Ways]]:
    """A window of 256 keys before and 256 after, and one of 256 before."""
    n = 8192
    for name, mask in (("256 before and after", regard.window(256)), ("256 before", regard.window(256, 0))):
        for dtype in FLOATS:
            whole = mask.full((n, n), torch.device("cpu"))
            q, k, v = vectors(1, 8, n, 64, dtype)
            ways: dict[str, Callable[[], object]] = {
                "torch, with the mask": lambda q=q, k=k, v=v, m=whole: scaled_dot_product_attention(
                    q, k, v, attn_mask=m
                ),
                OURS: lambda q=q, k=k, v=v, m=mask: regard.attend(q, k, v, mask=m),
                "torch's FlexAttention, compiled": _flex(q, k, v, name),
            }
            yield f"window {name} of {n:,}, {_name(dtype)}, forward", ways
            q, k, v = vectors(1, 8, n, 64, dtype, True)
            yield (
                f"window {name} of {n:,}, {_name(dtype)}, forward and backward",
                {
                    "torch, with the mask": both(
                        lambda q=q, k=k, v=v, m=whole: scaled_dot_product_attention(q, k, v, attn_mask=m), q, k, v
                    ),
                    OURS: both(lambda q=q, k=k, v=v, m=mask: regard.attend(q, k, v, mask=m), q, k, v),
                },
            )


def _flex(q: Tensor, k: Tensor, v: Tensor, name: str) -> Callable[[], object]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    n = q.shape[-2]

    def near(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:  # noqa: ARG001
        return ((i - j) <= 256) & ((j - i) <= (256 if "after" in name else 0))

    blocks = create_block_mask(near, None, None, n, n, device="cpu")
    compiled = torch.compile(flex_attention)
    return lambda: compiled(q, k, v, block_mask=blocks)


def alibi() -> Iterator[tuple[str, Ways]]:
    """Linear biases, forward and backward."""
    n = 2048
    bias = regard.alibi(8)
    rows = torch.arange(n)
    whole = bias.tile(rows, rows, (1, 8, n, n)).contiguous()[None]
    for name, mask in (("ALiBi", None), ("ALiBi, causal", regard.causal())):
        added = whole if mask is None else whole.masked_fill(~mask.full((n, n), whole.device), -torch.inf)
        q, k, v = vectors(1, 8, n, 64, torch.float32, True)
        peer = both(lambda q=q, k=k, v=v, added=added: scaled_dot_product_attention(q, k, v, attn_mask=added), q, k, v)

        def flushed(peer: Callable[[], object] = peer) -> None:
            torch.set_flush_denormal(True)
            peer()
            torch.set_flush_denormal(False)

        yield (
            f"{name}, N = {n:,}, float32, forward and backward",
            {
                "torch, with the bias": peer,
                OURS: both(lambda q=q, k=k, v=v, m=mask: regard.attend(q, k, v, mask=m, bias=bias), q, k, v),
                "torch, with the bias, denormals flushed in the whole process": flushed,
            },
        )


def relative() -> Iterator[tuple[str, Ways]]:
    """T5's learned bias and its gradient."""
    n = 2048
    bias = regard.RelativeBias(8)
    torch.nn.init.normal_(bias.weight)
    rows = torch.arange(n)
    q, k, v = vectors(1, 8, n, 64, torch.float32, True)
    yield f"learned relative bias, N = {n:,}, float32, forward and backward", {
        "torch, with the bias": both(
            lambda: scaled_dot_product_attention(q, k, v, attn_mask=bias.tile(rows, rows, (1, 8, n, n))[None]),
            q, k, v, bias.weight,
        ),
        OURS: both(lambda: regard.attend(q, k, v, bias=bias), q, k, v, bias.weight),
    }  # fmt: skip


def half() -> Iterator[tuple[str, Ways]]:
    """bfloat16 in training, and small heads."""
    for batch in (1, 8):
        q, k, v = vectors(batch, 8, 512, 64, torch.bfloat16, True)
        yield (
            f"B = {batch}, N = 512, bfloat16, forward and backward",
            {
                "torch": both(lambda q=q, k=k, v=v: scaled_dot_product_attention(q, k, v), q, k, v),
                OURS: both(lambda q=q, k=k, v=v: regard.attend(q, k, v), q, k, v),
            },
        )
    for width in (16, 32):
        q, k, v = vectors(1, 512 // width, 2048, width, torch.bfloat16)
        yield (
            f"{512 // width} heads of {width}, N = 2,048, bfloat16, forward",
            {
                "torch": lambda q=q, k=k, v=v: scaled_dot_product_attention(q, k, v),
                OURS: lambda q=q, k=k, v=v: regard.attend(q, k, v),
            },
        )


def additive() -> Iterator[tuple[str, Ways]]:
    """Bahdanau's score beside its usual way of writing, eager and compiled; values are the keys."""
    for batch, n, width in ((32, 50, 512), (4, 1024, 256)):
        torch.manual_seed(0)
        q, k = (torch.randn(batch, n, width, requires_grad=True) for _ in range(2))
        score = regard.Additive(width, width, width)
        parts = (q, k, *score.parameters())

        def usual(q: Tensor = q, k: Tensor = k, score: regard.Additive = score) -> Tensor:
            hidden = torch.tanh(score.query(q)[:, :, None] + score.key(k)[:, None])
            return torch.softmax(hidden @ score.v, -1) @ k

        compiled = torch.compile(usual, dynamic=False)
        ways: dict[str, Callable[[], Tensor]] = {
            "the usual way": usual,
            OURS: lambda q=q, k=k, score=score: regard.attend(q, k, k, score=score),
            "the usual way, compiled": compiled,
        }
        name = f"additive, B = {batch}, T = S = {n:,}, width {width}"

        def seeing_no_gradient(way: Callable[[], Tensor]) -> Callable[[], object]:
            return torch.no_grad()(way)

        yield f"{name}, forward", {title: seeing_no_gradient(way) for title, way in ways.items()}
        yield f"{name}, forward and backward", {title: both(way, *parts) for title, way in ways.items()}


def padded() -> Iterator[tuple[str, Ways]]:
    """Sentences of unlike length in one batch, 62 % filled."""
    n = 512
    lengths = torch.tensor([512, 448, 384, 350, 300, 250, 180, 116])
    keep = regard.padding(lengths).full((8, 8, n, n), lengths.device)
    asks = regard.padding(lengths, lengths).full((8, 8, n, n), lengths.device)
    for dtype in FLOATS:
        q, k, v = vectors(8, 8, n, 64, dtype)
        for name, mask, whole in (
            ("keys", regard.padding(lengths), keep),
            ("keys and queries", regard.padding(lengths, lengths), asks),
        ):
            yield (
                f"padded {name}, {float(lengths.float().mean()) / n:.0%} filled, N = {n}, {_name(dtype)}, forward",
                {
                    "torch, with the mask": lambda q=q, k=k, v=v, m=whole: scaled_dot_product_attention(
                        q, k, v, attn_mask=m
                    ),
                    OURS: lambda q=q, k=k, v=v, m=mask: regard.attend(q, k, v, mask=m),
                },
            )


def sparse() -> Iterator[tuple[str, Ways]]:
    """Sparsemax and entmax beside the entmax package, exact and with its k = 32."""
    import entmax

    from regard.attention.normalizers import Entmax

    for shape in ((65536, 128), (16384, 1024)):
        torch.manual_seed(0)
        scores, allowed = torch.randn(shape, requires_grad=True), torch.ones(shape, dtype=torch.bool)
        for alpha, peer in ((2.0, entmax.sparsemax), (1.5, entmax.entmax15)):
            ours = Entmax(alpha)
            yield (
                f"entmax, alpha = {alpha}, {shape[0]:,} rows of {shape[1]:,}, forward and backward",
                {
                    "the entmax package, exact": both(lambda s=scores, peer=peer: peer(s, -1), scores),
                    OURS: both(lambda s=scores, a=allowed, ours=ours: ours(s, a)[0], scores),
                    "the entmax package, k = 32": both(lambda s=scores, peer=peer: peer(s, -1, 32), scores),
                },
            )


def others() -> Iterator[tuple[str, Ways]]:
    """What torch's kernel does not take, beside the whole matrix by hand."""
    n = 2048
    q, k, v = vectors(1, 8, n, 64, torch.float32, True)
    distance = regard.Distance(8.0)
    plain = {
        "cosine with dropout": (
            lambda: torch.dropout((normalize(q, dim=-1) @ normalize(k, dim=-1).mT).softmax(-1), 0.1, True) @ v,
            lambda: regard.attend(q, k, v, score="cosine", dropout=0.1),
        ),
        "distance": (
            lambda: (torch.cdist(q, k).square() / -128).softmax(-1) @ v,
            lambda: regard.attend(q, k, v, score=distance),
        ),
        "soft cap 20": (
            lambda: (20 * torch.tanh(q @ k.mT / sqrt(64) / 20)).softmax(-1) @ v,
            lambda: regard.attend(q, k, v, score=regard.ScaledDot(softcap=20.0)),
        ),
        "sigmoid": (
            lambda: (q @ k.mT / sqrt(64)).sigmoid() @ v,
            lambda: regard.attend(q, k, v, normalizer="sigmoid"),
        ),
    }  # fmt: skip
    for name, (peer, ours) in plain.items():
        ways = {"the whole matrix by hand": both(peer, q, k, v), OURS: both(ours, q, k, v)}
        yield f"{name}, N = {n:,}, float32, forward and backward", ways


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


TABLES = {f.__name__: f for f in (plain, overhead, window, alibi, relative, half, additive, padded, sparse, others)}


def main() -> None:
    """Print the tables that are asked for; all of them go into the documentation."""
    names = sys.argv[1:] or list(TABLES)
    lines = [f"Measured on {machine()}, medians of five turns (`python benchmarks/attend.py`).", "", *AGAINST]
    print("\n".join(lines))
    for name in names:
        for title, ways in TABLES[name]():
            found = against(title, compare(ways, turns=5), OURS)
            print("\n".join(found), flush=True)
            lines += found
    if len(names) == len(TABLES):
        write("benchmarks.md", "attend", "\n".join(lines))


if __name__ == "__main__":
    main()
