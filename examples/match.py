"""Match pictures and names: two encoders that never look at each other, trained to agree (as CLIP).

    pip install "regard[scenes]"                      # and Debian's fonts-noto-color-emoji
    python examples/match.py [STEPS]                  # trains for some minutes, prints figures, writes match.png

Each side makes one vector: attention with one learned query pools the picture's grid, and another the name's letters.
The loss is the cross-entropy of the right partner among all of a batch, both ways (Radford et al. 2021, figure 3).
There is no attention between picture and name: what they share is the space of the vectors.
"""

import random
import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

import regard
from regard.data.pictures import as_tensor
from regard.data.scenes.glyphs import Glyphs
from regard.data.scenes.scene import Scene, SceneConfig
from regard.data.scenes.scenes import make_scene
from regard.figures.overlay import draw_strip
from regard.models.encoders import GridConfig, GridEncoder
from regard.nn.recurrent import RecurrentEncoder

THINGS = SceneConfig(size=64, most=1, longest=2, first=120, ranges=("1F400-1F43E", "1F980-1F9AE", "1F32D-1F37F"))
WIDTH, LETTERS = 96, 256


class Pool(nn.Module):
    """One learned query looks at states and takes what it finds: c = Σ α_i v_i."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, WIDTH) * 0.5)
        self.look = regard.nn.MultiheadAttention(WIDTH, 4, batch_first=True)

    def forward(self, states: Tensor, allowed: Tensor | None = None) -> Tensor:
        """`[B, n, d]` to `[B, d]`."""
        hidden = None if allowed is None else ~allowed
        query = self.query.expand(len(states), -1, -1)
        return self.look(query, states, states, key_padding_mask=hidden, need_weights=False)[0][:, 0]  # type: ignore[no-any-return]


class Match(nn.Module):
    """Two encoders into one space, and the temperature between them."""

    def __init__(self) -> None:
        super().__init__()
        self.grid = GridEncoder(GridConfig(kind="grid", size=THINGS.size, first=24, channels=(48,), width=WIDTH))
        self.letters = nn.Embedding(LETTERS, 32)
        self.reader = RecurrentEncoder("gru", 32, WIDTH // 2)
        self.picture_pool, self.name_pool = Pool(), Pool()
        self.scale = nn.Parameter(torch.tensor(2.3))

    def picture(self, pictures: Tensor) -> Tensor:
        """Vectors of length 1, `[B, d]`."""
        return normalize(self.picture_pool(self.grid(pictures).states), dim=-1)

    def name(self, names: list[str]) -> Tensor:
        """Vectors of length 1, `[B, d]`."""
        rows = [torch.tensor(list(name.encode())) for name in names]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        allowed = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
        states, _ = self.reader(self.letters(ids), allowed)
        return normalize(self.name_pool(states, allowed), dim=-1)

    def forward(self, pictures: Tensor, names: list[str]) -> Tensor:
        """Similarities of all pictures with all names, `[B, B]`, as logits."""
        return self.picture(pictures) @ self.name(names).T * self.scale.exp().clamp(max=100)


def shown(glyphs: Glyphs, config: SceneConfig, dice: random.Random, chosen: list[int]) -> list[Scene]:
    """A picture of each of the chosen things, at another place and on another ground every time."""
    return [make_scene(glyphs.only([number]), config, dice, dev=False, count=1) for number in chosen]


def points(some: list[Scene]) -> Tensor:
    """`[B, 3, size, size]`."""
    return torch.stack([as_tensor(one.picture) for one in some])


def run(config: SceneConfig, steps: int, path: Path, batch: int = 48) -> dict[str, float]:
    """Train, measure on pictures that were never shown, draw four of them."""
    torch.manual_seed(0)
    glyphs, dice = Glyphs(config), random.Random(0)
    model = Match()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        some = shown(glyphs, config, dice, dice.sample(range(len(glyphs)), min(batch, len(glyphs))))
        logits = model(points(some), [one.caption for one in some])
        right = torch.arange(len(some))
        loss = (cross_entropy(logits, right) + cross_entropy(logits.T, right)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {float(loss.detach()):.3f}", flush=True)
    model.eval()
    fresh = shown(glyphs, config, random.Random(1), list(range(len(glyphs))) * 2)
    wanted = torch.arange(len(glyphs)).repeat(2)
    with torch.inference_mode():
        vectors, names = model.picture(points(fresh)), model.name(glyphs.names)
        alike = vectors @ names.T
        draw(model, fresh[:: max(1, len(fresh) // 4)][:4], path)
    ranks = (alike > alike.gather(1, wanted[:, None])).sum(1)
    return {
        "names": len(glyphs), "the right name first %": 100 * float((ranks == 0).float().mean()),
        "among the first five %": 100 * float((ranks < 5).float().mean()),
    }  # fmt: skip


def draw(model: Match, some: list[Scene], path: Path) -> None:
    """Where the pool looked, in one row of pictures."""
    side = some[0].picture.shape[0]
    with regard.observe(model) as seen:
        model.picture(points(some))
    word_attention = seen["picture_pool.look"][0].full().mean(1)[:, 0]
    for number, (scene, weights) in enumerate(zip(some, word_attention, strict=True)):
        picture = Image.fromarray(scene.picture).resize((side, side))
        draw_strip(picture, [scene.caption], weights[None], path.with_stem(f"{path.stem}-{number + 1}"))


def main() -> None:
    """Train and print."""
    numbers = run(THINGS, int(sys.argv[1]) if len(sys.argv) > 1 else 1500, Path("match.png"))
    print("\n".join(f"{name}: {value:.1f}" for name, value in numbers.items()))


if __name__ == "__main__":
    main()
