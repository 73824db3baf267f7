"""Find things in pictures: learned queries that look at a grid, matched with the things as a set (DETR).

    pip install "regard[scenes]" scipy                # and Debian's fonts-noto-color-emoji
    python examples/find.py [STEPS]                   # trains for some minutes, prints figures, writes find.png

Each of six queries asks the picture "is there something of mine?", and answers with a name (or none) and a box; what
belongs to which query is no order of ours: the cheapest assignment decides, in every picture anew (Carion et al. 2020).
"""

import sys
from pathlib import Path
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import regard
from regard.data.media import scene_points
from regard.data.scenes.glyphs import Glyphs
from regard.data.scenes.scene import Scene, SceneConfig
from regard.data.scenes.scenes import scenes
from regard.figures.overlay import draw_strip
from regard.models.encoders import GridConfig, GridEncoder

THINGS = SceneConfig(size=64, first=12, longest=2, ranges=("1F400-1F43E", "1F32D-1F37F"))
QUERIES, WIDTH, HEADS, LAYERS = 6, 96, 4, 2
NONE_WEIGHT, BOX_WEIGHT = 0.2, 5.0  # of "nothing here" and of the boxes' L1 distance, as in the paper


class Layer(nn.Module):
    """Queries look at each other, so that two do not take one thing; then at the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.between = regard.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.picture = regard.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.inner = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, WIDTH))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))

    def forward(self, x: Tensor, states: Tensor) -> Tensor:
        x = self.norms[0](x + self.between(x, x, x, need_weights=False)[0])
        x = self.norms[1](x + self.picture(x, states, states, need_weights=False)[0])
        return self.norms[2](x + self.inner(x))  # type: ignore[no-any-return]


class Find(nn.Module):
    """A grid, learned queries, and for each of them the logits of the names (0 is none) and a box.

    Args:
        names: how many there are.
    """

    def __init__(self, names: int) -> None:
        super().__init__()
        self.grid = GridEncoder(GridConfig(kind="grid", size=THINGS.size, first=24, channels=(48,), width=WIDTH))
        self.queries = nn.Parameter(torch.randn(QUERIES, WIDTH) * 0.5)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.name = nn.Linear(WIDTH, 1 + names)
        self.box = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `[B, Q, 1 + names]`, and boxes `[B, Q, 4]`: center across and down, width, height, as shares."""
        states = self.grid(pictures).states
        x = self.queries.expand(len(pictures), -1, -1)
        for layer in self.layers:
            x = layer(x, states)
        return self.name(x), self.box(x).sigmoid()


def truth(scene: Scene, names: dict[str, int]) -> tuple[Tensor, Tensor]:
    """A scene's names `[n]` (1 …) and boxes `[n, 4]`."""
    edges = torch.tensor([thing.box for thing in scene.things])
    boxes = torch.cat([(edges[:, :2] + edges[:, 2:]) / 2, edges[:, 2:] - edges[:, :2]], 1)
    return torch.tensor([names[thing.name] for thing in scene.things]), boxes


