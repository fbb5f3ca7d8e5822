from __future__ import annotations

from pathlib import Path

import pytest

from girder_worker_singularity.sif.progress import conversion_phase

RECORDED = Path(__file__).parents[2] / "recorded" / "apptainer-1.4.5"


def test_a_recorded_conversion_goes_through_its_phases_in_order():
    lines = (RECORDED / "conversion-succeeded.txt").read_text().splitlines()
    phases = [phase for line in lines if (phase := conversion_phase(line))]
    assert phases == ["starting", "fetching layers", "unpacking layers", "writing the SIF", "done"]


@pytest.mark.parametrize(
    "line", ["", "WARNING: something", "Copying blob 3f4e", "INFO:    To see mksquashfs output"]
)
def test_other_lines_say_nothing(line):
    assert conversion_phase(line) is None


def test_a_place_in_slurm_s_queue_is_a_phase():
    assert conversion_phase("Slurm: PENDING (Priority)") == "Slurm: PENDING (Priority)"
