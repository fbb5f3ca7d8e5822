"""Whether Slurm would take a job with the site's options."""

from __future__ import annotations

import pytest

from girder_worker_singularity.testing import FakeAnswer, FakeCommandRunner
from girder_worker_slurm.doctor import slurm, trial_submission
from girder_worker_slurm.options.partitions import parse_partitions
from girder_worker_slurm.settings import load_settings

WITHOUT_MEMORY = "PartitionName=normal Default=YES MaxTime=UNLIMITED TotalNodes=4 TRES=cpu=4,mem=4M,node=4\n"


def asked(tmp_path, answer, *options, config="", listing=""):
    """The findings about these options, and the calls of sbatch."""
    file = tmp_path / "worker.cfg"
    file.write_text(f"[jobs]\nroot = {tmp_path}\n{config}")
    runner = FakeCommandRunner({"sbatch": answer})
    questions = slurm.SlurmQuestions(runner, None, timeout_seconds=5)
    settings = load_settings((file,), {})
    found = trial_submission.check_site_options(
        questions, settings, options, lambda: parse_partitions(listing)
    )
    return list(found), runner.calls


def test_options_that_slurm_takes_are_fine_and_nothing_is_submitted(tmp_path):
    (finding,), (call,) = asked(tmp_path, FakeAnswer(), ("mem", "8G"), ("time", "60"))
    assert (finding.check, finding.level.value) == ("sbatch options", "ok")
    assert call.argv == ("sbatch", "--test-only", "--mem=8G", "--time=60")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (
            ("memm", "8G"),
            "sbatch: unrecognized option '--memm=8G'\nTry \"sbatch --help\" for more information\n",
        ),
        (("mem", "800G"), "allocation failure: Requested node configuration is not available\n"),
        (("time", "4 hours"), "sbatch: error: Invalid --time specification\n"),
    ],
)
def test_options_that_slurm_refuses_fail_in_slurm_s_words(tmp_path, option, said):
    (finding,), _ = asked(tmp_path, FakeAnswer(1, stderr=said), option)
    assert finding.level.value == "fail"
    assert "=".join(option) in finding.found
    assert said.splitlines()[0] in finding.found
    assert "[slurm.options]" in finding.remedy


@pytest.mark.parametrize(
    "said",
    [
        "allocation failure: Requested partition configuration not available now",
        "allocation failure: Required node not available (down, drained or reserved)",
        "sbatch: error: QOSMaxSubmitJobPerUserLimit",
    ],
)
def test_a_refusal_that_passes_is_a_warning(tmp_path, said):
    (finding,), _ = asked(tmp_path, FakeAnswer(1, stderr=said), ("time", "60"))
    assert finding.level.value == "warn"


def test_an_option_that_is_the_worker_s_own_fails_and_slurm_is_not_asked(tmp_path):
    (finding,), calls = asked(tmp_path, FakeAnswer(), ("wrap", "hostname"))
    assert (finding.level.value, calls) == ("fail", [])


def test_memory_is_not_asked_for_where_slurm_counts_none(tmp_path):
    _, (call,) = asked(tmp_path, FakeAnswer(), ("mem", "8G"), ("time", "60"), listing=WITHOUT_MEMORY)
    assert call.argv == ("sbatch", "--test-only", "--time=60")


def test_the_head_of_the_site_s_script_counts(tmp_path):
    script = tmp_path / "submit.sh"
    script.write_text("#!/bin/bash\n#SBATCH --account=lab\nmodule load x\n")
    _, (call,) = asked(tmp_path, FakeAnswer(), config=f"[slurm]\nsubmit_script = {script}\n")
    assert call.stdin == "#!/bin/sh\n#SBATCH --account=lab\ntrue\n"


def test_the_partition_in_the_head_decides_whether_memory_is_asked_for(tmp_path):
    """As for jobs: the doctor said that Slurm refuses every job, and they ran."""
    script = tmp_path / "submit.sh"
    script.write_text("#!/bin/bash\n#SBATCH --partition=plain\n")
    listing = (
        "PartitionName=normal Default=YES MaxTime=UNLIMITED TotalNodes=4 TRES=cpu=4,mem=4G,node=4\n"
        "PartitionName=plain Default=NO MaxTime=UNLIMITED TotalNodes=4 TRES=cpu=4,mem=4M,node=4\n"
    )
    _, (call,) = asked(
        tmp_path, FakeAnswer(), ("mem", "8G"), config=f"[slurm]\nsubmit_script = {script}\n", listing=listing
    )
    assert call.argv == ("sbatch", "--test-only")
