"""What a site has done around the container: the text of the script, and what bash makes of it."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from dataclasses import replace

import pytest

from girder_worker_slurm.cluster.interface import JobDetail, SlurmJobId
from girder_worker_slurm.job.state import JobState, Outcome
from girder_worker_slurm.job.verdict import verdict_of_event, verdict_of_last_word, verdict_of_slurm
from girder_worker_slurm.options.hooks import JobHooks, SrunRules, check_hooks, launcher_lines, prerun_lines
from girder_worker_slurm.script.render import render_script
from tests.unit.slurm.test_script import EXAMPLE, GOLDEN, Bench

EVERYTHING = JobHooks(
    login_shell=True,
    bashrc="$HOME/.bashrc",
    modules=("apptainer/1.4", "it's"),
    conda_env="tools",
    environment_file="/etc/site env",
    variables={"A": "b c", "D": "$E `id`"},
    prerun=("echo before",),
    postrun=("echo after",),
    srun=SrunRules(True, {"n": "4", "exclusive": "", "cpu-bind": "cores"}, "time -v"),
)


def script_of(hooks, **more):
    return render_script(
        replace(
            EXAMPLE,
            prerun=prerun_lines(hooks),
            postrun=hooks.postrun,
            launcher=launcher_lines(hooks.srun),
            **more,
        )
    )


def test_the_first_example_of_the_covalent_document():
    options = (
        ("nodes", "1"), ("ntasks", "4"), ("cpus-per-task", "8"), ("constraint", "gpu"), ("gpus", "4"), ("qos", "regular"),
    )  # fmt: skip
    srun = SrunRules(True, {"cpu_bind": "cores", "gpus": "4", "gpu-bind": "single:1"})
    text = script_of(JobHooks(srun=srun), options=options, sbatch_head=())
    assert text.startswith(
        "#!/bin/bash\n"
        "#SBATCH --nodes=1\n"
        "#SBATCH --ntasks=4\n"
        "#SBATCH --cpus-per-task=8\n"
        "#SBATCH --constraint=gpu\n"
        "#SBATCH --gpus=4\n"
        "#SBATCH --qos=regular\n"
    )
    assert "srun --cpu_bind=cores --gpus=4 --gpu-bind=single:1 \\\n" in text


def test_the_second_example_of_the_covalent_document():
    hooks = JobHooks(
        prerun=("module load package/1.2.3", "srun --ntasks-per-node 1 dcgmi profile --pause"),
        srun=SrunRules(
            True,
            {"n": "4", "c": "8", "cpu-bind": "cores", "G": "4", "gpu-bind": "single:1"},
            "nsys profile --stats=true -t cuda --gpu-metrics-device=all",
        ),
        postrun=("srun --ntasks-per-node 1 dcgmi profile --resume",),
    )
    text = script_of(hooks)
    assert "module load package/1.2.3\nsrun --ntasks-per-node 1 dcgmi profile --pause\n" in text
    command = (
        "srun -n 4 -c 8 --cpu-bind=cores -G 4 --gpu-bind=single:1 \\\n"
        "    nsys profile --stats=true -t cuda --gpu-metrics-device=all \\\n"
        '    "${container[@]}" "${arguments[@]}"'
    )
    assert command in text
    assert "srun --ntasks-per-node 1 dcgmi profile --resume\n" in text
    assert text.index("--pause") < text.index(command) < text.index("--resume")


def test_all_hooks_stand_in_the_order_in_which_they_build_on_each_other():
    assert prerun_lines(EVERYTHING) == (
        ". /etc/profile",
        '. "$HOME"/.bashrc',
        "module load apptainer/1.4",
        "module load 'it'\"'\"'s'",
        'eval "$(conda shell.bash hook)"',
        "conda activate tools",
        "set -a; . '/etc/site env'; set +a",
        "export A='b c'",
        "export D='$E `id`'",
        "echo before",
    )
    assert launcher_lines(EVERYTHING.srun) == ("srun -n 4 --exclusive --cpu-bind=cores", "time -v")


def test_a_script_with_everything_is_good_bash():
    text = script_of(EVERYTHING, options=(("mem", "4G"), ("exclusive", "")))
    subprocess.run(["bash", "-n"], input=text, text=True, check=True, timeout=20)
    program = shutil.which("shellcheck")
    assert program, "shellcheck is not installed: apt-get install shellcheck"
    # As for the script without hooks; 1091, 1090: files that are not here.
    excluded = "--exclude=SC2317,SC2016,SC2209,SC2015,SC1091,SC1090"
    seen = subprocess.run(
        [program, "--shell=bash", excluded, "-"], input=text, capture_output=True, text=True, timeout=60
    )
    assert seen.stdout == ""


def test_an_option_with_a_blank_is_left_to_the_command_line():
    text = script_of(JobHooks(), options=(("comment", "x --array=1-5"), ("mem", "4G"), ("job", "a\nb")))
    assert "--array" not in text
    assert "#SBATCH --mem=4G\n" in text


def test_hooks_of_a_profile_are_put_inside_those_of_the_site():
    hooks = JobHooks(modules=("a",), prerun=("one",), postrun=("last",)).with_lines(
        (("prerun", "two"), ("module", "b"), ("postrun", "first"), ("prerun", "three"))
    )
    assert (hooks.modules, hooks.prerun, hooks.postrun) == (
        ("a", "b"),
        ("one", "two", "three"),
        ("first", "last"),
    )


@pytest.mark.parametrize(
    "hooks",
    [
        JobHooks(variables={"A-B": "x"}),
        JobHooks(variables={"": "x"}),
        JobHooks(variables={"log": "x"}),
        JobHooks(srun=SrunRules(True, {"n 4; id": ""})),
        JobHooks(srun=SrunRules(True, {}, "nsys 'profile")),
    ],
)
def test_what_cannot_stand_in_a_script_is_an_error_of_the_settings(hooks):
    with pytest.raises(ValueError, match="is no"):
        check_hooks(hooks)


def test_lines_before_and_after_see_one_another_and_the_log_has_what_they_print(tmp_path):
    bench = Bench(
        tmp_path,
        ("/bin/bash", "-c", "echo container"),
        prerun=("WORD=hello", 'echo "$WORD $UNSET"'),
        postrun=('echo "bye $WORD"',),
    )
    assert bench.finish() == (0, "")
    assert bench.log.read_text() == "hello \ncontainer\nbye hello\n"
    assert bench.events()["ended"].fields["exit_code"] == 0


@pytest.mark.parametrize("postrun", [("false",), ("exit 0",), ("nosuchcommand",)])
def test_the_exit_code_stays_the_container_s_whatever_comes_after(tmp_path, postrun):
    bench = Bench(tmp_path, ("/bin/bash", "-c", "exit 7"), postrun=(*postrun, "echo reached"))
    assert bench.finish()[0] == 7
    assert bench.events()["ended"].fields["exit_code"] == 7


def test_lines_before_that_fail_are_seen_and_those_that_end_the_script_end_the_job(tmp_path):
    bench = Bench(tmp_path, ("/bin/bash", "-c", "echo container"), prerun=("false", "nosuchcommand"))
    assert bench.finish()[0] == 0
    assert "nosuchcommand: command not found" in bench.log.read_text()

    other = Bench(
        tmp_path / "other", ("/bin/bash", "-c", "echo container"), prerun=("echo no licence; exit 3",)
    )
    assert other.finish()[0] == 3
    ended = other.events()["ended"].fields
    assert (ended["exit_code"], ended["cause"]) == (3, "prerun")
    assert other.log.read_text() == "no licence\n"


def test_what_lines_before_set_of_the_shell_does_not_hold_for_the_rest(tmp_path):
    bench = Bench(
        tmp_path, ("/bin/bash", "-c", "exit 7"), prerun=("set -euo pipefail -C", "shopt -s nullglob")
    )
    assert bench.finish()[0] == 7
    assert bench.events()["ended"].fields["exit_code"] == 7


def test_a_failure_under_errexit_still_ends_the_job_before_the_container(tmp_path):
    bench = Bench(tmp_path, prerun=("set -e", "false", "echo reached"))
    assert bench.finish()[0] == 1
    assert bench.events()["ended"].fields["cause"] == "prerun"
    assert bench.log.read_text() == ""


def test_lines_that_are_only_a_remark_are_good_bash(tmp_path):
    bench = Bench(
        tmp_path, ("/bin/bash", "-c", "echo container"), prerun=("# nothing",), postrun=("# nothing",)
    )
    assert bench.finish() == (0, "")
    assert bench.log.read_text() == "container\n"


def test_a_line_that_ends_the_script_after_slurm_s_signal_is_told_with_the_signal(tmp_path):
    bench = Bench(tmp_path, prerun=("echo ready; sleep 0.5 || :", "exit 3"))
    process = bench.start()
    bench.wait_for(lambda: bench.log.exists() and "ready" in bench.log.read_text(), "the line before")
    process.terminate()
    process.communicate(timeout=20)
    ended = bench.events()["ended"].fields
    assert (ended["exit_code"], ended["cause"]) == (3, "TERM")


def test_a_signal_while_lines_run_after_the_container_does_not_change_how_that_ended(tmp_path):
    bench = Bench(
        tmp_path, ("/bin/bash", "-c", "echo container"), postrun=("echo ready", "sleep 0.5", "echo reached")
    )
    process = bench.start()
    bench.wait_for(lambda: bench.log.exists() and "ready" in bench.log.read_text(), "the line after")
    process.terminate()
    process.communicate(timeout=20)
    ended = bench.events()["ended"].fields
    assert (ended["exit_code"], ended["cause"]) == (0, "exit")


def test_a_script_that_is_killed_in_the_lines_after_has_said_before_how_the_container_ended(tmp_path):
    bench = Bench(tmp_path, ("/bin/bash", "-c", "echo container; exit 7"), postrun=("echo ready", "sleep 1"))
    process = bench.start()
    bench.wait_for(lambda: bench.log.exists() and "ready" in bench.log.read_text(), "the line after")
    process.kill()
    process.communicate(timeout=20)
    assert "ended" not in bench.events()
    finished = bench.events()["finished"].fields
    assert (finished["exit_code"], finished["cause"]) == (7, "exit")
    assert finished["log_bytes"] == len("container\n")


@pytest.mark.parametrize(
    "line",
    [
        "run=x spool=x token=x nonce=x log=x container=x arguments=x host='a b' attempt=x code=0 cause=x begun=x",
        "event() { false; }; now() { exit 9; }; outcome() { false; }; logged() { false; }",
        "IFS=,; umask 000; trap 'exit 8' TERM EXIT",
    ],
)
def test_lines_before_may_use_any_names_for_what_is_theirs(tmp_path, line):
    bench = Bench(tmp_path, ("/bin/bash", "-c", "umask; echo container"), prerun=(line,))
    assert bench.finish() == (0, "")
    assert bench.log.read_text() == "0077\ncontainer\n"
    ended = bench.events()["ended"].fields
    assert (ended["exit_code"], ended["cause"]) == (0, "exit")


def test_lines_before_that_end_the_script_may_have_used_any_names_too(tmp_path):
    bench = Bench(tmp_path, prerun=("echo words; spool=x token=x log=x; event() { false; }", "exit 3"))
    assert bench.finish()[0] == 3
    ended = bench.events()["ended"].fields
    assert (ended["exit_code"], ended["cause"], ended["log_bytes"]) == (3, "prerun", len("words\n"))


def test_a_warning_before_the_container_is_told_as_such_and_not_as_a_failure_of_the_analysis(tmp_path):
    bench = Bench(tmp_path, prerun=("echo ready; sleep 0.5", "code=0"))
    process = bench.start()
    bench.wait_for(lambda: bench.log.exists() and "ready" in bench.log.read_text(), "the line before")
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=20)
    ended = bench.events()["ended"].fields
    assert (ended["exit_code"], ended["cause"], ended["begun"]) == (143, "USR1", False)
    state = JobState(slurm_job_id="7", started={"restart": 0}, ended=ended)
    detail = JobDetail(SlurmJobId("7"), "gw-1", "FAILED", "", 143, 0, "n1", 0)
    for verdict in (verdict_of_last_word(state), verdict_of_slurm(state, detail)):
        assert verdict.code == "not_begun"
        assert "The analysis was not begun: SIGUSR1 came before that" in verdict.sentence


def test_what_srun_s_own_processes_used_is_not_told_as_the_container_s(tmp_path):
    bench = Bench(tmp_path, launcher=("/usr/bin/env",))
    assert bench.finish()[0] == 0
    assert not {"times", "memory_peak_bytes"} & set(bench.events()["ended"].fields)


def test_no_variable_of_the_script_can_be_set_by_a_setting():
    names = set(re.findall(r"^([a-z_]+)=", GOLDEN.read_text(), re.MULTILINE))
    assert names
    for name in names:
        with pytest.raises(ValueError, match=f"`{name}` is no name of a variable that is free"):
            check_hooks(JobHooks(variables={name: "x"}))


@pytest.mark.parametrize("code", [0, 3])
def test_a_site_s_line_that_ended_the_script_is_no_success_and_no_fault_of_the_analysis(code):
    ended = {"cause": "prerun", "exit_code": code, "node": "n1", "restart": 0}
    state = JobState(slurm_job_id="7", started={"restart": 0}, ended=ended)
    slurm = "COMPLETED" if code == 0 else "FAILED"
    detail = JobDetail(SlurmJobId("7"), "gw-1", slurm, "", code, 0, "n1", 0)
    for verdict in (verdict_of_event(state), verdict_of_last_word(state), verdict_of_slurm(state, detail)):
        assert (verdict.outcome, verdict.code) == (Outcome.ERROR, "prerun_failed")
        assert f"exit code {code} on n1" in verdict.sentence


def test_the_launcher_starts_the_container_and_hands_its_arguments_on(tmp_path):
    bench = Bench(tmp_path, launcher=("/usr/bin/env A=b",))
    assert bench.finish()[0] == 0
    assert bench.log.read_text() == "<a b><><$HOME><`id`><end\n>"


TEMPLATE = """{% extends "singularity.slurm" %}
{% block prerun %}
{{ super() }}
echo {{ token | q }} >>"$log"
{% endblock %}
{% block postrun %}
echo done >>"$log"
{% endblock %}
"""


def test_a_site_s_template_replaces_blocks_and_keeps_the_rest():
    text = render_script(replace(EXAMPLE, prerun=("module load x",)), site_template=TEMPLATE)
    assert "module load x\n" in text
    assert 'echo gw-abc-1 >>"$log"' in text
    assert 'echo done >>"$log"' in text
    assert "event ended" in text
    # Its own lines after the container may be killed as those of the settings may.
    assert text.index("event finished") < text.index("echo done")
    subprocess.run(["bash", "-n"], input=text, text=True, check=True, timeout=20)


@pytest.mark.parametrize(
    "text", ["{% extends 'x' %}", "{% block %}", "{{ nosuch }}", '{% extends "singularity.slurm" %}{% if %}']
)
def test_a_template_that_does_not_work_is_named_as_such(text):
    with pytest.raises(ValueError, match="template of the job script"):
        render_script(EXAMPLE, site_template=text)
