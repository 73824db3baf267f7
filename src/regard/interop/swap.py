"""swap: another score or normalizer in any model, in place and reversibly."""

import inspect
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

from torch import nn
from torch.compiler import is_compiling
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from regard.arguments import check_arguments
from regard.attention.normalizers import NormalizerLike, as_normalizer
from regard.attention.scores import ScoreLike, as_score
from regard.errors import ChoiceError, RegardError
from regard.interop.registration import CHOICE, NAME, attend_as, calls_interface, register
from regard.interop.torch_attention import MultiheadAttention
from regard.nn.multihead import MultiHead
from regard.observation.observe import known_sites, matches, module_of
from regard.observation.torch_calls import sdpa_call

_standing: "WeakKeyDictionary[nn.Module, list[Swap]]" = WeakKeyDictionary()  # the swaps at a module, in their order
# of a model of transformers that computes attention by regard: its own implementation, and how many swaps need that
_using: "WeakKeyDictionary[nn.Module, tuple[str, int]]" = WeakKeyDictionary()


class Swap:
    """A replacement that can be undone: by `undo()`, or at the end of a `with` block.

    Attributes:
        sites: the paths of the attentions that were replaced.
    """

    def __init__(self) -> None:
        self.sites: list[str] = []
        self._back: list[Any] = []
        self._parts: list[nn.Module] = []

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise RegardError("a swap belongs to the model that it changed, and is not copied")

    def undo(self) -> None:
        """Restore the model's attention as it was before; a second call changes nothing.

        Raises:
            RegardError: a later swap still stands at one of the sites.
        """
        later = next((part for part in self._parts if _standing[part][-1] is not self), None)
        if later is not None:
            site = self.sites[self._parts.index(later)]
            raise RegardError(f"a later swap still stands at {site!r}: undo that one first")
        while self._back:
            self._back.pop()()
        for part in self._parts:
            _standing[part].pop()
        self.sites, self._parts = [], []

    def __enter__(self) -> "Swap":
        if not self.sites:
            raise RegardError("this swap was undone: call swap again")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.undo()


@check_arguments
def swap(
    model: Any,
    *,
    score: ScoreLike | None = None,
    normalizer: NormalizerLike | None = None,
    sites: Sequence[str] | None = None,
) -> Swap:
    """Replace score or normalizer in a model, in place: `regard.swap(model, normalizer="softmax1")`.

    For `nn.MultiheadAttention` (inside `nn.Transformer` too), modules whose forward calls
    `scaled_dot_product_attention`, regard's own layers, and models from the transformers library.
    Parameters, hooks and the modules themselves stay; a score with parameters joins the model's, and is shared by
    the sites it is given to.

    Args:
        model: an nn.Module, or what `regard.load` returns.
        score: None keeps the model's own.
        normalizer: None keeps the model's own.
        sites: which attentions, by path or pattern; all by default.

    Returns:
        a `Swap`: `undo()` restores the model, as does the end of `with regard.swap(...)`.

    Raises:
        ChoiceError: an unknown name or site, nearest spelling first; a model without an attention to replace.
    """
    module = module_of(model)
    paths: dict[nn.Module, list[str]] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        paths.setdefault(part, []).append(path or ".")
    patterns = ["*"] if sites is None else known_sites(sites, paths)
    choice = {} if score is None else {"score": as_score(score)}
    choice |= {} if normalizer is None else {"normalizer": as_normalizer(normalizer)}  # type: ignore[dict-item]
    done = Swap()
    try:
        _replace_in(module, paths, patterns, choice, done)
    except BaseException:  # half of a swap is none
        done.undo()
        raise
    if not done.sites:
        done.undo()
        raise ChoiceError(
            "there is no attention to replace: swap knows nn.MultiheadAttention, modules whose forward calls "
            "scaled_dot_product_attention, regard's layers and models from the transformers library; where attention "
            "is computed by hand, call regard.attend or scaled_dot_product_attention there"
        )
    return done


def _replace_in(
    module: nn.Module, paths: Mapping[nn.Module, Sequence[str]], patterns: Sequence[str], choice: dict[str, Any],
    done: Swap,
) -> None:  # fmt: skip
    """Replace the attentions whose paths match; `done` gets what undoes it."""
    hugging = _is_of_transformers(module)
    if hugging:
        _use_regard(module, done)
    for part, own in paths.items():
        if not any(matches(own, pattern) for pattern in patterns):
            continue
        if isinstance(part, nn.MultiheadAttention):
            if type(part).forward not in (nn.MultiheadAttention.forward, MultiheadAttention.forward):
                continue  # a subclass with a forward of its own
            _swap_torch(part, choice, done)
        elif isinstance(part, MultiHead):
            _swap_own(part, choice, done)
        elif hugging and _calls(part, "get_interface") and "Attention" in type(part).__name__:
            _store(part, choice, done)
        elif _calls(part, "scaled_dot_product_attention") and _takes_torchs(part):
            _store(part, choice, done)
            _swap_calls(part, done)
        else:
            continue
        _standing.setdefault(part, []).append(done)
        done._parts.append(part)
        done.sites.append(own[0])


