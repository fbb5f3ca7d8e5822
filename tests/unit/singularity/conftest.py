"""A store of SIFs with everything around it pretended."""

from __future__ import annotations

import pytest

from tests.unit.singularity.store_world import World


@pytest.fixture
def world(tmp_path):
    return World(tmp_path / "store", tmp_path / "build")
