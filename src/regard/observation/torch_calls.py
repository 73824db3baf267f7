"""Calls of torch's own attention functions and modules as regard's queries, keys, values and specs."""

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import TransformType, get_interpreter_stack
from torch._guards import CompileContext
from torch.nn import functional as F
from torch.nn.attention.bias import CausalBias, CausalVariant
from torch.utils.weak import WeakTensorKeyDictionary

from regard.attention.biases import Added, Bias
from regard.attention.maps.compact import split_float_mask
from regard.attention.masks import Allow, Causal, Mask, padding
from regard.attention.normalizers import Softmax
from regard.attention.scores import ScaledDot
from regard.attention.spec import Spec
from regard.attention.tracing import is_autocast, is_traced
from regard.attention.watch import Call, computing, is_attended, is_changing, is_computing, query_changers
from regard.errors import RegardError

_understood: Any = WeakTensorKeyDictionary()
_MHA = inspect.signature(F.multi_head_attention_forward)


ATTENTIONS = (F.scaled_dot_product_attention, F.multi_head_attention_forward)


def is_tracing() -> bool:
    """Whether dynamo compiles in this thread, or `torch.export` traces: what runs then computes on stand-ins."""
    return CompileContext.try_get() is not None or torch.compiler.is_exporting()


def report(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Compute one of `ATTENTIONS`, and report it unless it is part of a reported attention."""
    if is_computing() or is_tracing() or not is_attended():  # no callback would see it
        return func(*args, **kwargs)
    with computing():
        if func is F.scaled_dot_product_attention:
            answer: Any = query_changers(unread_call(*args, **kwargs) if is_mapped() else sdpa_call(*args, **kwargs))
        else:
            given = _MHA.bind(*args, **kwargs)
            given.apply_defaults()
            answer = _multi_head_answer(given.arguments)
        return func(*args, **kwargs) if answer is None else answer


def is_mapped() -> bool:
    """Whether `torch.func.vmap` is running: tensors there lack the axes that are mapped."""
    return any(level.key() == TransformType.Vmap for level in get_interpreter_stack() or ())


def unread_call(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Call:
    """A call inside `torch.func.vmap`, whose masks cannot be read; `refuse_mapped` names it if it is observed."""
    return Call(query, key, value, Spec(ScaledDot(), Softmax()))


def refuse_mapped() -> None:
    """Refuse an observed attention inside `torch.func.vmap`.

    Raises:
        RegardError: always there.
    """
    if is_mapped():
        raise RegardError("attention inside torch.func.vmap cannot be seen: give the tensors a batch axis instead")


def _multi_head_answer(given: dict[str, Any]) -> tuple[Tensor, Tensor | None] | None:
    """What a changer makes of `multi_head_attention_forward`, the changed weights included where they are asked for."""
    if is_mapped():
        query_changers(unread_call(given["query"], given["key"], given["value"]))
        return None
    call = mha_call(**given)
    if not (given["need_weights"] and is_changing()):
        return _join(given, query_changers(call))
    # values beside an identity matrix: weights @ [values, I] = [heads' outputs, weights]
    width, keys = call.value.shape[-1], call.key.shape[-2]
    identity = torch.eye(keys, dtype=call.value.dtype, device=call.value.device)
    values = torch.cat([call.value, identity.expand(*call.value.shape[:-1], keys)], -1)
    answer = query_changers(replace(call, value=values), seen=call)
    if answer is None:
        return None
    output, _ = _join(given, answer[..., :width])  # type: ignore[misc]
    weights = answer[..., width:]
    return output, weights.mean(-3) if given["average_attn_weights"] else weights


def sdpa_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Call:
    """`scaled_dot_product_attention`: softmax(q k / √d + mask), causal from the upper left corner."""
    _refuse_nested(query, key, value)
    if enable_gqa and query.ndim == 3:
        key, value = (t.repeat_interleave(query.shape[0] // t.shape[0], 0) for t in (key, value))
    axes = max(query.ndim, key.ndim, value.ndim, attn_mask.ndim if attn_mask is not None else 0)
    query, key, value = (_axes(_cast(t), axes) for t in (query, key, value))
    mask, bias = masks_of(attn_mask)
    if is_causal:
        mask = Causal(0) if mask is None else mask & Causal(0)
    return Call(query, key, value, Spec(ScaledDot(scale), Softmax(), mask, bias, dropout_p))


def masks_of(attn_mask: Tensor | None) -> tuple[Mask | None, Bias | None]:
    """The mask (bool, True = may attend) and the bias that torch's `attn_mask` amounts to."""
    if attn_mask is None:
        return None, None
    if isinstance(attn_mask, CausalBias):
        return Causal(0 if attn_mask.variant == CausalVariant.UPPER_LEFT else None), None
    if is_traced(attn_mask):
        return _split(attn_mask)
    if type(attn_mask) not in (Tensor, nn.Parameter):
        raise RegardError(f"a mask of type {type(attn_mask).__name__} is not understood; use a bool or float tensor")
    if attn_mask.is_inference() or attn_mask.requires_grad:
        return _split(attn_mask)
    known = _understood.get(attn_mask)  # layers of a model share one mask: it is split once
    if known is None or known[0] != attn_mask._version:
        known = _understood[attn_mask] = attn_mask._version, _split(attn_mask.detach())
    found: tuple[Mask | None, Bias | None] = known[1]
    return found


def _split(attn_mask: Tensor) -> tuple[Mask | None, Bias | None]:
    return (Allow(attn_mask), None) if attn_mask.dtype == torch.bool else split_float_mask(attn_mask)


def forget_masks() -> None:
    """Read every mask anew: a forward begins, and masks may have been changed where torch counts no versions."""
    _understood.clear()


def mha_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None = None,
    bias_v: Tensor | None = None,
    add_zero_attn: bool = False,
    key_padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    training: bool = True,
    dropout_p: float = 0.0,
    need_weights: bool = True,
    use_separate_proj_weight: bool = False,
    is_causal: bool = False,
    **_: Any,
) -> Call:
    """`multi_head_attention_forward`, inputs `[n, B, d]` or `[n, d]`: projected, split into heads, masked.

    As there, `is_causal` takes the place of `attn_mask` if no weights are asked for and no key is padding; else it is
    a hint without effect. What is left out of the signature has none on the weights (`embed_dim_to_check`, the output
    projection, `average_attn_weights`).
    """
    _refuse_nested(query, key, value)
    unbatched = query.ndim == 2
    if unbatched:
        query, key, value = (t[:, None] for t in (query, key, value))
        key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
    packed = None if use_separate_proj_weight else in_proj_weight
    weights = (q_proj_weight, k_proj_weight, v_proj_weight) if packed is None else packed.chunk(3)
    biases = in_proj_bias.chunk(3) if in_proj_bias is not None else (None, None, None)
    q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))  # type: ignore[arg-type]
    batch = q.shape[1]
    if bias_k is not None and bias_v is not None:
        k, v = (torch.cat([t, b.expand(1, batch, -1)]) for t, b in ((k, bias_k), (v, bias_v)))
    q, k, v = (t.unflatten(-1, (num_heads, -1)).permute(1, 2, 0, 3) for t in (q, k, v))  # [B, heads, n, d]
    k = k if static_k is None else static_k.unflatten(0, (batch, num_heads))
    v = v if static_v is None else static_v.unflatten(0, (batch, num_heads))
    if add_zero_attn:
        k, v = (F.pad(t, (0, 0, 0, 1)) for t in (k, v))
    if attn_mask is not None and attn_mask.ndim == 3:
        attn_mask = attn_mask.unflatten(0, (batch, num_heads))
    if key_padding_mask is not None:
        key_padding_mask = key_padding_mask[:, None, None]
    mask: Mask | None = None
    added: Tensor | None = None
    if is_causal and attn_mask is not None and key_padding_mask is None and not need_weights:
        attn_mask, mask = None, Causal(0)
    for one in (attn_mask, key_padding_mask):
        if one is None:
            continue
        more = k.shape[-2] - one.shape[-1]  # every query may attend to the appended keys
        if one.dtype == torch.bool:  # torch's True is "ignore" here
            allowed = Allow(F.pad(~one, (0, more), value=True))
            mask = allowed if mask is None else mask & allowed
        else:
            one = F.pad(one, (0, more))
            added = one if added is None else added + one
    allowed_too, bias = masks_of(added)
    mask = allowed_too if mask is None else mask if allowed_too is None else mask & allowed_too
    spec = Spec(ScaledDot(), Softmax(), mask, bias, dropout_p if training else 0.0)
    if unbatched:
        q, k, v = q[0], k[0], v[0]
        own = Added(bias.tensor[0]) if isinstance(bias, Added) and bias.tensor.ndim == 4 else bias
        spec = Spec(spec.score, spec.normalizer, _without_batch(mask, q, k), own, spec.dropout)
    return Call(q, k, v, spec)


