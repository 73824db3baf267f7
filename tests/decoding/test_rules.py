"""The rules of a folder hold in generating as they do in transformers' own generate."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from regard.decoding.constraints import Ruled
from regard.decoding.generate import generate
from regard.decoding.search import SearchConfig
from regard.pretrained.folder import load_pretrained

V, LENGTH = 40, 9
START = [[5, 9, 11], [7, 3, 4]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(4)
    path = tmp_path_factory.mktemp("llama")
    config = transformers.LlamaConfig(
        vocab_size=V, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, eos_token_id=2,
        bos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    model.save_pretrained(path)
    return path


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize(
    "rules",
    [
        {"eos_token_id": list(range(20, 40))},
        {"suppress_tokens": list(range(4, 30))},
        {"begin_suppress_tokens": list(range(3, 38))},
        {"forced_eos_token_id": 2},
        {"bad_words_ids": [[n] for n in range(12, 30)] + [[m, n] for m in range(3, 12) for n in (31, 33, 35)]},
    ],
)
def test_outputs_are_those_of_transformers(folder: Path, rules: dict[str, Any], beam: int) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "pad_token_id": 0} | rules))
    found = load_pretrained(folder)
    own = found.rules
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    limits = [LENGTH] * len(START)
    with torch.inference_mode():
        state = found.model.read(torch.tensor(START)[:, :-1])
        ours = generate(
            found.model, state, START, limits, SearchConfig(beam, 0.0), own.ends,
            constraints=[Ruled(own, START, limits)],
        )  # fmt: skip
        for row, (best,) in zip(START, ours, strict=True):
            want = theirs.generate(
                torch.tensor([row]), max_new_tokens=LENGTH, num_beams=beam, do_sample=False, length_penalty=0.0,
                early_stopping=True,
            )[0, len(row) :].tolist()  # fmt: skip
            assert best.tokens == want[: len(best.tokens)]
            assert set(want[len(best.tokens) :]) <= {0}
            assert set(best.tokens[:-1]).isdisjoint(own.ends)
            assert set(best.tokens).isdisjoint(own.suppressed)


@pytest.mark.parametrize("beam", [1, 3])
def test_rules_of_a_prompt_do_not_depend_on_longer_ones_beside_it(folder: Path, beam: int) -> None:
    """Bad words that begin in the prompt, prompts padded on the left, limits of their own."""
    words = [[m, n] for m in range(3, 12) for n in range(12, 40, 3)]
    rules = {"bad_words_ids": words, "forced_eos_token_id": 2}
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "pad_token_id": 0} | rules))
    found = load_pretrained(folder)
    prompts, limits = [[11], [5, 9, 11, 4, 7], [7, 3]], [6, 3, 9]

    def outputs(rows: list[list[int]], most: list[int]) -> list[list[int]]:
        longest = max(map(len, rows)) - 1
        padded = [[0] * (longest - len(row) + 1) + row[:-1] for row in rows]
        tokens = torch.tensor(padded, dtype=torch.long).reshape(len(rows), longest)
        allowed = torch.arange(longest) >= torch.tensor([[longest - len(row) + 1] for row in rows])
        state = found.model.read(tokens, allowed)
        how = SearchConfig(beam, 0.0)
        made = generate(
            found.model, state, rows, most, how, found.rules.ends, constraints=[Ruled(found.rules, rows, most)]
        )
        return [best.tokens for (best,) in made]

    with torch.inference_mode():
        together = outputs(prompts, limits)
        assert together == [outputs([row], [most])[0] for row, most in zip(prompts, limits, strict=True)]
    assert all(len(tokens) < most or tokens[-1] == 2 for tokens, most in zip(together, limits, strict=True))
