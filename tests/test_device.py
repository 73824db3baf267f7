"""Words that name devices; random states of a device."""

import pytest
import torch

import regard
from pretend_device import NAME, present
from regard.device import check_device, device_of, find_device, random_states, restore_random_states, seed_generators
from regard.errors import ChoiceError, ConfigError


def test_words_of_devices() -> None:
    with present():
        assert find_device("auto").type == NAME
        assert find_device(torch.device(NAME)).type == NAME
        with pytest.raises(ConfigError, match=rf"^device '{NAME}:3': the last one here is '{NAME}:0'"):
            find_device(f"{NAME}:3")
    assert find_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match=rf"^device '{NAME}': torch .* finds no {NAME} device here; use device='cpu'"):
        find_device(NAME)


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("cudda", r"unknown device 'cudda': expected one of 'cuda', "),
        ("cuda:1234567", r"unknown device 'cuda:1234567': expected one of 'cuda"),
        ("cuda:x", r"unknown device 'cuda:x': expected one of 'cuda"),
        ("cpu:1", r"unknown device 'cpu:1': expected one of 'cpu', "),
        ("", r"unknown device '': expected one of "),
    ],
)
def test_unknown_words_are_refused(word: str, sentence: str) -> None:
    for refused in (find_device, check_device):
        with pytest.raises(ChoiceError, match=sentence):
            refused(word)
    with pytest.raises(ChoiceError, match=sentence):
        regard.load("fr-en", device=word)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_absent_devices_are_refused_in_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"^device 'cuda': .*torch .*; use device='cpu' or 'auto'"):
        regard.load("fr-en", device="cuda")


def test_auto_is_the_cpu_where_there_is_no_accelerator() -> None:
    if not torch.accelerator.is_available():
        assert find_device("auto").type == "cpu"


def test_the_device_of_a_module_is_that_of_its_parameters() -> None:
    assert device_of(torch.nn.Linear(2, 3).to(NAME)).type == NAME
    assert device_of(torch.nn.Linear(2, 3)).type == "cpu"
    assert device_of(torch.nn.ReLU()).type == "cpu"
    assert device_of(object()).type == "cpu"


def test_random_states_are_restored() -> None:
    device = torch.device(NAME)
    kept = random_states(device)
    assert set(kept) == {"cpu", NAME}
    drawn = torch.rand(3), torch.rand(3, device=device)
    restore_random_states(kept, device)
    again = torch.rand(3), torch.rand(3, device=device)
    assert all(torch.equal(one, other) for one, other in zip(drawn, again, strict=True))
    restore_random_states({"cpu": kept["cpu"]}, device)  # of a run on the CPU
    assert torch.equal(torch.rand(3), drawn[0])
    assert not torch.equal(torch.rand(3, device=device), drawn[1])


def test_seeding_leaves_the_generators_of_other_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", asked.append)
    seed_generators(3, torch.device("cpu"))
    one = torch.rand(2)
    torch.default_generator.manual_seed(3)
    assert torch.equal(one, torch.rand(2))
    assert not asked
