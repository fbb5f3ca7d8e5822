"""Jobs of a site that run until they are told to end."""

from __future__ import annotations

from girder_worker_slurm.testing import FakeProgram


def running(site, count=1):
    """So many jobs whose containers run until they are told to end."""
    site.cluster.default_program = FakeProgram(is_endless=True)
    names = [f"t{number}" for number in range(1, count + 1)]
    for name in names:
        site.task(name)
    site.run_until(lambda: all(site.state(name).started is not None for name in names))
    return names
