"""regard: attention you can choose, train and see.

Everything public stands here; importing it imports nothing heavy until a name is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from regard import distributed as distributed
    from regard import nn as nn
    from regard.analysis.ablations import ablations as ablations
    from regard.analysis.attribution import attribute_patches as attribute_patches
    from regard.analysis.contributions import contributions as contributions
    from regard.analysis.faithfulness import faithfulness as faithfulness
    from regard.analysis.flow import HeadGradient as HeadGradient
    from regard.analysis.flow import flow as flow
    from regard.analysis.lens import logit_lens as logit_lens
    from regard.analysis.patching import patch as patch
    from regard.analysis.roles import Role as Role
    from regard.analysis.roles import roles as roles
    from regard.analysis.why import why as why
    from regard.attention.approximate.linear import EluFeatures as EluFeatures
    from regard.attention.approximate.linear import RandomFeatures as RandomFeatures
    from regard.attention.approximate.low_rank import LowRank as LowRank
    from regard.attention.approximate.patterns import big_bird as big_bird
    from regard.attention.approximate.patterns import strided as strided
    from regard.attention.biases import RelativeBias as RelativeBias
    from regard.attention.biases import alibi as alibi
    from regard.attention.maps.map import AttentionMap as AttentionMap
    from regard.attention.maps.map import attention_map as attention_map
    from regard.attention.masks import allow as allow
    from regard.attention.masks import blocks as blocks
    from regard.attention.masks import causal as causal
    from regard.attention.masks import documents as documents
    from regard.attention.masks import padding as padding
    from regard.attention.masks import prefix as prefix
    from regard.attention.masks import window as window
    from regard.attention.normalizers import Entmax as Entmax
    from regard.attention.normalizers import Hard as Hard
    from regard.attention.normalizers import Share as Share
    from regard.attention.normalizers import Sink as Sink
    from regard.attention.operator import Plan as Plan
    from regard.attention.operator import attend as attend
    from regard.attention.operator import plan as plan
    from regard.attention.scores import Additive as Additive
    from regard.attention.scores import Concat as Concat
    from regard.attention.scores import Cosine as Cosine
    from regard.attention.scores import Distance as Distance
    from regard.attention.scores import Dot as Dot
    from regard.attention.scores import General as General
    from regard.attention.scores import QueryAdaptive as QueryAdaptive
    from regard.attention.scores import ScaledDot as ScaledDot
    from regard.errors import BundleError as BundleError
    from regard.errors import ChoiceError as ChoiceError
    from regard.errors import ConfigError as ConfigError
    from regard.errors import DataError as DataError
    from regard.errors import KernelError as KernelError
    from regard.errors import RegardError as RegardError
    from regard.errors import ShapeError as ShapeError
    from regard.experiment import train as train
    from regard.interop.swap import Swap as Swap
    from regard.interop.swap import swap as swap
    from regard.nn.embedding import Rotary as Rotary
    from regard.nn.embedding import sinusoidal as sinusoidal
    from regard.observation.intervene import intervene as intervene
    from regard.observation.observe import observe as observe
    from regard.pipelines.generation import Generation as Generation
    from regard.pipelines.load import load as load

_HOMES = {
    "analysis.contributions": ("contributions",),
    "analysis.lens": ("logit_lens",),
    "analysis.why": ("why",),
    "analysis.ablations": ("ablations",),
    "analysis.attribution": ("attribute_patches",),
    "analysis.patching": ("patch",),
    "analysis.faithfulness": ("faithfulness",),
    "analysis.flow": ("HeadGradient", "flow"),
    "analysis.roles": ("Role", "roles"),
    "attention.approximate.linear": ("EluFeatures", "RandomFeatures"),
    "attention.approximate.low_rank": ("LowRank",),
    "attention.approximate.patterns": ("big_bird", "strided"),
    "attention.maps.map": ("AttentionMap", "attention_map"),
    "attention.biases": ("RelativeBias", "alibi"),
    "attention.masks": ("allow", "blocks", "causal", "documents", "padding", "prefix", "window"),
    "attention.normalizers": ("Entmax", "Hard", "Share", "Sink"),
    "attention.operator": ("Plan", "attend", "plan"),
    "attention.scores": ("Additive", "Concat", "Cosine", "Distance", "Dot", "General", "QueryAdaptive", "ScaledDot"),
    "errors": ("BundleError", "ChoiceError", "ConfigError", "DataError", "KernelError", "RegardError", "ShapeError"),
    "experiment": ("train",),
    "interop.swap": ("Swap", "swap"),
    "nn.embedding": ("Rotary", "sinusoidal"),
    "observation.intervene": ("intervene",),
    "observation.observe": ("observe",),
    "pipelines.load": ("load",),
    "pipelines.translator": ("Generation",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

_ROOMS = ("distributed", "nn")

__all__ = ["__version__", *_ROOMS, *sorted(_HOME_OF)]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"regard.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'regard' has no attribute {name!r}")
    return getattr(import_module(f"regard.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
