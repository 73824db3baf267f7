"""A barely trained translator, and a client of it and of a language model."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

import regard
from conftest import tiny
from regard.pipelines.translator import Translator
from regard.serving.http import create_server_app


@pytest.fixture(scope="session")
def run_folder(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Transformer's run."""
    from regard import experiment

    folder = tmp_path_factory.mktemp("served") / "small"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGARD_DATA", str(data_folder))
        config = tiny("transformer", max_steps=2, evaluate_every=2)
        experiment.train(config, run=folder)
    return folder


@pytest.fixture(scope="session")
def translator(run_folder: Path) -> Translator:
    return regard.load(run_folder)


@pytest.fixture(scope="session")
def client(translator: Translator) -> Iterator[TestClient]:
    with TestClient(create_server_app([translator, regard.load("shakespeare")])) as made:
        yield made
