"""State of a decoder: selected and reduced part by part, without copying what belongs to the sentence."""

import dataclasses

import pytest
import torch
from torch import Tensor

from regard.nn.kv_cache import KVCache
from regard.nn.state import BlockState, CrossAttentionState, DecoderState, SelfAttentionState, record_query

N, K = 3, 5


def own(*shape: int) -> Tensor:
    """`[N, K, *shape]`; every number says where it comes from: 10 · sentence + hypothesis."""
    numbers = (torch.arange(N)[:, None] * 10 + torch.arange(K)).float()
    return numbers.view(N, K, *(1 for _ in shape)).expand(N, K, *shape)


def shared(*shape: int) -> Tensor:
    """`[N, 1, *shape]`; every number is its sentence."""
    return torch.arange(N).float().view(N, 1, *(1 for _ in shape)).expand(N, 1, *shape)


def state(record: bool = True) -> DecoderState:
    queries = own(2, 1, 7) if record else None
    blocks = tuple(
        BlockState(
            SelfAttentionState(KVCache(own(2, 4, 7), own(2, 4, 7)), own(3), queries),
            CrossAttentionState(shared(2, 11, 7), shared(2, 11, 7), own(3), queries),
        )
        for _ in range(2)
    )
    allowed, prompt = torch.ones(N, 1, 11, dtype=torch.bool), torch.ones(N, 1, 4, dtype=torch.bool)
    return DecoderState(blocks, 1, record, allowed, shared().long(), prompt)


def parts(found: DecoderState) -> tuple[list[Tensor], list[Tensor]]:
    """(what belongs to the sentences, what belongs to the hypotheses)."""
    of_sentence: list[Tensor] = []
    of_hypothesis: list[Tensor] = []
    found.map(lambda t: of_sentence.append(t) or t, lambda t: of_hypothesis.append(t) or t)
    return of_sentence, of_hypothesis


@pytest.mark.parametrize("record", [False, True])
def test_select_continues_the_parents(record: bool) -> None:
    parents = torch.tensor([[4, 4], [0, 3], [2, 1]])
    of_sentence, of_hypothesis = parts(state(record).select(parents))
    assert len(of_hypothesis) == 2 * (6 if record else 4)
    for tensor in of_hypothesis:
        assert tensor.shape[:2] == (N, 2)
        assert tensor.flatten(2)[..., -1].tolist() == [[4, 4], [10, 13], [22, 21]]
    for tensor, before in zip(of_sentence, parts(state(record))[0], strict=True):
        assert torch.equal(tensor, before)


def test_select_does_not_copy_the_memory() -> None:
    before = state()
    after = before.select(torch.zeros(N, 7, dtype=torch.long))
    for one, other in zip(parts(before)[0], parts(after)[0], strict=True):
        assert one is other


@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize("sentences", [[2, 0], [1], []])
def test_keep_reduces_every_part(record: bool, sentences: list[int]) -> None:
    of_sentence, of_hypothesis = parts(state(record).keep(torch.tensor(sentences, dtype=torch.long)))
    assert len(of_sentence) == 2 * 2 + 3
    for tensor in of_hypothesis:
        assert tensor.shape[:2] == (len(sentences), K)
        assert tensor[:, :, ..., :1].flatten(2)[..., :1].flatten(1).tolist() == [
            [10.0 * n + k for k in range(K)] for n in sentences
        ]
    for tensor in of_sentence:
        assert tensor.shape[:1] == (len(sentences),)
    assert of_sentence[0][:, 0, 0, 0, 0].tolist() == sentences


def test_counters_survive_selection() -> None:
    after = state().select(torch.zeros(N, 1, dtype=torch.long)).keep(torch.tensor([1]))
    assert (after.step, after.record) == (1, True)


def test_recorded_queries_are_joined_along_the_steps() -> None:
    steps = [torch.full((N, K, 2, 1, 7), float(t)) for t in range(3)]
    found = None
    for query in steps:
        found = record_query(found, query)
    assert torch.equal(found, torch.cat(steps, -2))


def test_positions_follow_the_prompt() -> None:
    token = torch.zeros(N, K, dtype=torch.long)
    assert state().positions(token).tolist() == [[n + 1] * K for n in range(N)]
    plain = DecoderState((), step=4)
    assert plain.positions(token).tolist() == [[4] * K] * N


def test_padding_of_the_prompt_is_no_key_and_later_tokens_are() -> None:
    prompt = torch.tensor([[[False, True, True]]])
    found = DecoderState((), prompt_allowed=prompt)
    assert found.real_keys(5, 2).tolist() == [[[False, True, True, True, True]]]
    assert found.real_keys(3, 2).tolist() == [[[True, True, True]]]
    assert DecoderState(()).real_keys(5, 2) is None


def test_a_state_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        state().step = 5
