"""What findings are run on: a text, a file or a dict of arguments, one or several; and what is refused."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import regard
from random_outputs import completer, recurrent, translator
from regard.analysis.base import check_index
from regard.analysis.explanations import explanations
from regard.analysis.lens import tune_lens
from regard.analysis.quality import lost_quality
from regard.analysis.reasons import reasons
from regard.errors import ConfigError


def least(output: torch.Tensor) -> torch.Tensor:
    return output.float().amin()


def test_a_single_text_is_one_input_and_not_its_letters():
    model = regard.load("fr-en")
    text = "le chien noir court dans la rue et le chat noir dort dans le jardin"
    assert regard.roles(model, text) == regard.roles(model, [text])
    own = model.forward_pass(text).arguments
    assert regard.roles(model.model, own) == regard.roles(model.model, [own])
    with pytest.raises(ConfigError, match="1 inputs and 1 metrics: ablations needs two inputs or more"):
        regard.ablations(model, text, least)
    with pytest.raises(ConfigError, match="1 inputs and 1 references: lost_quality needs two inputs or more"):
        lost_quality(model, text, "the black dog runs in the street and the black cat sleeps in the garden")
    for one in (text, own):
        of = model if one is text else model.model
        assert tune_lens(of, one, steps=1).divergences == tune_lens(of, [one], steps=1).divergences


@pytest.mark.parametrize("make", [translator, recurrent, completer])
@pytest.mark.parametrize("arguments", [{}, {"source": torch.tensor([[5, 6]]), "sauce": 1}])
def test_arguments_that_a_forward_does_not_take(make, arguments):
    model = make().model
    for find in (
        lambda: regard.logit_lens(model, arguments),
        lambda: regard.roles(model, [arguments]),
        lambda: regard.patch(model, arguments, arguments, least),
        lambda: regard.attribute_patches(model, arguments, arguments, least),
        lambda: regard.ablations(model, [arguments, arguments], least),
    ):
        got = "source, sauce" if arguments else "no arguments"
        with pytest.raises(ConfigError, match=rf"^{type(model).__name__}\.forward: .* argument.*; got {got}$"):
            find()


# in a process of its own: the checks of types while tests run would refuse these first
NO_INPUTS = """
import regard
from regard.errors import RegardError

for name in ("fr-en", "shakespeare", "english", "emoji", "spelling"):
    model = regard.load(name)
    for given in (None, 3, 2.5, ["a"]):
        for find in (
            lambda: regard.logit_lens(model, given),
            lambda: regard.patch(model, given, given, lambda output: output.amin()),
            lambda: model([given]),
        ):
            try:
                find()
            except RegardError as error:
                text = f"expected a text (str); got {type(given).__name__}: {given!r}"
                file = f"expected a file's path, its bytes, or a picture; got {type(given).__name__}: {given!r}"
                assert str(error) in (text, file), (name, given, error)
            else:
                raise AssertionError((name, given))
model = regard.load("fr-en")
with regard.observe(model) as seen:
    made = model("le chat noir")
for find in (
    lambda: regard.why(made, 0, 0),
    lambda: regard.why(model, 0, 0),
    lambda: regard.why(seen["decoder.layers.0.cross"], 0, 0),
    lambda: regard.flow(made),
    lambda: regard.flow(model),
    lambda: regard.flow(seen),
):
    try:
        find()
    except RegardError as error:
        assert str(error).startswith("expected an AttentionMap, such as generation.attention[site] or"), error
    else:
        raise AssertionError("no map")
for step in ("0", None, 1.0):
    for find in (regard.contributions, regard.faithfulness):
        try:
            find(made, step)
        except RegardError as error:
            of_one = "step: expected the index of a token (int); got "
            of_several = "faithfulness: step must be a whole number or a list of whole numbers; got "
            assert str(error).startswith((of_one, of_several)), (step, error)
        else:
            raise AssertionError(step)
"""


def test_what_is_no_input_no_map_and_no_step():
    done = subprocess.run([sys.executable, "-c", NO_INPUTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_pictures_and_sounds_have_no_words_to_take_out(tmp_path: Path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    samples = Path(regard.__file__).parent / "samples"
    for name, file in (("emoji", tmp_path / "red.png"), ("spelling", samples / "recording.flac")):
        made = regard.load(name)(file)
        for find in (regard.faithfulness, lambda some, step: explanations(some, [step]), lambda some, _: reasons(some)):
            with pytest.raises(
                ConfigError, match="the input has no words that could be taken out: expected a translat"
            ):
                find(made, 0)


def test_findings_refuse_tensors_without_numbers() -> None:
    model, x = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), torch.rand(1, 3, 8)
    without = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, device="meta").eval()
    for find in (
        lambda model, inputs: regard.patch(model, inputs, inputs, lambda output: output[0, 0, 0]),
        lambda model, inputs: regard.ablations(model, [inputs, inputs], lambda output: output[0, 0, 0]),
        lambda model, inputs: regard.roles(model, inputs),
    ):
        with pytest.raises(ConfigError, match=r"self_attn\.in_proj_weight is on the meta device, which holds shapes"):
            find(without, {"src": x})
        with pytest.raises(ConfigError, match="src is on the meta device, which holds shapes and no numbers"):
            find(model, {"src": x.to("meta")})


@pytest.mark.parametrize("index", [0.5, None, torch.ones(2, 2)])
def test_what_is_no_index_is_refused_in_one_line(index: object) -> None:
    with pytest.raises(ConfigError, match=r"^i: expected the index of a token \(int\); got [A-Za-z]+: [^\n]+$"):
        check_index("i", index)
