"""Make the samples that ship with regard: python examples/samples.py [FOLDER]

Sentences by a small grammar, a picture drawn from circles and lines, and a recording by a synthesizer (espeak-ng, where
it is installed). All of it is regard's own, under the license of the project.
"""

import random
import shutil
import subprocess
import sys
from math import cos, pi, sin
from pathlib import Path

import soundfile
from PIL import Image, ImageDraw

FOLDER = Path(__file__).parents[1] / "src" / "regard" / "samples"
COUNT, HELD_OUT = 4000, 50
Noun = tuple[str, str, str, str]  # French, gender, English, English plural
NOUNS: tuple[Noun, ...] = (
    ("chat", "m", "cat", "cats"), ("chien", "m", "dog", "dogs"), ("oiseau", "m", "bird", "birds"),
    ("lapin", "m", "rabbit", "rabbits"), ("cheval", "m", "horse", "horses"), ("souris", "f", "mouse", "mice"),
    ("vache", "f", "cow", "cows"), ("poule", "f", "hen", "hens"), ("chèvre", "f", "goat", "goats"),
    ("fille", "f", "girl", "girls"), ("garçon", "m", "boy", "boys"), ("femme", "f", "woman", "women"),
    ("voisin", "m", "neighbour", "neighbours"), ("renard", "m", "fox", "foxes"), ("tortue", "f", "turtle", "turtles"),
)  # fmt: skip
ADJECTIVES = (  # masculine, feminine, English; all of them follow the noun
    ("noir", "noire", "black"), ("blanc", "blanche", "white"), ("vert", "verte", "green"), ("gris", "grise", "grey"),
    ("rouge", "rouge", "red"), ("fatigué", "fatiguée", "tired"), ("content", "contente", "happy"),
    ("intelligent", "intelligente", "clever"), ("calme", "calme", "quiet"), ("curieux", "curieuse", "curious"),
)  # fmt: skip
PLACES = (
    ("sur la table", "on the table"), ("dans le jardin", "in the garden"),
    ("devant la maison", "in front of the house"),
    ("sous l'arbre", "under the tree"), ("près de la gare", "near the station"), ("dans la cuisine", "in the kitchen"),
    ("derrière la porte", "behind the door"), ("au bord de la mer", "by the sea"),
)  # fmt: skip
TIMES = (
    ("ce matin", "this morning"), ("tous les jours", "every day"), ("maintenant", "now"), ("le soir", "in the evening"),
    ("aujourd'hui", "today"),
)  # fmt: skip
VERBS = (  # singular, plural, English third person, English base
    ("dort", "dorment", "sleeps", "sleep"), ("mange", "mangent", "eats", "eat"),
    ("chante", "chantent", "sings", "sing"),
    ("attend", "attendent", "waits", "wait"), ("joue", "jouent", "plays", "play"), ("court", "courent", "runs", "run"),
    ("travaille", "travaillent", "works", "work"), ("arrive", "arrivent", "arrives", "arrive"),
)  # fmt: skip
SEEING = (
    ("voit", "voient", "sees", "see"), ("cherche", "cherchent", "looks for", "look for"),
    ("regarde", "regardent", "watches", "watch"), ("aime", "aiment", "loves", "love"),
    ("connaît", "connaissent", "knows", "know"), ("suit", "suivent", "follows", "follow"),
)  # fmt: skip
SINGULAR = (("le", "la", "the"), ("un", "une", "a"), ("ce", "cette", "this"), ("mon", "ma", "my"), ("son", "sa", "her"))
PLURAL = (("les", "the"), ("des", "some"), ("ces", "these"), ("mes", "my"))


def plural(word: str) -> str:
    """A French plural."""
    if word.endswith(("s", "x")):
        return word
    return word.removesuffix("al") + "aux" if word.endswith("al") else word + ("x" if word.endswith("eau") else "s")


def group(draw: random.Random, several: bool) -> tuple[str, str]:
    """A noun with its determiner, and often an adjective, in both languages."""
    french, gender, english, many = draw.choice(NOUNS)
    adjective = draw.choice(ADJECTIVES) if draw.random() < 0.65 else None
    feminine = gender == "f"
    if several:
        lead, its = draw.choice(PLURAL)
        french, english = plural(french), many
        added = plural(adjective[feminine]) if adjective else ""
    else:
        one = draw.choice(SINGULAR)
        lead, its = one[feminine], one[2]
        added = adjective[feminine] if adjective else ""
    words = f"{adjective[2]} {english}" if adjective else english
    if its == "a" and words[0] in "aeiou":
        its = "an"
    return f"{lead} {french} {added}".strip(), f"{its} {words}"


