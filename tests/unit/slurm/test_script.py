"""The job script: its text, and what it does when bash runs it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from girder_worker_slurm.cluster.run_directory import RunDirectories
from girder_worker_slurm.job.state import JobState
from girder_worker_slurm.job.usage import cpu_seconds
from girder_worker_slurm.job.verdict import verdict_of_event, verdict_of_last_word
from girder_worker_slurm.script.render import (
    JobScript,
    argument_file,
    forbidden_head_option,
    render_script,
    sbatch_head,
)

GOLDEN = Path(__file__).parent / "golden" / "job.slurm"
EXAMPLE = JobScript(
    token="gw-abc-1",
    run="/shared/jobs/run/gw-abc-1",
    spool="/shared/jobs/spool",
    log="/shared/jobs/run/gw-abc-1/output.log",
    scratch="/shared/jobs/run/gw-abc-1/scratch",
    container=(
        "apptainer",
        "exec",
        "--mount",
        'type=bind,"source=/a b"',
        "it's",
        "$HOME",
        "`id`",
        "/x.sif",
        "*",
    ),
    sbatch_head=("#SBATCH --mem=4G", "#SBATCH --time=1:00:00"),
    thread_variables=("OMP_NUM_THREADS",),
    gpu_variables=("CUDA_VISIBLE_DEVICES", "SLURM_JOB_GPUS"),
    job_variables=("JOB_ID=SLURM_JOB_ID", "JOB_JOB_FORMATED_NODELIST=nodes_apart"),
    site_paths=("/data/atlas", "/opt/licence of it"),
    overlay="/shared/jobs/run/gw-abc-1/scratch/overlay.img",
    make_overlay=("apptainer", "overlay", "create", "/shared/jobs/run/gw-abc-1/scratch/overlay.img"),
)


def test_the_script_is_the_one_that_was_reviewed():
    """After a wanted change: python -m tests.unit.slurm.test_script writes the file anew; read its diff."""
    assert render_script(EXAMPLE) == GOLDEN.read_text()


def test_bash_understands_the_script():
    subprocess.run(["bash", "-n"], input=render_script(EXAMPLE), text=True, check=True, timeout=20)


def test_shellcheck_has_nothing_to_say_about_the_script():
    program = shutil.which("shellcheck")
    assert program, "shellcheck is not installed: apt-get install shellcheck"
    # 2317: `forward` is called by traps. 2016: the $HOME of the example is an argument. 2209: `exit` is a word here.
    # 2015: `a && b || c` is meant as it is written.
    argv = [program, "--shell=bash", "--exclude=SC2317,SC2016,SC2209,SC2015", "-"]
    seen = subprocess.run(argv, input=render_script(EXAMPLE), capture_output=True, text=True, timeout=60)
    assert seen.stdout == ""


@pytest.mark.parametrize("field", ["token", "run", "spool", "log", "scratch"])
@pytest.mark.parametrize("value", ["a\nb", "a\0b"])
def test_a_value_that_cannot_be_quoted_is_refused(field, value):
    with pytest.raises(ValueError, match="cannot stand"):
        render_script(JobScript(**{**EXAMPLE.__dict__, field: value}))


def test_only_the_head_that_sbatch_would_read_is_taken_from_a_sites_script():
    text = "#!/bin/bash\n#SBATCH --mem=1G  \n# a comment\n\n#SBATCH -p low\nmodule load x\n#SBATCH --time=1\n"
    assert sbatch_head(text) == ("#SBATCH --mem=1G", "#SBATCH -p low")
    assert sbatch_head("") == ()


@pytest.mark.parametrize("line", ["hetjob", "packjob", "  hetjob  # two jobs", "--wait", "-W", "--wai"])
def test_a_head_of_several_jobs_or_one_that_waits_is_refused(line):
    """`#SBATCH hetjob` makes two jobs of one; with `--wait` each submission waits for the end of its job."""
    assert forbidden_head_option((f"#SBATCH {line}",))


def test_options_that_only_begin_like_those_are_not_refused():
    assert (
        forbidden_head_option(("#SBATCH --wait-all-nodes=1", "#SBATCH --comment=hetjob", "#SBATCH -p hetjob"))
        is None
    )


def test_an_argument_with_nul_is_refused():
    with pytest.raises(ValueError, match="NUL"):
        argument_file(("a\0b",))


ARGUMENT = st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=("Cs",)))


@settings(max_examples=25, deadline=None)
@given(st.lists(ARGUMENT, max_size=8))
def test_every_argument_reaches_the_container_as_it_is(arguments):
    script = "mapfile -d '' -t arguments; printf '%s\\0' \"${#arguments[@]}\" \"${arguments[@]}\""
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    seen = subprocess.run(
        ["bash", "-c", script],
        input=argument_file(tuple(arguments)),
        capture_output=True,
        timeout=20,
        env=environment,
    ).stdout
    count, *words = seen.split(b"\0")[:-1]
    assert int(count) == len(arguments)
    assert words[: len(arguments)] == [argument.encode() for argument in arguments]


class Bench:
    """A run directory with a script in it, and bash to run it as Slurm would."""

    def __init__(self, tmp_path, container=("/bin/bash", "-c", 'printf "<%s>" "$@"', "name"), **script):
        self.runs = RunDirectories(tmp_path / "jobs root")
        self.runs.prepare()
        self.token = "gw-it-1"
        self.run = self.runs.create(self.token)
        self.runs.write(self.token, "nonce", b"secret")
        self.runs.write(self.token, "arguments", argument_file(("a b", "", "$HOME", "`id`", "end\n")))
        self.log = self.run / "output.log"
        script = JobScript(
            token=self.token,
            run=str(self.run),
            spool=str(self.runs.spool),
            log=str(self.log),
            scratch=str(self.run / "scratch"),
            container=tuple(container),
            **script,
        )
        self.script = self.runs.write(self.token, "job.slurm", render_script(script).encode(), mode=0o700)

    def start(self, job_id="11", restart="0", **slurm):
        environment = {
            "PATH": os.environ["PATH"],
            "SLURM_JOB_ID": job_id,
            "SLURM_RESTART_COUNT": restart,
            "SLURMD_NODENAME": "node7",
            **slurm,
        }
        # As slurmstepd starts it; a shell's `&` hands down SIGINT as ignored, and bash cannot trap what it ignores.
        return subprocess.Popen(
            ["env", "--default-signal", str(self.script)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def finish(self, **start):
        process = self.start(**start)
        output, _ = process.communicate(timeout=20)
        return process.returncode, output

    def events(self):
        return {event.kind: event for event in self.runs.events()}

    def wait_for(self, condition, what):
        until = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < until, f"{what} did not happen; seen: {self.runs.events()}"
            time.sleep(0.01)


def test_a_run_claims_its_directory_and_tells_its_start_and_its_end(tmp_path):
    bench = Bench(tmp_path)
    assert bench.finish() == (0, "")
    events = bench.events()
    assert set(events) == {"started", "ended"}
    assert {event.nonce for event in events.values()} == {"secret"}
    assert {event.slurm_job_id for event in events.values()} == {"11"}
    assert events["started"].fields["node"] == "node7"
    assert events["ended"].fields["exit_code"] == 0
    assert events["ended"].fields["cause"] == "exit"
    assert events["ended"].fields["log_bytes"] == bench.log.stat().st_size
    assert (bench.runs.claimed_by(bench.token), bench.runs.claimant(bench.token)) == ("job", "11")
    assert (bench.run / "scratch").is_dir()


def test_the_container_s_environment_file_learns_what_slurm_allocated(tmp_path):
    bench = Bench(
        tmp_path,
        thread_variables=("OMP_NUM_THREADS", "MKL_NUM_THREADS"),
        gpu_variables=("CUDA_VISIBLE_DEVICES", "SLURM_JOB_GPUS", "ROCR_VISIBLE_DEVICES"),
    )
    bench.runs.write(bench.token, "environment", b'GIVEN="x"\n')
    slurm = {
        "SLURM_CPUS_ON_NODE": "8",
        "CUDA_VISIBLE_DEVICES": "GPU-1a,MIG-2/0",
        "ROCR_VISIBLE_DEVICES": "0$(id)",
    }
    bench.finish(**slurm)
    expected = 'GIVEN="x"\nOMP_NUM_THREADS=8\nMKL_NUM_THREADS=8\nCUDA_VISIBLE_DEVICES=GPU-1a,MIG-2/0\n'
    assert (bench.run / "environment").read_text() == expected


def test_the_container_learns_about_its_job_under_names_of_no_scheduler(tmp_path):
    pairs = (
        "JOB_ID=SLURM_JOB_ID",
        "JOB_NODELIST=SLURM_JOB_NODELIST",
        "APART=nodes_apart",
        "X=SLURM_JOB_NAME",
        "Y=NOT_SET",
    )
    bench = Bench(tmp_path, job_variables=pairs)
    bench.finish(SLURM_JOB_NODELIST="n1,n2", SLURM_JOB_NAME="$(id)")
    assert (bench.run / "environment").read_text() == 'JOB_ID="11"\nJOB_NODELIST="n1,n2"\nAPART="n1 n2"\n'


def test_nodes_in_brackets_are_told_apart_by_slurm(tmp_path):
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames n[1-2]" ] && printf "n1\\nn2\\n"\n')
    scontrol.chmod(0o755)
    bench = Bench(tmp_path, job_variables=("ALL=SLURM_JOB_NODELIST", "APART=nodes_apart"))
    bench.finish(SLURM_JOB_NODELIST="n[1-2]", PATH=f"{scontrol.parent}:{os.environ['PATH']}")
    assert (bench.run / "environment").read_text() == 'ALL="n[1-2]"\nAPART="n1 n2"\n'


def test_a_path_of_the_site_that_is_not_on_the_node_ends_the_job_before_its_container(tmp_path):
    (tmp_path / "is here").mkdir()
    paths = (str(tmp_path / "is here"), "/no/such/atlas of the site")
    bench = Bench(tmp_path, ("/bin/bash", "-c", "echo ran"), site_paths=paths)
    assert bench.finish()[0] == 72
    ended = bench.events()["ended"].fields
    assert (ended["cause"], ended["path"]) == ("bind", "/no/such/atlas of the site")
    assert "ran" not in bench.log.read_text()
    verdict = verdict_of_event(JobState(ended=ended, slurm_job_id="11"))
    assert verdict.code == "site_data_missing"
    assert verdict == verdict_of_last_word(JobState(ended=ended, slurm_job_id="11"))
    assert "/no/such/atlas of the site, which the site mounts" in verdict.sentence
    assert "on node7" in verdict.sentence


def test_paths_that_are_on_the_node_stop_nothing(tmp_path):
    bench = Bench(tmp_path, ("/bin/bash", "-c", "echo ran"), site_paths=(str(tmp_path), "/bin/sh"))
    assert bench.finish()[0] == 0
    assert bench.log.read_text() == "ran\n"


def test_what_was_given_and_what_was_used_are_told(tmp_path):
    busy = "i=0; while [ $i -lt 60000 ]; do i=$((i + 1)); done"
    bench = Bench(tmp_path, ("/bin/bash", "-c", busy))
    bench.finish(SLURM_CPUS_ON_NODE="8", SLURM_MEM_PER_NODE="4096", SLURM_JOB_NUM_NODES="1")
    started, ended = (bench.events()[kind].fields for kind in ("started", "ended"))
    assert (started["cpus"], started["memory_mib"], started["nodes"]) == (8, 4096, 1)
    assert cpu_seconds(ended["times"]) > 0.01


def test_memory_of_a_control_group_that_is_not_the_job_s_is_not_told(tmp_path):
    # Whatever this test runs in has one, and it is not that of a Slurm job 11.
    bench = Bench(tmp_path)
    bench.finish(job_id="11")
    assert not {"memory_peak_bytes", "oom_kills"} & set(bench.events()["ended"].fields)


@pytest.mark.parametrize(
    ("slurm", "memory"),
    [
        ({"SLURM_MEM_PER_CPU": "500", "SLURM_CPUS_ON_NODE": "4"}, 2000),
        ({"SLURM_MEM_PER_CPU": "500"}, None),
        ({"SLURM_MEM_PER_NODE": "$(id)", "SLURM_CPUS_ON_NODE": "x"}, None),
        ({}, None),
    ],
)
def test_memory_that_was_given_is_told_if_slurm_says_so(tmp_path, slurm, memory):
    bench = Bench(tmp_path)
    bench.finish(**slurm)
    assert bench.events()["started"].fields.get("memory_mib") == memory


@pytest.mark.parametrize(
    ("slurm", "cpus"),
    [
        ({"SLURM_CPUS_PER_TASK": "2", "SLURM_CPUS_ON_NODE": "8"}, "2"),
        ({"SLURM_CPUS_ON_NODE": "4(x2)"}, None),
        ({}, None),
    ],
)
def test_the_processors_of_a_task_count_before_those_of_the_node(tmp_path, slurm, cpus):
    bench = Bench(tmp_path, thread_variables=("OMP_NUM_THREADS",))
    bench.finish(**slurm)
    said = (bench.run / "environment").read_text()
    assert said == ("" if cpus is None else f"OMP_NUM_THREADS={cpus}\n")


def test_an_overlay_is_there_for_the_container_and_gone_after_it(tmp_path):
    overlay = tmp_path / "it's an overlay"
    bench = Bench(
        tmp_path,
        ("/bin/bash", "-c", f'cat "{overlay}"'),
        overlay=str(overlay),
        make_overlay=("/bin/bash", "-c", f'echo made >"{overlay}"'),
    )
    bench.finish()
    assert bench.log.read_text() == "made\n"
    assert not overlay.exists()


def test_without_its_overlay_no_container_is_started_and_the_log_says_why(tmp_path):
    bench = Bench(
        tmp_path,
        ("/bin/bash", "-c", "echo ran"),
        overlay=str(tmp_path / "overlay"),
        make_overlay=("/bin/bash", "-c", "echo no room >&2; exit 1"),
    )
    assert bench.finish()[0] == 74
    assert bench.events()["ended"].fields["exit_code"] == 74
    assert bench.log.read_text().startswith(
        "no room\nThe overlay for what the container writes could not be made"
    )


def test_the_container_gets_the_arguments_as_they_are(tmp_path):
    bench = Bench(tmp_path)
    bench.finish()
    assert bench.log.read_text() == "<a b><><$HOME><`id`><end\n>"


def test_the_log_gets_both_streams_in_their_order(tmp_path):
    bench = Bench(tmp_path, ("/bin/bash", "-c", "echo out; echo err >&2; echo again"))
    bench.finish()
    assert bench.log.read_text() == "out\nerr\nagain\n"


def test_the_container_has_no_input_to_wait_for(tmp_path):
    bench = Bench(tmp_path, ("/bin/cat", "-"))
    bench.runs.write(bench.token, "arguments", b"")
    assert bench.finish() == (0, "")


@pytest.mark.parametrize(("code", "told"), [(3, 0), (137, 9), (255, 127)])
def test_the_exit_code_is_the_containers(tmp_path, code, told):
    bench = Bench(tmp_path, ("/bin/bash", "-c", f"exit {code}"))
    assert bench.finish()[0] == code
    assert bench.events()["ended"].fields["exit_code"] == code
    assert bench.events()["ended"].fields["signal"] == told


def test_a_container_that_is_killed_tells_its_signal(tmp_path):
    bench = Bench(tmp_path, ("/bin/bash", "-c", "kill -9 $$"))
    bench.finish()
    assert bench.events()["ended"].fields["exit_code"] == 137
    assert bench.events()["ended"].fields["cause"] == "exit"


def test_an_exit_code_that_a_full_disk_swallowed_is_known_from_the_shell(tmp_path):
    bench = Bench(tmp_path, ("/bin/bash", "-c", "exit 7"))
    full = bench.run / "exit_code"
    full.symlink_to("/dev/null")  # reads as the empty file that a full disk leaves
    bench.finish()
    ended = bench.events()["ended"].fields
    assert isinstance(ended["exit_code"], int)
    assert ended["exit_code"] != 0


def test_a_program_that_does_not_exist_is_told_as_127(tmp_path):
    bench = Bench(tmp_path, ("/no/such/program",))
    bench.finish()
    assert bench.events()["ended"].fields["exit_code"] == 127
    assert "No such file" in bench.log.read_text()


def test_the_second_copy_of_a_job_runs_nothing_and_says_so(tmp_path):
    bench = Bench(tmp_path, ("/bin/bash", "-c", "echo ran"))
    bench.finish(job_id="11")
    assert bench.finish(job_id="12")[0] == 0
    assert bench.log.read_text() == "ran\n"
    assert bench.events()["refused"].slurm_job_id == "12"
    assert bench.events()["refused"].fields["why"] == "claimed"
    assert bench.runs.claimant(bench.token) == "11"


def test_a_requeued_job_does_not_run_a_second_time(tmp_path):
    bench = Bench(tmp_path, ("/bin/bash", "-c", "echo ran"))
    bench.finish(restart="0")
    bench.finish(restart="1")
    assert bench.log.read_text() == "ran\n"
    assert bench.events()["refused"].fields["restart"] == 1


def test_of_many_copies_at_once_exactly_one_runs(tmp_path):
    bench = Bench(tmp_path, ("/bin/bash", "-c", "echo ran"))
    for process in [bench.start(job_id=str(number)) for number in range(8)]:
        process.communicate(timeout=20)
    assert bench.log.read_text() == "ran\n"
    assert sum(event.kind == "refused" for event in bench.runs.events()) == 7


def test_a_job_that_the_worker_gave_up_runs_nothing(tmp_path):
    bench = Bench(tmp_path, ("/bin/bash", "-c", "echo ran"))
    assert bench.runs.claim(bench.token, "cancelled")
    assert bench.finish()[0] == 0
    assert not bench.log.exists()
    assert set(bench.events()) == {"refused"}


def test_the_worker_cannot_take_the_claim_of_a_job_that_runs(tmp_path):
    bench = Bench(tmp_path)
    bench.finish()
    assert not bench.runs.claim(bench.token, "cancelled")
    assert bench.runs.claimed_by(bench.token) == "job"


def test_a_job_whose_directory_is_gone_says_so_and_fails(tmp_path):
    bench = Bench(tmp_path)
    text = bench.script.read_bytes()
    bench.runs.remove(bench.token)
    elsewhere = tmp_path / "copy-of-slurmd"
    elsewhere.write_bytes(text)
    seen = subprocess.run(["bash", str(elsewhere)], capture_output=True, text=True, timeout=20)
    assert seen.returncode == 66
    assert "is not there" in seen.stderr
    assert bench.runs.events() == []


TRAP = 'trap "echo asked; exit 5" TERM; echo ready; while :; do sleep 0.02; done'


@pytest.mark.parametrize("name", ["TERM", "INT", "USR1", "USR2", "XCPU"])
def test_a_signal_to_the_script_asks_the_container_to_end_and_is_told_as_the_cause(tmp_path, name):
    bench = Bench(tmp_path, ("/bin/bash", "-c", TRAP))
    process = bench.start()
    bench.wait_for(lambda: bench.log.exists() and "ready" in bench.log.read_text(), "the start")
    process.send_signal(getattr(signal, f"SIG{name}"))
    process.communicate(timeout=20)
    ended = bench.events()["ended"].fields
    assert (ended["cause"], ended["exit_code"]) == (name, 5)
    assert bench.log.read_text() == "ready\nasked\n"


def test_a_container_that_goes_on_after_a_signal_is_waited_for(tmp_path):
    script = 'trap "echo asked" TERM; echo ready; for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.03; done; exit 0'
    bench = Bench(tmp_path, ("/bin/bash", "-c", script))
    process = bench.start()
    bench.wait_for(lambda: bench.log.exists() and "ready" in bench.log.read_text(), "the start")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert bench.events()["ended"].fields["exit_code"] == 0
    assert bench.events()["ended"].fields["cause"] in ("TERM", "USR1")


def test_a_container_that_dies_of_the_signal_tells_it(tmp_path):
    bench = Bench(tmp_path, ("/bin/bash", "-c", "echo ready; exec sleep 60"))
    process = bench.start()
    bench.wait_for(lambda: bench.log.exists() and "ready" in bench.log.read_text(), "the start")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    ended = bench.events()["ended"].fields
    assert (ended["cause"], ended["exit_code"], ended["signal"]) == ("TERM", 143, 15)


def test_events_and_claims_can_be_read_by_nobody_else(tmp_path):
    bench = Bench(tmp_path)
    bench.finish()
    for path in (*bench.runs.spool.iterdir(), bench.run / "claim", bench.log):
        assert path.stat().st_mode & 0o077 == 0, path


def test_an_event_is_one_object_of_json(tmp_path):
    bench = Bench(tmp_path)
    bench.finish()
    for event in bench.runs.events():
        assert json.loads(event.path.read_text())["token"] == bench.token


if __name__ == "__main__":
    GOLDEN.write_text(render_script(EXAMPLE))
