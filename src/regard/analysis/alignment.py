"""Word alignment from attention: joining sub-words to words, and choosing which heads to read.

Which site and heads are read is chosen on development data when a model is trained: those whose
alignments agree best with IBM Model 1 (Brown et al. 1993, section 4.2), learned on the same training pairs.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from regard.attention.tracing import without_autocast
from regard.data.align import Link, model_one, scores
from regard.data.batching import Batches, move
from regard.data.pairs import Pairs
from regard.device import device_of
from regard.models.seq2seq import Seq2Seq
from regard.text.tokenizer import Span, Tokenizer, word_of_each

SENTENCES = 400  # development sentences that decide


def join_words(
    weights: Float[Tensor, "T S"], target_spans: Sequence[Span], target: str, source_spans: Sequence[Span], source: str
) -> Float[Tensor, "words_t words_s"]:
    """Weights between tokens as weights between the words of `target.split()` and `source.split()`.

    A word of several source tokens gets their sum, a word of several target tokens their mean. Tokens
    that belong to no word (EOS, lone spaces) are dropped, and each row is divided by what is left.

    Args:
        weights: one row per target token, one column per source token (EOS last, where there is one).
        target_spans, source_spans: where the tokens stand; tokens beyond them (EOS) belong to no word.
        target, source: the texts.
    """
    over = _membership(word_of_each(source_spans, source), weights.shape[1], len(source.split()))
    down = _membership(word_of_each(target_spans, target), weights.shape[0], len(target.split()))
    down = down / down.sum(0).clamp(min=1)
    with without_autocast(weights.device.type):
        joined = down.T.to(weights.device) @ weights.float() @ over.to(weights.device)
    total = joined.sum(1, keepdim=True)
    return joined / total.masked_fill(total == 0, 1)


def _membership(words: Sequence[int | None], tokens: int, count: int) -> Float[Tensor, "tokens words"]:
    """1 where a token belongs to a word."""
    table = torch.zeros(tokens, count)
    for token, word in enumerate(words[:tokens]):
        if word is not None:
            table[token, word] = 1
    return table


def teacher_forced(model: Seq2Seq, tokenizer: Tokenizer, pairs: Pairs) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """(index, {site: weights `[heads, T, S]`}) of every pair, the true output given; only sites that see the source.

    The weights are on the CPU.
    """
    encoded = list(zip(tokenizer.encode_batch(pairs.source), tokenizer.encode_target_batch(pairs.target), strict=True))
    batches = Batches(encoded, 2048, tokenizer.bos, tokenizer.eos, tokenizer.pad)
    for indices in batches.order(0):
        batch = move(batches.collate(indices), device_of(model))
        state = model.start(model.encode(batch.source, batch.source_allowed), record=True)
        for token in batch.previous.split(1, 1):
            state = model.step_hidden(token, state)[1]
        maps = {site: m.full().cpu() for site, m in model.maps(state).items() if not site.endswith(".self")}
        for n, index in enumerate(indices):
            size = len(encoded[index][1]) + 1, len(encoded[index][0]) + 1
            yield index, {site: weights[n, 0, :, : size[0], : size[1]] for site, weights in maps.items()}


def links_of(weights: Tensor, tokenizer: Tokenizer, source: str, target: str) -> set[Link]:
    """The links (target word, source word) of weights between tokens: each row's maximum."""
    matrix = join_words(weights, tokenizer.source_spans(target), target, tokenizer.source_spans(source), source)
    return {(i, int(row.argmax())) for i, row in enumerate(matrix) if float(row.sum()) > 0}


def choose_heads(model: Seq2Seq, tokenizer: Tokenizer, train: Pairs, dev: Pairs) -> dict[str, Any]:
    """The site and heads whose alignments of development pairs agree best with Model 1's.

    Every single head, every pair of a site's three best heads, and the mean of all a site's heads compete.

    Returns:
        {"site": …, "heads": […], "aer": …}; empty where the model looks at no source.
    """
    some = dev.sample(SENTENCES)
    wanted = model_one(list(train), list(some))
    with torch.inference_mode():
        maps = dict(teacher_forced(model, tokenizer, some))

    def rate(site: str, heads: tuple[int, ...]) -> float:
        found = [
            links_of(maps[i][site][list(heads)].mean(0), tokenizer, some.source[i], some.target[i])
            for i in range(len(some))
        ]
        return scores(found, wanted)["aer"]

    results: list[tuple[float, str, tuple[int, ...]]] = []
    for site, weights in maps[0].items() if maps else ():
        heads = range(weights.shape[0])
        single = sorted((rate(site, (head,)), site, (head,)) for head in heads)
        three = sorted(head for _, _, (head,) in single[:3])
        groups = {*combinations(three, 2), tuple(heads)} - {(head,) for head in heads}
        results += single + [(rate(site, group), site, group) for group in groups]
    if not results:
        return {}
    aer, site, chosen = min(results)
    return {"site": site, "heads": list(chosen), "aer": round(aer, 4)}
