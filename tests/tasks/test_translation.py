"""Translation: each side by its own tokenizer."""

from pathlib import Path
from typing import Any

import pytest

import regard
from regard.cli.evaluate import _held_out
from regard.data.pairs import Pairs
from regard.tasks import translation
from regard.tasks.translation import encode
from regard.text.pretrained import Pieces
from regard.text.tokenizer import Tokenizer


class TwoSided:
    """Source ids are lengths of words, target ids numbers of their places."""

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [[len(word) for word in text.split()] for text in texts]

    def encode_target_batch(self, texts: list[str]) -> list[list[int]]:
        return [[-n for n, _ in enumerate(text.split(), 1)] for text in texts]


def test_references_are_encoded_by_the_target_side() -> None:
    assert encode(TwoSided(), Pairs(["le chat"], ["the black cat"])) == [([2, 4], [-1, -2, -3])]


@pytest.mark.parametrize(("lower", "bleu"), [(True, 100.0), (False, 0.0)])
def test_a_model_that_writes_no_capitals_is_measured_without_them(
    lower: bool, bleu: float, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = ["the black cat sleeps there"]
    monkeypatch.setattr(translation, "translations", lambda *_, **__: outputs)
    monkeypatch.setattr(Tokenizer, "lowers", lower)
    found = translation._decoded_scores(regard.load(tiny_run), Pairs([""], ["THE BLACK CAT SLEEPS THERE"]))
    assert found["bleu"] == pytest.approx(bleu)
    assert (found["chrf"] > 99) == lower


def test_a_reference_longer_than_any_output_is_refused_at_its_line(tiny_run: Path, tmp_path: Path) -> None:
    source, reference = tmp_path / "source.txt", tmp_path / "reference.txt"
    source.write_text("le chat\nle chien\n", "utf-8")
    reference.write_text(f"the cat\n{'dog ' * 1000}\n", "utf-8")
    model = regard.load(tiny_run)
    with pytest.raises(regard.DataError, match=r"reference\.txt:2: a text of .* is too long") as caught:
        translation.evaluate(model, source, reference)
    with pytest.raises(regard.RegardError) as of_score:
        model.score(["le chien"], ["dog " * 1000])
    assert str(caught.value).endswith(str(of_score.value).partition("cannot be scored: ")[2])


def test_pairs_with_line_breaks_are_measured_line_by_line(tiny_run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    pairs = Pairs(["le\nchat", "le chien"], ["the cat", "the\n\ndog"])
    monkeypatch.setattr("regard.experiment.held_out", lambda *_: pairs)
    source, reference = _held_out(str(tiny_run), "dev", tmp_path)
    assert source.read_text("utf-8") == "le chat\nle chien\n"
    assert reference.read_text("utf-8") == "the cat\nthe  dog\n"


def test_marians_target_side_has_pieces_of_its_own(tmp_path: Path) -> None:
    sentencepiece: Any = pytest.importorskip("sentencepiece")
    names = ["</s>", "<unk>"]
    for side, text in (
        ("source", "le chat dort\nle chien court\n" * 30),
        ("target", "the cat sleeps\na dog ran\n" * 30),
    ):
        (tmp_path / side).write_text(text)
        sentencepiece.SentencePieceTrainer.train(
            input=str(tmp_path / side), model_prefix=str(tmp_path / side), vocab_size=30, hard_vocab_limit=False,
            minloglevel=2,
        )  # fmt: skip
        (tmp_path / f"{side}.model").rename(tmp_path / f"{side}.spm")
        made = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / f"{side}.spm"))
        names += [made.id_to_piece(i) for i in range(made.get_piece_size())]
    import json

    names = list(dict.fromkeys([*names, "<pad>"]))
    (tmp_path / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    tokenizer = Pieces(tmp_path, {"eos": 0, "pad": len(names) - 1}, len(names))
    text = "the cat ran"
    assert tokenizer.encode_target(text) == [names.index(piece) for piece in made.encode(text, out_type=str)]
    assert tokenizer.encode_target_batch([text]) == [tokenizer.encode_target(text)]
    assert tokenizer.encode_target(text) != tokenizer.encode(text)
