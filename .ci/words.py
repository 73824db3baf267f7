"""The vocabulary of the code: one word, one meaning, in the field's terms. `make check` runs it.

Three rules: no name of the old dialect is an identifier; no public class name is defined twice; no docstring, comment
or message has a person as its subject where it speaks of tensors and objects.
"""

import ast
import io
import re
import sys
import tokenize
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "regard"

OLD_NAMES = {  # what it was called → the field's term
    "Ready": "Pipeline", "Refused": "InputError", "Inside": "ModelOnly", "Work": "TaskData", "Examples": "BatchSource",
    "Example": "Batch", "Language": "DecoderLM", "Reader": "MaskedLM", "Stacked": "StackedAttention",
    "PictureReader": "VisionTransformer", "Speech": "SpeechTransformer", "reads": "source_encoder",
    "aligned": "ctc_head", "forget": "word_dropout", "cover": "coverage_loss", "guide": "guided_alignment",
    "every": "collect", "places": "positions", "looks": "word_attention", "survey": "statistics",
    "belief": "faithfulness", "believe": "faithfulness", "sensed": "media", "sprites": "glyphs", "again": "reweight",
    "tell": "notify", "ask": "query_changers", "listening": "on_search_result", "alone": "suppress",
}  # fmt: skip
PERSONS = re.compile(r"\b(nobody|somebody|whoever|anybody|who(?!le)|whom|likeliest|must not look)\b", re.IGNORECASE)


def identifiers(tree: ast.AST) -> list[tuple[str, int]]:
    """Names that a module defines: functions, classes, arguments, fields and attributes that are assigned."""
    found: list[tuple[str, int]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.append((node.name, node.lineno))
        elif isinstance(node, ast.arg):
            found.append((node.arg, node.lineno))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.append((node.target.id, node.lineno))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.append((node.attr, node.lineno))
    return found


def prose(text: str) -> list[tuple[str, int]]:
    """Docstrings, comments and messages of a module, with their lines."""
    wanted = (tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", -1))
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return [(line, token.start[0] + n) for token in tokens if token.type in wanted
            for n, line in enumerate(token.string.splitlines())]  # fmt: skip


def main() -> int:
    faults: list[str] = []
    classes: dict[str, list[str]] = defaultdict(list)
    for path in sorted(SOURCE.rglob("*.py")):
        where, text = path.relative_to(ROOT), path.read_text("utf-8")
        tree = ast.parse(text)
        for name, line in identifiers(tree):
            if name in OLD_NAMES:
                faults.append(f"{where}:{line}: {name} is called {OLD_NAMES[name]} now")
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                classes[node.name].append(f"{where}:{node.lineno}")
        for sentence, line in prose(text):
            if person := PERSONS.search(sentence):
                faults.append(f"{where}:{line}: {person[0]!r}: name the tensor or the object: {sentence.strip()[:80]}")
    faults += [f"{name} has several meanings: {', '.join(at)}" for name, at in classes.items() if len(at) > 1]
    print("\n".join(faults) or "words: one meaning each")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