def _without_batch(mask: Mask | None, query: Tensor, key: Tensor) -> Mask | None:
    if mask is None:
        return None
    whole = mask.full((1, *query.shape[:-1], key.shape[-2]), query.device)
    return Allow(whole[0] if whole.ndim == 4 else whole)


def module_call(
    module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any], grad: bool = False
) -> Call:
    """The attention of an `nn.MultiheadAttention`, from the arguments of its forward; `grad`: was grad mode on."""
    given = _MODULE.bind(module, *args, **kwargs)
    given.apply_defaults()
    a = given.arguments
    query, key, value = a["query"], a["key"], a["value"]
    padding_mask = a["key_padding_mask"]
    is_causal = a["is_causal"] and not _takes_fast_path(module, a, grad)  # the fast path reads the mask alone
    lengths: Tensor | None = None
    if query.is_nested:  # only self-attention takes nested tensors
        lengths = query._nested_tensor_size()[:, 0]
        query = key = value = query.to_padded_tensor(0.0)
    if module.batch_first and query.ndim == 3:
        query, key, value = (t.transpose(0, 1) for t in (query, key, value))
    call = mha_call(
        query, key, value, num_heads=module.num_heads,
        in_proj_weight=module.in_proj_weight, in_proj_bias=module.in_proj_bias,
        bias_k=module.bias_k, bias_v=module.bias_v, add_zero_attn=module.add_zero_attn,
        key_padding_mask=padding_mask, attn_mask=a["attn_mask"], q_proj_weight=module.q_proj_weight,
        k_proj_weight=module.k_proj_weight, v_proj_weight=module.v_proj_weight,
        training=module.training, dropout_p=module.dropout,
        need_weights=a["need_weights"], is_causal=is_causal,
    )  # fmt: skip
    if lengths is None:
        return call
    spec = Spec(call.spec.score, call.spec.normalizer, padding(lengths, lengths))
    return Call(call.query, call.key, call.value, spec)


