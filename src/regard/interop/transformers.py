"""`attn_implementation="regard"`: regard's attention in the models of transformers that use its attention interface.

    import regard.interop.transformers
    model = AutoModel.from_pretrained(..., attn_implementation="regard")

Importing this module is the request to register; no module of regard imports it, and `register` does the same by
name. Soft caps, learned sinks, position biases, windows, grouped heads and caches are taken from the model's call;
`regard.swap` chooses another score or normalizer. It trains.
"""

from regard.interop.registration import NAME, regard_attention, register

__all__ = ["NAME", "regard_attention", "register"]

register()