def sentence(draw: random.Random) -> tuple[str, str]:
    """A sentence in French and in English."""
    several = draw.random() < 0.35
    french, english = group(draw, several)
    negated, seeing = draw.random() < 0.2, draw.random() < 0.45
    verb = draw.choice(SEEING if seeing else VERBS)
    does = f"ne {verb[several]} pas" if negated else verb[several]
    if negated:
        does = does.replace("ne a", "n'a")
        do = f"{'do' if several else 'does'} not {verb[3]}"
    else:
        do = verb[3] if several else verb[2]
    ends = [group(draw, draw.random() < 0.3)] if seeing else []
    if draw.random() < 0.6:
        ends.append(draw.choice(PLACES))
    if draw.random() < 0.35:
        ends.append(draw.choice(TIMES))
    after = " ".join(one for one, _ in ends), " ".join(other for _, other in ends)
    end = "." if draw.random() < 0.6 else ""
    return f"{french} {does} {after[0]}".strip() + end, f"{english} {do} {after[1]}".strip() + end


def sentences() -> list[tuple[str, str]]:
    """Different sentences, always the same ones."""
    draw, found = random.Random(1), {}
    while len(found) < COUNT + HELD_OUT:
        french, english = sentence(draw)
        found.setdefault(french, english)
    return list(found.items())


def picture(side: int = 256, fine: int = 4) -> Image.Image:
    """An umbrella left of a red apple, drawn four times as large and reduced."""
    whole = Image.new("RGB", (side * fine, side * fine), "white")
    pen, r = ImageDraw.Draw(whole), 46 * fine
    x, y = 68 * fine, 128 * fine
    pen.pieslice((x - r, y - r, x + r, y + r), 180, 360, fill="#8e44ad")
    pen.line((x, y, x, y + 0.85 * r), fill="#555555", width=r // 12)
    pen.arc((x - 0.3 * r, y + 0.65 * r, x, y + 0.98 * r), 0, 180, fill="#555555", width=r // 12)
    x = 188 * fine
    pen.ellipse((x - r, y - 0.8 * r, x + 0.15 * r, y + r), fill="#d22f27")
    pen.ellipse((x - 0.15 * r, y - 0.8 * r, x + r, y + r), fill="#d22f27")
    pen.line((x, y - 0.6 * r, x + 0.12 * r, y - 1.15 * r), fill="#6a462f", width=r // 8)
    leaf = [(x + (0.4 + 0.3 * cos(a * pi / 12)) * r, y + (-1 + 0.15 * sin(a * pi / 12)) * r) for a in range(24)]
    pen.polygon(leaf, fill="#5c9e31")
    return whole.resize((side, side), Image.Resampling.LANCZOS)


def recording(path: Path) -> None:
    """Three digits by espeak-ng's British voice; needs espeak-ng."""
    spoken = path.with_suffix(".wav")
    subprocess.run(["espeak-ng", "-v", "en-gb", "-s", "130", "-w", str(spoken), "nine, five, two"], check=True)
    samples, rate = soundfile.read(spoken, dtype="int16")
    soundfile.write(path, samples, rate)
    spoken.unlink()


def make(folder: Path) -> None:
    """Write the samples; the recording only where espeak-ng is."""
    pairs = sentences()
    train, held_out = pairs[:COUNT], pairs[COUNT:]
    texts = {
        "pairs.fr-en.tsv": "".join(f"{french}\t{english}\n" for french, english in train),
        "source.txt": "".join(f"{french}\n" for french, _ in held_out),
        "reference.txt": "".join(f"{english}\n" for _, english in held_out),
        "sentences.txt": "Le chat noir dort sur la table.\nOù est la gare ?\nJe ne comprends pas.\nMerci beaucoup !\n",
        "terms.tsv": "chat\tkitten\ngare\ttrain station\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, "utf-8")
    picture().save(folder / "picture.png", optimize=True)
    if shutil.which("espeak-ng"):
        recording(folder / "recording.flac")


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