def _takes_fast_path(module: nn.MultiheadAttention, given: dict[str, Any], grad: bool) -> bool:
    """Whether `nn.MultiheadAttention.forward` calls torch's native kernel, by the conditions that it checks."""
    query = given["query"]
    masks = [given[name] for name in ("attn_mask", "key_padding_mask") if given[name] is not None]
    weights = (module.in_proj_weight, module.in_proj_bias, module.out_proj.weight, module.out_proj.bias)
    return (
        torch.backends.mha.get_fastpath_enabled()
        and query.dim() == 3
        and query is given["key"] is given["value"]
        and module._qkv_same_embed_dim
        and all(weight is not None and weight.dtype == query.dtype for weight in weights[:2])
        and not any(torch.is_floating_point(mask) for mask in masks)
        and module.batch_first
        and module.num_heads % 2 == 0
        and module.bias_k is None
        and module.bias_v is None
        and not (module.training or module.add_zero_attn or torch.is_autocast_enabled())
        and not (grad and any(t is not None and t.requires_grad for t in (query, *weights)))
    )


def layer_call(layer: nn.TransformerEncoderLayer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """The self-attention of an `nn.TransformerEncoderLayer` on its fast path, where no module is called."""
    given = _LAYER.bind(layer, *args, **kwargs)
    given.apply_defaults()
    a = given.arguments
    x = a["src"]
    if layer.norm_first:
        norm = layer.norm1
        x = F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    more = {"attn_mask": a["src_mask"], "key_padding_mask": a["src_key_padding_mask"]}
    return module_call(layer.self_attn, (x, x, x), more)


_MODULE = inspect.signature(nn.MultiheadAttention.forward)
_LAYER = inspect.signature(nn.TransformerEncoderLayer.forward)


def _join(given: dict[str, Any], heads: Tensor | None) -> tuple[Tensor, Tensor | None] | None:
    """`multi_head_attention_forward`'s result from the heads' outputs `[B, H, n, d]` or `[H, n, d]`; no weights."""
    if heads is None:
        return None
    joined = heads.transpose(-3, -2).flatten(-2)  # [B, n, d]
    output = F.linear(joined, given["out_proj_weight"], given["out_proj_bias"])
    return (output.transpose(0, 1) if output.ndim == 3 else output), None


def _refuse_nested(*tensors: Tensor) -> None:
    if any(tensor.is_nested for tensor in tensors):
        raise RegardError("attention over nested tensors cannot be seen: pad them, and mask the padding")


def _axes(tensor: Tensor, axes: int) -> Tensor:
    return tensor.reshape(*[1] * (axes - tensor.ndim), *tensor.shape)


def _cast(tensor: Tensor) -> Tensor:
    """The tensor in the dtype that autocast gives the kernel."""
    kind = tensor.device.type
    if is_autocast(kind) and tensor.dtype == torch.float32:
        return tensor.to(torch.get_autocast_dtype(kind))
    return tensor
