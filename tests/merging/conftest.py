"""A base, an adapter on it, and the plan it was trained by: made once a file, copied for each test that spoils them."""

import shutil

import pytest

from tests.merging.folders import simple


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base, an adapter on it, and the plan: copied for each test."""
    return simple(tmp_path_factory.mktemp("made"))


@pytest.fixture
def case(made, tmp_path):
    """Base and adapter that a test may spoil."""
    base, adapter, plan = made
    shutil.copytree(base, tmp_path / "base")
    shutil.copytree(adapter, tmp_path / "adapter")
    return tmp_path / "base", tmp_path / "adapter", plan
