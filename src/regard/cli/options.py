"""The options that several verbs share, and the way from a name to a pipeline that can serve a verb."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from regard.errors import ConfigError

AUTO = "NAME.look.png"  # the value of a --look that is given without one
FEW = 64  # inputs for which one thread is enough

SEVERAL = "A shipped model's name, or a run's folder; several translators with commas between them are an ensemble."
ModelName = Annotated[str, typer.Argument(help="A shipped model's name, or a run's folder.")]
ModelNames = Annotated[str, typer.Argument(help=SEVERAL)]
Translators = Annotated[str, typer.Option(help=SEVERAL)]
Texts = Annotated[list[str] | None, typer.Argument(help="Texts; none, or -, reads lines from standard input.")]
Files = Annotated[list[str] | None, typer.Argument(help="Files; none, or -, reads their names from standard input.")]
Model = Annotated[str, typer.Option(help="A shipped model's name, or a run's folder.")]
AnyModel = Annotated[
    str, typer.Option(help="A shipped model's name, a run's folder, or one in the Hugging Face layout (hf:NAME).")
]
Beam = Annotated[
    int | None,
    typer.Option(min=1, max=100, help="Hypotheses kept per sentence; 1 is greedy. Default: the model's own."),
]
Look = Annotated[
    list[Path] | None,
    typer.Option(
        help="Draw the alignment to this file (.png, .svg, .pdf; .html: the page); with several inputs, name-1.png, "
        "name-2.png, …"
    ),
]
Draw = Annotated[
    list[str] | None,
    typer.Option(
        help="Show the attention of each word in the terminal, and draw it to this file (.png, .svg, .pdf; .html: "
        "the page), NAME.look.png if none is given; the files of several inputs are numbered."
    ),
]
Smooth = Annotated[
    bool, typer.Option("--smooth", help="Blend the cells of the drawing; by default they are drawn exactly.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object per line: text, tokens, scores and more.")]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", callback=lambda path: None if path == Path("-") else path,
        help="Write the lines to this file instead of standard output.",
    ),
]  # fmt: skip
Device = Annotated[
    str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto: the accelerator that torch finds, or the processor.")
]
Precision = Annotated[
    str, typer.Option(help="Number format of matrix products: float32, bfloat16, int8, or auto: the fastest here.")
]
Engine = Annotated[str, typer.Option(help="What runs the search: regard; or ctranslate2 or onnx (extras).")]
Threads = Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads; all cores by default.")]
Temperature = Annotated[
    float | None,
    typer.Option(help="Sampling temperature: below 1 favors probable tokens; 0 takes the most probable."),
]
TopK = Annotated[int | None, typer.Option(help="Draw from the k most probable tokens.")]
TopP = Annotated[
    float | None, typer.Option(help="Draw from the most probable tokens that together have this probability.")
]
MinP = Annotated[
    float | None, typer.Option(help="Draw from tokens at least this fraction as probable as the best one.")
]
TypicalP = Annotated[
    float | None,
    typer.Option(
        help="Typical sampling: draw from the tokens whose surprise is nearest to its average (the entropy), "
        "of this total probability."
    ),
]
Repetition = Annotated[
    float | None, typer.Option(help="Above 1: tokens that occurred before become less probable. Default: 1.")
]
NoRepeat = Annotated[int | None, typer.Option(help="No n-gram of this length twice; 0, the default, allows all.")]
Seed = Annotated[int | None, typer.Option(help="The same seed draws the same texts.")]
BatchTokens = Annotated[int | None, typer.Option(min=1, help="Input tokens worked on at a time. Default: 4096.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Replace a setting: --set model.width=192; may be repeated.")
]
Run = Annotated[
    Path | None, typer.Option("--folder", "--run", help="The run's folder; runs/NAME-OF-THE-CONFIG by default.")
]


class BareLook(TyperCommand):
    """A verb whose --look may stand without a value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments, a bare --look given its default value."""
        following = [*args[1:], "--"][: len(args)]
        filled = [
            part
            for this, after in zip(args, following, strict=True)
            for part in ([this, AUTO] if this == "--look" and after.startswith("--") else [this])
        ]
        return super().parse_args(ctx, filled)


def load(
    name: str, inputs: list[str] | None = None, threads: int | None = None, device: str = "cpu",
    precision: str = "float32", engine: str = "regard",
) -> Any:  # fmt: skip
    """A pipeline by its model's name, in a process that computes and ends.

    Args:
        name: a shipped model's name or a folder.
        inputs: the arguments to work on: for a few, one thread, since a busy second core only delays it.
        threads: of the processor; chosen from the inputs unless given.
        device: where the model computes.
        precision: of the products of a search.
        engine: what searches.
    """
    from regard.pipelines.load import load as load_pipeline
    from regard.process import keep_freed_memory, leave_out_what_is_loaded, use_threads

    keep_freed_memory()
    if threads is not None:
        use_threads(threads)
    elif inputs and inputs != ["-"] and len(inputs) <= FEW:
        use_threads(1)
    found = load_pipeline(name, device, precision, engine)
    leave_out_what_is_loaded()
    return found


def load_for(
    verb: str, name: str, inputs: list[str] | None = None, threads: int | None = None, device: str = "cpu",
    precision: str = "float32", engine: str = "regard",
) -> Any:  # fmt: skip
    """A pipeline that can serve a verb.

    Raises:
        ConfigError: it serves another, or none.
    """
    found = load(name, inputs, threads, device, precision, engine)
    if found.task == verb:
        return found
    if found.task is None:
        raise found.refusal()
    raise ConfigError(f"{name} is a model for `regard {found.task}`, not for `regard {verb}`")
