"""Which attention of a model is read as the alignment of output and source."""

from collections.abc import Mapping, Sequence
from typing import Any

from regard.attention.maps.map import AttentionMap


def reading_site(alignment: dict[str, Any], attention: Mapping[str, AttentionMap]) -> tuple[str, list[int]]:
    """The site and heads from which word attention is read.

    Those chosen on development data when the model was trained; else all heads of the last site that attends to a
    memory; ("", []) where no site does.
    """
    if alignment.get("site") in attention:
        return str(alignment["site"]), list(alignment["heads"])
    across = [site for site in attention if site.split(".")[-1] == "cross"]
    return (across[-1], list(range(attention[across[-1]].shape[-3]))) if across else ("", [])


def name_heads(heads: Sequence[int]) -> str:
    """“head 3”, or “mean of heads 0, 2”."""
    return f"head {heads[0]}" if len(heads) == 1 else f"mean of heads {', '.join(map(str, heads))}"
