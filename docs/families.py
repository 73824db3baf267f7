"""Run the tests of every family and write the table of docs/text_models.md: python docs/families.py."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
PAGE, MARK = ROOT / "docs" / "text_models.md", "<!-- families -->"
FEATURES = {
    "loads, all layers agree": "test_every_layer_and_the_logits_are_theirs",
    "generates the same tokens": "test_generations_are_theirs_token_for_token",
    "observed maps agree": "test_observe_sees_what_their_eager_attention_says",
    "exported and reloaded": "test_exported_back_transformers_loads_the_same",
}
FAMILIES = {
    "BERT, MiniLM": "bert", "RoBERTa": "roberta", "GPT-2": "gpt2", "Llama, SmolLM2": "llama", "Mistral": "mistral",
    "Qwen2": "qwen2", "Qwen3": "qwen3", "Marian (opus-mt)": "marian", "T5": "t5", "ViT": "vit", "Whisper": "whisper",
}  # fmt: skip


def outcomes() -> dict[tuple[str, str], Counter[str]]:
    """How the tests of (family, test) ended."""
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        tests = [str(ROOT / "tests" / "pretrained" / f"test_{name}.py") for name in ("families", "senses")]
        command = [sys.executable, "-m", "pytest", "-q", *tests, f"--junitxml={report}"]
        subprocess.run(command, check=False, cwd=ROOT)
        cases = ElementTree.parse(report).getroot().iter("testcase")
        found: dict[tuple[str, str], Counter[str]] = {}
        for case in cases:
            name, _, rest = case.attrib["name"].partition("[")
            family = re.split(r"[ \]-]", re.sub(r"^\d+-", "", rest))[0]
            ended = "failed" if case.find("failure") is not None or case.find("error") is not None else "passed"
            ended = "skipped" if case.find("skipped") is not None else ended
            found.setdefault((family, name), Counter())[ended] += 1
    return found


def cell(ended: Counter[str]) -> str:
    """What stands in the table."""
    if ended["failed"]:
        return f"{ended['failed']} of {ended.total()} fail"
    return f"✓ {ended['passed']}" if ended["passed"] else "–"


def main() -> None:
    """Write the table into the page."""
    ended = outcomes()
    lines = [f"| family | {' | '.join(FEATURES)} |", "|---|" + "---|" * len(FEATURES)]
    for title, family in FAMILIES.items():
        cells = [cell(ended.get((family, test), Counter())) for test in FEATURES.values()]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    before, _, after = PAGE.read_text("utf-8").split(MARK)
    PAGE.write_text(f"{before}{MARK}\n" + "\n".join(lines) + f"\n{MARK}{after}", "utf-8")


if __name__ == "__main__":
    main()
