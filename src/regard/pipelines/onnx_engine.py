"""A translator over onnxruntime: its graphs encode and take the steps of regard's own search.

What the graphs do not show is refused by name: maps and alignments, traces, glossaries and protected parts (whose
places are read from the attention), observation and interventions.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from regard.arguments import check_settings
from regard.attention.maps.map import AttentionMap
from regard.attention.watch import has_search_listeners, is_changing
from regard.bundle import Bundle
from regard.errors import ConfigError
from regard.export import onnx as export
from regard.models.seq2seq import Memory, Step
from regard.nn.state import State, gather_hypotheses
from regard.pipelines.base import Encoded, InputError
from regard.pipelines.generation import Alignment, Generation
from regard.pipelines.translator import Translator

WITHOUT = "load the model without engine"
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class GraphMemory(Memory):
    """Memory of a graph: named tensors `[B, …]`, and which of their axes is the source; `states` are empty."""

    named: Tensors = field(default_factory=dict)
    along: Mapping[str, int] = field(default_factory=dict)

    def one(self, source: int) -> "GraphMemory":
        end = int(self.allowed[source].nonzero().max()) + 1
        own = {
            name: part[source : source + 1].narrow(self.along[name], 0, end) if name in self.along
            else part[source : source + 1]
            for name, part in self.named.items()
        }  # fmt: skip
        rows = slice(source, source + 1)
        return replace(self, states=self.states[rows, :end], allowed=self.allowed[rows, :end], named=own)

    @classmethod
    def together(cls, parts: Sequence[Any]) -> "GraphMemory":
        first = parts[0]

        def joined(name: str) -> Tensor:
            some = [part.named[name] for part in parts]
            if name not in first.along:
                return torch.cat(some)
            axis = first.along[name]
            return pad_sequence([one[0].movedim(axis - 1, 0) for one in some], batch_first=True).movedim(1, axis)

        allowed = pad_sequence([part.allowed[0] for part in parts], batch_first=True)
        named = {name: joined(name) for name in first.named}
        return cls(first.states.new_zeros(*allowed.shape, 0), allowed, named=named, along=first.along)


@dataclass(frozen=True, eq=False)
class GraphState(State):
    """State of a graph's decoder.

    Attributes:
        fixed: what no step changes, `[N, …]`.
        past: what every step changes, `[N, K, …]`.
        repeated: `fixed` with a row for each hypothesis, `[N · K, …]`; empty where it is not known.
        record: maps need queries, which the graph does not give.
    """

    fixed: Tensors
    past: Tensors
    repeated: Tensors = field(default_factory=dict)
    record: bool = False

    def select(self, parents: Int[Tensor, "N K"]) -> "GraphState":
        past = {name: gather_hypotheses(part, parents) for name, part in self.past.items()}
        before = next(iter(self.past.values())).shape[1]
        return replace(self, past=past, repeated=self.repeated if parents.shape[1] == before else {})

    def keep(self, sentences: Int[Tensor, "M"]) -> "GraphState":
        fixed, past = ({name: part[sentences] for name, part in some.items()} for some in (self.fixed, self.past))
        return GraphState(fixed, past)

    def one(self, sentence: int, hypothesis: int) -> "GraphState":  # noqa: ARG002 - there are no maps to keep
        return GraphState({}, {})


class Graphs:
    """The two graphs of a model in onnxruntime, with the interface of an encoder–decoder.

    Args:
        bundle: the model.

    Raises:
        ConfigError: onnxruntime or what writes the graphs is not installed; they cannot express the model.
    """

    attends_unrecorded = True

    def __init__(self, bundle: Bundle) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ConfigError(
                "ONNX graphs need onnx, onnxscript and onnxruntime: pip install 'regard[onnx]'"
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
        with TemporaryDirectory() as folder:
            into = Path(folder) / "graphs"
            export.write(bundle, into)
            self.described = json.loads((into / "onnx.json").read_text("utf-8"))["graphs"]
            self.sessions = {
                name: onnxruntime.InferenceSession(
                    (into / graph["file"]).read_bytes(), options, providers=["CPUExecutionProvider"]
                )
                for name, graph in self.described.items()
            }

    def encode(self, source: Tensor, allowed: Tensor) -> GraphMemory:
        """The memory of a source of token ids `[B, S]`; `allowed` is True at real positions."""
        named = self._run("encoder", {"tokens": source, "allowed": allowed})
        shapes = {name: one["shape"] for name, one in self.described["encoder"]["outputs"].items()}
        along = {name: shape.index("source") for name, shape in shapes.items() if "source" in shape}
        return GraphMemory(torch.zeros(*allowed.shape, 0), allowed, named=named, along=along)

    def start(self, memory: GraphMemory, record: bool = False) -> GraphState:  # noqa: ARG002 - it has no queries
        """The state before the first token, one hypothesis per sentence."""
        past = {name: part[:, None] for name, part in memory.named.items() if name.startswith("past_")}
        return GraphState({name: part for name, part in memory.named.items() if name.startswith("memory_")}, past)

    def step(self, token: Int[Tensor, "N K"], state: GraphState) -> Step:
        """Logits `[N, K, V]` of the next token after `token`, and the state after it."""
        shape = token.shape
        repeated = state.repeated or {
            name: part.repeat_interleave(shape[1], 0) for name, part in state.fixed.items()
        }  # fmt: skip
        past = {name: part.flatten(0, 1) for name, part in state.past.items()}
        found = self._run("decoder", {"tokens": token.reshape(-1, 1), **repeated, **past})
        logits = found.pop("logits").unflatten(0, shape)
        after = {f"past_{name.removeprefix('present_')}": part.unflatten(0, shape) for name, part in found.items()}
        return Step(logits, replace(state, past=after, repeated=repeated))

    def maps(self, state: GraphState) -> dict[str, AttentionMap]:  # noqa: ARG002 - it has no queries
        """None: a graph does not give its attention."""
        return {}

    def attended(self, state: GraphState, site: str, heads: Sequence[int]) -> None:  # noqa: ARG002 - likewise
        """None: a graph does not give its attention."""
        return

    def _run(self, name: str, inputs: Tensors) -> dict[str, Tensor]:
        names = list(self.described[name]["outputs"])
        given = {part: inputs[part].contiguous().numpy() for part in self.described[name]["inputs"]}
        found = self.sessions[name].run(names, given)
        return {part: torch.from_numpy(array) for part, array in zip(names, found, strict=True)}


@dataclass(frozen=True, eq=False, kw_only=True)
class Unseen(Generation):
    """A translation whose attention its engine does not give."""

    @cached_property
    def alignment(self) -> Alignment:
        """Refused.

        Raises:
            ConfigError: always, but of an empty text.
        """
        if not self.ids:
            return Alignment(torch.zeros(0, 0), [], [], "", [])
        raise ConfigError(f'engine = "onnx" shows no attention: {WITHOUT} for an alignment')

    @cached_property
    def trace(self) -> Any:
        """Refused.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f'engine = "onnx" shows no steps: {WITHOUT} for a trace')


