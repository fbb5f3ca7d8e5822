from __future__ import annotations

from pathlib import Path

import pytest

from girder_worker_singularity.sif.progress import Transfer, conversion_phase, transfer_in

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


@pytest.mark.parametrize(
    ("transfer", "text"),
    [
        (Transfer("fetching", 312_400_000, 845_000_000), "fetching 312 of 845 MB"),
        (Transfer("fetching", 312_400_000), "fetching 312 MB"),
        (Transfer("fetching", 400_000, 2_140_000), "fetching 0.4 of 2.1 MB"),
        (Transfer("fetching", 400_000_000, 12_345_000_000), "fetching 0.4 of 12.3 GB"),
        (Transfer("writing", 210_000_000), "writing the SIF, 210 MB"),
    ],
)
def test_bytes_are_told_with_their_total_if_that_is_known(transfer, text):
    assert transfer_in(transfer.line) == transfer
    assert conversion_phase(transfer.line) == text


@pytest.mark.parametrize("line", ["Bytes: fetching", "INFO: Bytes: fetching 1 of 2", "Bytes: eating 1 of 2"])
def test_other_lines_have_no_bytes(line):
    assert transfer_in(line) is None


@pytest.mark.parametrize("word", ["oras", "library"])
def test_a_finished_sif_is_fetched(word):
    assert conversion_phase(f"INFO:    Downloading {word} image") == "fetching the SIF"