def match(logits: Tensor, boxes: Tensor, wanted: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Which query answers for which thing: the assignment with the smallest sum of -p(name) + 5 · |box - box|."""
    cost = -logits.softmax(-1)[:, wanted] + BOX_WEIGHT * torch.cdist(boxes, positions, p=1)
    queries, things = linear_sum_assignment(cost.detach().numpy())
    return torch.from_numpy(queries), torch.from_numpy(things)


def loss_of(logits: Tensor, boxes: Tensor, answers: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Cross-entropy of every query's name, and the distance of the matched boxes; over a batch."""
    names = torch.zeros(logits.shape[:2], dtype=torch.long)
    distance, count = boxes.new_zeros(()), 0
    for n, (wanted, positions) in enumerate(answers):
        queries, things = match(logits[n], boxes[n], wanted, positions)
        names[n, queries] = wanted[things]
        distance = distance + (boxes[n, queries] - positions[things]).abs().sum()
        count += len(things)
    weight = torch.ones(logits.shape[-1])
    weight[0] = NONE_WEIGHT
    return cross_entropy(logits.flatten(0, 1), names.flatten(), weight) + BOX_WEIGHT * distance / count


def overlap(a: Tensor, b: Tensor) -> float:
    """Intersection over union of two boxes."""
    (low_a, high_a), (low_b, high_b) = ((box[:2] - box[2:] / 2, box[:2] + box[2:] / 2) for box in (a, b))
    inside = (torch.minimum(high_a, high_b) - torch.maximum(low_a, low_b)).clamp(min=0).prod()
    return float(inside / (a[2:].prod() + b[2:].prod() - inside))


def measure(model: Find, shown: list[Scene], names: dict[str, int]) -> dict[str, float]:
    """Of all things: found with the right name in a box that overlaps by half; of all answers: right; and how often a
    matched query looks most at a cell within its thing."""
    found = answered = right = pointed = total = 0
    for scene in shown:
        with torch.inference_mode(), regard.observe(model) as seen:
            logits, boxes = model(scene_points(scene)[None])
        wanted, positions = truth(scene, names)
        queries, things = match(logits[0], boxes[0], wanted, positions)
        word_attention = seen[f"layers.{LAYERS - 1}.picture"][0].full()[0].mean(0)
        side = round(word_attention.shape[-1] ** 0.5)
        best = logits[0].argmax(-1)
        answered += int((best > 0).sum())
        total += len(wanted)
        for q, t in zip(queries.tolist(), things.tolist(), strict=True):
            good = int(best[q]) == int(wanted[t]) and overlap(boxes[0, q], positions[t]) >= 0.5
            found, right = found + good, right + good
            row, column = divmod(int(word_attention[q].argmax()), side)
            where = torch.tensor([(column + 0.5) / side, (row + 0.5) / side])
            pointed += bool(((where - positions[t, :2]).abs() <= positions[t, 2:] / 2).all())
    return {
        "found %": 100 * found / total, "answers that are right %": 100 * right / max(1, answered),
        "queries that look at their thing %": 100 * pointed / total,
    }  # fmt: skip


def draw(model: Find, scene: Scene, path: Path, names: list[str]) -> None:
    """The picture, and where each query that found something looked."""
    from PIL import Image

    with torch.inference_mode(), regard.observe(model) as seen:
        logits, _ = model(scene_points(scene)[None])
    word_attention = seen[f"layers.{LAYERS - 1}.picture"][0].full()[0].mean(0)
    best = logits[0].argmax(-1).tolist()
    kept = [q for q in range(QUERIES) if best[q]] or [0]
    titles = [f"query {q}: {names[best[q] - 1] if best[q] else 'nothing'}" for q in kept]
    draw_strip(Image.fromarray(scene.picture), titles, word_attention[kept], path)


def run(config: SceneConfig, steps: int, path: Path, batch: int = 32) -> dict[str, float]:
    """Train, measure on scenes whose company training never saw, draw one."""
    torch.manual_seed(0)
    glyphs = Glyphs(config)
    names = {name: n for n, name in enumerate(glyphs.names, 1)}
    model = Find(len(names))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, total_steps=steps)
    for step in range(steps):
        made = list(scenes(glyphs, config, range(step * batch, (step + 1) * batch), 0, dev=False))
        loss = loss_of(*model(torch.stack([scene_points(one) for one in made])), [truth(one, names) for one in made])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {float(loss.detach()):.3f}", flush=True)
    model.eval()
    shown = list(scenes(glyphs, config, range(200), 1, dev=True))
    numbers = measure(model, shown, names)
    draw(model, next(one for one in shown if len(one.things) == config.most), path, glyphs.names)
    return numbers


def main() -> None:
    """Train and print."""
    numbers: dict[str, Any] = run(THINGS, int(sys.argv[1]) if len(sys.argv) > 1 else 2500, Path("find.png"))
    print("\n".join(f"{name}: {value:.1f}" for name, value in numbers.items()))


if __name__ == "__main__":
    main()