def _swap_torch(part: nn.MultiheadAttention, choice: dict[str, Any], done: Swap) -> None:
    if isinstance(part, MultiheadAttention):
        _swap_own(part, choice, done)
        return
    before, same = type(part), part._qkv_same_embed_dim

    def undo() -> None:
        for name in ("score", "normalizer"):
            part._modules.pop(name, None)
        for name in ("mask", "score_bias"):
            part.__dict__.pop(name, None)
        part.__class__ = before
        part._qkv_same_embed_dim = same

    done._back.append(undo)  # before the change, here and below: an interrupt within it is undone, too
    part.__class__ = MultiheadAttention
    part.choose(**choice)  # type: ignore[operator]


def _swap_own(part: Any, choice: dict[str, Any], done: Swap) -> None:
    for name, chosen in choice.items():
        before = getattr(part, name)
        done._back.append(lambda name=name, before=before: _replace(part, name, before))
        _replace(part, name, chosen)


def _replace(part: Any, name: str, value: Any) -> None:
    with suppress(AttributeError):
        delattr(part, name)  # setattr refuses to put a module where a plain attribute is, and the other way round
    setattr(part, name, value)


def _is_of_transformers(module: nn.Module) -> bool:
    """Whether a model from transformers is inside that calls attention functions by their names."""
    names = {type(part).__module__ for part in module.modules() if hasattr(part, "config")}
    return any(name.startswith("transformers.") and calls_interface(sys.modules[name]) for name in names)


def _takes_torchs(part: nn.Module) -> bool:
    """Whether a module's forward calls torch's function, where a config of transformers chooses what it calls."""
    config = getattr(part, "config", None)
    return not type(part).__module__.startswith("transformers.") or (
        getattr(config, "_attn_implementation", "sdpa") == "sdpa"
    )


def _use_regard(module: nn.Module, done: Swap) -> None:
    """`attn_implementation="regard"` for every model from the transformers library inside."""
    register()
    models: list[Any] = [part for part in module.modules() if hasattr(part, "set_attn_implementation")]
    counted: list[Any] = []

    def undo() -> None:
        names = []
        for part in counted:
            name, swaps = _using.pop(part)
            if swaps > 1:
                _using[part] = name, swaps - 1
            names.append(name if swaps == 1 else NAME)
        for part, name in zip(counted, names, strict=True):  # which sets those inside it too: outer ones first
            part.set_attn_implementation(name)

    done._back.append(undo)
    for part in models:
        name, swaps = _using.get(part, (part.config._attn_implementation, 0))
        _using[part] = name, swaps + 1
        counted.append(part)
    for part in models:
        part.set_attn_implementation(NAME)


def _calls(part: nn.Module, name: str) -> bool:
    """Whether the code of a module's forward names a function."""
    code = getattr(inspect.unwrap(type(part).forward), "__code__", None)  # behind decorators
    return code is not None and name in code.co_names


def _store(part: nn.Module, choice: dict[str, Any], done: Swap) -> None:
    """Store the choice on a module, for the function that computes its attention."""
    before = getattr(part, CHOICE, None)

    def undo() -> None:
        part._modules.pop(CHOICE, None)
        if before is not None:
            setattr(part, CHOICE, before)

    done._back.append(undo)
    setattr(part, CHOICE, nn.ModuleDict({**dict(before or {}), **choice}))


def _swap_calls(part: nn.Module, done: Swap) -> None:
    """Replace torch's attention function by regard's inside a module's forward."""
    if isinstance(part.forward, _Attending):
        return  # replaced already; it reads the new choice
    own = part.__dict__.get("forward")

    def undo() -> None:
        part.__dict__.pop("forward", None)
        if own is not None:
            part.forward = own

    done._back.append(undo)
    part.forward = _Attending(part)


def _is_of(part: nn.Module) -> bool:
    """Whether the module whose code is running, the innermost one, is this one; always, where dynamo compiles."""
    if is_compiling():
        return True
    frame = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        owner = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        if isinstance(owner, nn.Module) and hasattr(type(owner), code.co_name):  # a function may take a module, too
            return owner is part
        frame = frame.f_back  # type: ignore[assignment]
    return True


class _Attending:
    """A module's own forward, in which `scaled_dot_product_attention` is `attend` with the module's choice."""

    def __init__(self, part: nn.Module) -> None:
        self.part, self.forward = part, part.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _Calls(self.part, dict(getattr(self.part, CHOICE))):
            return self.forward(*args, **kwargs)


class _Calls(TorchFunctionMode):
    """Sees the calls of a module's forward, and those of the modules within it, which are left as they are."""

    def __init__(self, part: nn.Module, choice: dict[str, Any]) -> None:
        super().__init__()
        self.part, self.choice = part, choice

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not scaled_dot_product_attention or not _is_of(self.part):
            return func(*args, **(kwargs or {}))
        return attend_as(sdpa_call(*args, **(kwargs or {})), self.choice)