class OnnxRuntime(Translator):
    """A translator whose encoder and steps run in onnxruntime, in float32.

    The search is regard's own, so that beams, draws, forced and forbidden words, alternatives and scores are the same.

    Args:
        bundle: the model.
        name: what it was loaded by.

    Raises:
        ConfigError: as of `Graphs`.
    """

    protects = False
    result = Unseen

    def __init__(self, bundle: Bundle, name: str) -> None:
        super().__init__(bundle, name)
        self.graphs = Graphs(bundle)

    def searched(self) -> tuple[Any, Any]:
        """The graphs.

        Raises:
            ConfigError: the model is observed or changed, which they do not follow.
        """
        if has_search_listeners() or is_changing():
            raise ConfigError(f'engine = "onnx" cannot be observed or changed: {WITHOUT}')
        return self.graphs, self.graphs

    def each(
        self, sources: Iterable[str], *, split: bool = True, protect: bool = False, **settings: Any
    ) -> list[Generation | InputError]:
        """As `Translator.each`.

        Raises:
            ConfigError: protect, whose parts find their places by the attention.
        """
        check_settings({"split": split, "protect": protect, **settings})
        if protect:
            raise ConfigError(f'engine = "onnx" takes no protect here: {WITHOUT}')
        return super().each(sources, split=split, **settings)

    def run(self, prepared: Sequence[Encoded], **settings: Any) -> list[Generation]:
        """Translate texts; arguments as in `Translator.run`.

        Raises:
            ConfigError: as there; a glossary, whose terms find their places by the attention.
        """
        _check(settings)
        return super().run(prepared, **{**settings, "record": False})

    def _followed(self, sentence: str, index: int, settings: dict[str, Any]) -> Any:
        _check(settings)
        return super()._followed(sentence, index, {**settings, "record": False})


def _check(settings: Mapping[str, Any]) -> None:
    if settings.get("glossary"):
        raise ConfigError(f'engine = "onnx" takes no glossary here: {WITHOUT}')
