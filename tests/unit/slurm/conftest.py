"""A worker with everything around it pretended."""

from __future__ import annotations

import pytest

from tests.unit.slurm.site import Site


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)
