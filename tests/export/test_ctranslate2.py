"""CTranslate2 runs what regard exports: the same tokens in float32, for every setting that it can express."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import regard
from regard.bundle import Bundle
from regard.errors import ConfigError
from regard.export import ctranslate2 as export
from regard.export.folder import export_bundle
from regard.models.build import build
from regard.models.recurrent import RecurrentConfig
from regard.models.transformer import TransformerConfig
from regard.pipelines.translator import Translator

CONFIGS = {
    "plain": {},
    "after": {"norm": "after"},
    "gated rms": {"normalization": "rms", "epsilon": 1e-6, "gated": True, "activation": "silu", "ffn_biases": False},
    "halves": {"positions": "sinusoidal_halves", "activation": "gelu", "scaled": False},
    "learned": {"positions": "learned", "length": 64, "first_position": 2, "embedding_norm": True, "tied": False},
    "scaled output": {"scaled_output": True, "activation": "gelu_tanh", "output_bias": False, "biases": ("query",)},
}
RUN = """
import json, sys
import ctranslate2  # a process of its own: it brings its own OpenMP
translator = ctranslate2.Translator(sys.argv[1], compute_type=sys.argv[2], intra_threads=1)
rows = json.loads(sys.stdin.read())
found = translator.translate_batch(rows, beam_size=1, max_decoding_length=24)
print(json.dumps([one.hypotheses[0] for one in found]))
"""


def translated(folder: Path, rows: list[list[str]], compute: str = "float32") -> list[list[str]]:
    import json

    command = [sys.executable, "-c", RUN, str(folder), compute]
    done = subprocess.run(command, input=json.dumps(rows), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[list[str]] = json.loads(done.stdout)
    return found


class Names:
    """A vocabulary of numbers."""

    pad, bos, eos = 0, 1, 2

    def __len__(self) -> int:
        return 40

    def tokens(self, ids):
        return [["<pad>", "<s>", "</s>", "<unk>", *(f"t{n}" for n in range(4, 40))][i] for i in ids]

    def save(self, path: Path) -> None:
        path.write_text("{}")


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", CONFIGS)
def test_tokens_are_equal(name: str, tmp_path: Path) -> None:
    torch.manual_seed(4)
    sizes = {"width": 32, "encoder_layers": 2, "decoder_layers": 2, "heads": 4, "ffn_width": 24}
    config = TransformerConfig(kind="transformer", **{**sizes, **CONFIGS[name]})
    model = build(40, config).eval()
    for part, weight in model.named_parameters():
        if "norm" in part or "bias" in part:
            torch.nn.init.normal_(weight, 0.5, 0.3)
    before = {part: weight.clone() for part, weight in model.state_dict().items()}
    export.write(Bundle("translate", ("a", "b"), model, config, Names()), tmp_path / "out")
    for part, weight in model.state_dict().items():
        assert torch.equal(weight, before[part]), part  # what is written is a copy
    rows = [torch.randint(4, 40, (n,)).tolist() for n in (1, 4, 9)]
    expected = []
    for row in rows:
        memory = model.encode(torch.tensor([[*row, 2]]))
        state, token, tokens = model.start(memory), 1, []
        for _ in range(24):
            logits, state = model.step(torch.tensor([[token]]), state)
            token = int(logits.argmax())
            if token == 2:
                break
            tokens.append(token)
        expected.append(Names().tokens(tokens))
    assert translated(tmp_path / "out", [Names().tokens(row) for row in rows]) == expected


def test_a_shipped_translator(tmp_path: Path) -> None:
    model = regard.load("fr-en")
    texts = ["le chat noir dort sur le lit", "Je ne sais pas où il est allé.", "Merci beaucoup !"]
    rows = [model.tokenizer.tokens(model.tokenizer.encode(text)) for text in texts]
    ours = [[token for token in one.tokens if token != "</s>"] for one in model(texts, beam=1)]
    for precision in ("float32", "int8"):
        export_bundle(model, tmp_path / precision, precision, "ctranslate2")
        found = translated(tmp_path / precision, rows, "default")
        assert sum(a == b for a, b in zip(ours, found, strict=True)) >= (3 if precision == "float32" else 2)
    assert (tmp_path / "int8" / "model.bin").stat().st_size < 0.4 * (tmp_path / "float32" / "model.bin").stat().st_size


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": "additive"}, r"cannot express model\.score = 'additive'"),
        ({"cross_score": "dot"}, r"cannot express model\.score = 'scaled_dot'"),
        ({"normalizer": "sparsemax"}, r"model\.normalizer = 'sparsemax'"),
        ({"context": "running_mean"}, r"model\.context = 'running_mean'"),
        ({"positions": "alibi"}, r"model\.positions = 'alibi'"),
        ({"window": 3}, r"model\.window = 3"),
        ({"convolution": 2}, r"model\.convolution = 2"),
        ({"head_width": 16}, r"model\.head_width = 16"),
        ({"key_heads": 2}, r"model\.key_heads = 2"),
        ({"epsilon": 1e-3}, r"model\.epsilon = 0\.001"),
    ],
)
def test_what_it_cannot_express_is_named(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    config = TransformerConfig(
        kind="transformer", width=32, encoder_layers=1, decoder_layers=1, heads=4, ffn_width=8, **changes
    )
    with pytest.raises(ConfigError, match=message):
        export.write(Bundle("translate", ("a", "b"), build(40, config), config, Names()), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_models_are_named(tiny_run: Path, tmp_path: Path) -> None:
    model = regard.load(tiny_run)
    assert isinstance(model, Translator)
    if isinstance(model.bundle.model_config, RecurrentConfig):
        with pytest.raises(ConfigError, match=r'CTranslate2 cannot express model\.kind = "recurrent"'):
            export_bundle(model, tmp_path / "out", "float32", "ctranslate2")
    else:
        export_bundle(model, tmp_path / "out", "float32", "ctranslate2")
        assert {path.name for path in (tmp_path / "out").iterdir()} >= {"model.bin", "config.json", "tokenizer.json"}


def test_without_the_package_the_message_names_it_and_no_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    with pytest.raises(
        ConfigError, match=r"^CTranslate2's models need the package ctranslate2: pip install ctranslate2$"
    ):
        export.write(regard.load("fr-en-fast").bundle, tmp_path / "out")
