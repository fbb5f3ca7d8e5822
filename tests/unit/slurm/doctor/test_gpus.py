"""Whether Slurm would take a job with a GPU."""

from __future__ import annotations

import pytest

from girder_worker_singularity.testing import FakeAnswer, FakeCommandRunner
from girder_worker_slurm.doctor import gpus, slurm
from girder_worker_slurm.settings import load_settings
from tests.unit.slurm.doctor.here import levels


def gpu_findings(tmp_path, answer, config=""):
    file = tmp_path / "worker.cfg"
    file.write_text(f"[jobs]\nroot = {tmp_path}\n{config}")
    runner = FakeCommandRunner({"sbatch": answer})
    questions = slurm.SlurmQuestions(runner, None, timeout_seconds=5)
    settings = load_settings((file,), {})
    return list(gpus.check_gpus(questions, settings, (("mem", "1G"),))), runner


def test_slurm_is_asked_whether_it_would_take_a_job_with_a_gpu(tmp_path):
    config = "[slurm.gpu_options]\ngres = gpu:a100:{gpus}\npartition = gpu\n"
    findings, runner = gpu_findings(tmp_path, FakeAnswer(0, ""), config)
    assert levels(findings) == ["ok"]
    argv = runner.calls[0].argv
    assert argv[:2] == ("sbatch", "--test-only")
    assert {"--mem=1G", "--gres=gpu:a100:1", "--partition=gpu"} <= set(argv)


@pytest.mark.parametrize(
    ("config", "level", "remedy"),
    [
        ("", "warn", "gpu_kind = none"),
        ("[slurm.gpu_options]\npartition = gpus\n", "fail", "Correct [slurm.gpu_options]"),
    ],
)
def test_a_refusal_of_gpus_is_told_in_slurm_s_words(tmp_path, config, level, remedy):
    refusal = FakeAnswer(1, "", "sbatch: error: invalid partition specified: gpus\n")
    (finding,) = gpu_findings(tmp_path, refusal, config)[0]
    assert finding.level.value == level
    assert "invalid partition specified: gpus" in finding.found
    assert remedy in finding.remedy


def test_a_site_without_gpus_asks_nothing(tmp_path):
    findings, runner = gpu_findings(tmp_path, FakeAnswer(1, ""), "[singularity]\ngpu_kind = none\n")
    assert (findings, runner.calls) == ([], [])


def test_the_head_of_the_site_s_script_counts(tmp_path):
    script = tmp_path / "submit.sh"
    script.write_text("#!/bin/bash\n#SBATCH --gres=gpu:2\nmodule load x\n")
    findings, runner = gpu_findings(tmp_path, FakeAnswer(0, ""), f"[slurm]\nsubmit_script = {script}\n")
    assert levels(findings) == ["ok"]
    assert not [word for word in runner.calls[0].argv if word.startswith("--gres")]
    assert runner.calls[0].stdin == "#!/bin/sh\n#SBATCH --gres=gpu:2\ntrue\n"
