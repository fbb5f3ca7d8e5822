"""Whatever programs, nodes and users write: a parser answers, or says no in the one way that it documents, and soon."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict
from xml.sax.saxutils import escape

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from girder_worker_singularity.errors import ImageReferenceInvalid
from girder_worker_singularity.image.reference import parse_image_reference
from girder_worker_singularity.run.image_rules import parse_image_rule
from girder_worker_singularity.sif.progress import conversion_phase
from girder_worker_slurm.celery_worker.object_decoder import decode_text
from girder_worker_slurm.cluster.run_directory import RunDirectories
from girder_worker_slurm.cluster.slurm_accounting import parse_sacct
from girder_worker_slurm.cluster.slurm_commands import (
    is_queue_full,
    is_submit_limit,
    is_unsure,
    parse_configuration,
    parse_sbatch,
    parse_scontrol,
    parse_squeue,
)
from girder_worker_slurm.doctor.probe_verdict import parse_report
from girder_worker_slurm.errors import MessageUndecodable, SettingsInvalid
from girder_worker_slurm.girder.datalist import has_flag, is_datalist_request
from girder_worker_slurm.girder.output_text import read_output
from girder_worker_slurm.job.state import JobState, fold
from girder_worker_slurm.job.usage import accounted_sentence, usage_of
from girder_worker_slurm.job.verdict import verdict_of_event, verdict_of_last_word, verdict_of_slurm
from girder_worker_slurm.options.partitions import parse_partitions
from girder_worker_slurm.settings import load_settings
from girder_worker_slurm.users.mapping_file import parse_mapping

# A busy machine is no reason to fail.
fuzz = settings(
    derandomize=True, max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def words(*known: str) -> st.SearchStrategy[str]:
    """Lines as a program may print them, whole, cut, or full of something else."""
    part = st.sampled_from(
        ["", "|", "=", " ", ":", "-", ".", "/", "²", "٣", "\0", "\x1b[0m", "9" * 25, "1e999", *known]
    )
    line = st.lists(part | st.text(max_size=3), max_size=12).map("".join)
    return st.lists(line, max_size=4).map("\n".join)


NUMBERS = (
    "0",
    "1",
    "17",
    "²",
    "1.2.3",
    ".",
    "9" * 400,
    "-1",
    "NaN",
    "inf",
    "1-02:03:04",
    "UNLIMITED",
    "N/A",
    "",
)
number = st.sampled_from(NUMBERS) | st.text(max_size=3)


@fuzz
@given(words("17|RUNNING|None|gw-a-1", "17|", "CANCELLED by 0", "|||", "17_[1-3]"))
def test_any_listing_of_squeue(text):
    for row in parse_squeue(text):
        assert row.slurm_job_id.isdigit()


@fuzz
@given(words("17", "17;cluster", "sbatch: error:", "MaxSubmitJobs", "Socket timed out"))
def test_any_answer_of_sbatch(text):
    found = parse_sbatch(text)
    assert found is None or found.isdigit()
    assert {is_submit_limit(text), is_unsure(text), is_queue_full(text)} <= {True, False}


@fuzz
@given(
    words("JobId=17 ", "JobName=gw ", "ExitCode=0:0 ", "Comment=JobState=FAILED "),
    st.dictionaries(
        st.sampled_from(["JobName", "ExitCode", "Restarts", "RunTime", "NodeList", "JobState"]), number
    ),
    number,
)
def test_any_answer_of_scontrol(text, fields, job_id):
    line = " ".join([f"JobId={job_id}", *(f"{name}={value}:{value}" for name, value in fields.items())])
    for answer in (text, line, f"banner\n{line}\n{text}"):
        found = parse_scontrol(answer)
        assert found is None or (
            found.slurm_job_id.isdigit() and found.exit_code >= 0 and found.restarts >= 0
        )


@fuzz
@given(
    words("17|gw|COMPLETED|1|00:01|1K|n1"), st.lists(st.tuples(number, number, number, number), max_size=3)
)
def test_any_answer_of_sacct(text, rows):
    lines = [f"{job}|gw|COMPLETED|{elapsed}|{cpu}|{memory}K|n1" for job, elapsed, cpu, memory in rows]
    for found in parse_sacct("\n".join([text, *lines])).values():
        assert accounted_sentence(found)


@fuzz
@given(words("PartitionName=a ", "MaxTime=", "TRES=mem=", "TotalNodes="), number, number, number)
def test_any_description_of_partitions(text, minutes, memory, nodes):
    line = (
        f"PartitionName=a MaxTime={minutes} DefaultTime={minutes} TotalNodes={nodes} TRES=cpu=1,mem={memory}M"
    )
    for answer in (text, line):
        for found in parse_partitions(answer).values():
            assert found.most_minutes >= 0
    parse_configuration(text)
    parse_report(text)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
EVENT_FIELDS = (
    "at node exit_code signal cause seconds memory_peak_bytes oom_kills log_bytes cpus memory_mib times restart why"
).split()


@fuzz
@given(
    st.binary(max_size=60),
    st.dictionaries(st.sampled_from(["token", "kind", "slurm_job_id", "nonce", "x"]), ANY_JSON),
)
def test_any_file_in_the_spool_is_an_event_of_the_job_that_names_it_or_none(
    tmp_path_factory, garbage, fields
):
    root = tmp_path_factory.getbasetemp() / "spool"
    runs = RunDirectories(root)
    runs.prepare()
    for data in (garbage, json.dumps(fields).encode()):
        (root / "spool" / "gw-1.ended.1.json").write_bytes(data)
        assert all(event.token == "gw-1" for event in runs.events())


def test_an_event_cannot_name_another_job_or_place(tmp_path):
    runs = RunDirectories(tmp_path)
    runs.prepare()
    for token, wanted in (("gw-1", 1), ("gw-2", 0), ("../../..", 0), ("", 0)):
        event = {"token": token, "kind": "ended", "slurm_job_id": "1", "nonce": "n"}
        (tmp_path / "spool" / "gw-1.ended.1.json").write_text(json.dumps(event), encoding="utf-8")
        assert len(runs.events(lambda name: name == "gw-1")) == wanted, token


@fuzz
@given(
    st.dictionaries(st.sampled_from(EVENT_FIELDS), ANY_JSON),
    st.dictionaries(st.sampled_from(EVENT_FIELDS), ANY_JSON),
)
def test_what_an_event_says_is_believed_only_if_it_can_be_meant(started, ended):
    own = {"token": "gw-1", "slurm_job_id": "17"}
    state = fold(
        [
            {"event": "attempt", "number": 1, "token": "gw-1", "nonce": "n"},
            {"event": "submitted", "slurm_job_id": "17", "at": 1.0},
            {**started, **own, "event": "started"},
            {**ended, **own, "event": "ended"},
        ]
    )
    assert isinstance(state, JobState)
    usage = usage_of(state)
    assert usage is not None
    assert isinstance(usage.sentence(), str)
    json.dumps(asdict(usage), allow_nan=False)
    killed = parse_scontrol("JobId=17 JobName=gw-1 JobState=OUT_OF_MEMORY ExitCode=0:125")
    assert killed is not None
    for verdict in (verdict_of_event(state), verdict_of_last_word(state), verdict_of_slurm(state, killed)):
        assert verdict is None or verdict.sentence


@fuzz
@given(
    words(
        "[jobs]",
        "root = /x",
        "[slurm.options]",
        "mem = 1G",
        "# no",
        "  more",
        "[slurm]",
        "poll_seconds =",
        "]",
        "[users]",
    ),
    st.binary(max_size=8),
)
def test_any_settings_file_is_read_or_told(tmp_path_factory, text, garbage):
    path = tmp_path_factory.getbasetemp() / "any.cfg"
    for data in (
        text.encode("utf-8", "surrogatepass"),
        f"[jobs]\n{text}".encode("utf-8", "surrogatepass"),
        garbage,
    ):
        path.write_bytes(data)
        with contextlib.suppress(SettingsInvalid):
            load_settings((path,), {})


@fuzz
@given(
    words(
        "docker://",
        "oras://",
        "host:5000",
        "a/b",
        ":tag",
        "@sha256:",
        "0" * 64,
        "localhost",
        "[::1]",
        "library://",
    )
)
def test_any_image_reference_is_taken_apart_or_refused(text):
    for one in (text, *text.splitlines()):
        try:
            found = parse_image_reference(one)
        except ImageReferenceInvalid:
            continue
        assert "/" not in found.sif_name
        assert parse_image_reference(str(found)) == found


@fuzz
@given(
    words(
        "<filter-progress>",
        "</filter-progress>",
        "<filter-start>",
        "</filter-start>",
        "<filter-name>",
        "NaN",
        "-inf",
        "&#x0;",
    )
)
def test_any_progress(text):
    read = read_output(text.encode("utf-8", "surrogatepass"), final=True)
    assert read.progress is None or 0 <= read.progress <= 1


@fuzz
@given(words("Bytes: fetching ", " of ", "?", "INFO:", "Copying blob"), number, number)
def test_any_line_of_a_conversion(text, done, total):
    for line in (*text.splitlines(), f"Bytes: writing {done} of {total}"):
        conversion_phase(line)


@fuzz
@given(
    words(
        "<executable>",
        "<parameters>",
        "<string datalist='",
        "'/>",
        '{"a": null}',
        "<!DOCTYPE x [",
        "<!ENTITY a",
        "&a;",
        "&quot;",
    )
)
def test_any_description_of_a_cli(text):
    for description in (text, f"<executable><parameters>{text}</parameters></executable>"):
        assert is_datalist_request(["--x", "datalist"], description + "datalist") in (True, False)
        assert has_flag(description, "--gpu") in (True, False)


@fuzz
@given(words("writable", "overlay", "none", ","))
def test_any_rule_of_an_image(text):
    with contextlib.suppress(ValueError):
        parse_image_rule(text)


def mapping_or_refusal(text):
    try:
        parse_mapping(text)
    except ValueError:
        return


def reference_or_refusal(text):
    try:
        parse_image_reference(text)
    except ImageReferenceInvalid:
        return


def message_or_refusal(text):
    try:
        decode_text(text, ())
    except MessageUndecodable:
        return


BIG = 300_000
#: Half a megabyte and more of what a backtracking or copying parser would need minutes for.
LONG = {
    "squeue, bars": (parse_squeue, "|" * BIG),
    "squeue, lines": (parse_squeue, "17|R|None|gw\n" * (BIG // 10)),
    "sbatch": (parse_sbatch, "1" * BIG + ";" * BIG),
    "sbatch, complaints": (is_unsure, "Connection " * (BIG // 10)),
    "scontrol, one word": (parse_scontrol, "JobId=1 " + "a" * BIG),
    "scontrol, blanks": (parse_scontrol, "JobId=1" + " a" * BIG),
    "sacct": (parse_sacct, ("1|" * 6 + "1\n") * (BIG // 10)),
    "sacct, time": (parse_sacct, f"1|gw|COMPLETED|1|{'1:' * BIG}|{'1' * 300}K|n"),
    "partitions": (parse_partitions, "PartitionName=a TRES=" + ",mem=" * BIG),
    "reference, dashes": (reference_or_refusal, "a-" * BIG),
    "reference, short": (reference_or_refusal, "a" + "-a" * 300 + "!"),
    "registry, short": (reference_or_refusal, "a-" * 250 + "!.a:1/x"),
    "output, openings": (lambda text: read_output(text.encode()), "<filter-start>" * (BIG // 10)),
    "output, names": (
        lambda text: read_output(text.encode()),
        "<filter-start><filter-name>" * (BIG // 20) + "</filter-start>" * 100,
    ),
    "output, brackets": (lambda text: read_output(text.encode()), "<" * BIG),
    "output, blanks": (
        lambda text: read_output(text.encode()),
        ("<filter-progress>1</filter-progress>" + " " * 99) * (BIG // 100),
    ),
    "conversion": (conversion_phase, "Bytes: fetching " + "1" * BIG + " of x"),
    "mapping": (mapping_or_refusal, "users:\n" + "  a: {accounts: b}\n" * 2000),
    "mapping, aliases": (
        mapping_or_refusal,
        "a: &a [x]\n" + "".join(f"b{n}: [*a, *a]\n" for n in range(2000)),
    ),
    "mapping, brackets": (mapping_or_refusal, "[" * 2000),
    "message": (message_or_refusal, "[" + '{"py/object": "a"},' * (BIG // 10) + "1]"),
    "message, keys": (message_or_refusal, json.dumps({f"json://{n}": n for n in range(BIG // 10)})),
    "message, references": (message_or_refusal, json.dumps([[], *({"py/id": 1} for _ in range(BIG // 10))])),
    "description": (
        lambda text: is_datalist_request(["datalist"], text),
        f"<a>{escape('<') * BIG}</a>datalist",
    ),
}


@pytest.mark.parametrize("name", LONG)
def test_long_input_takes_time_by_its_length_and_no_more(name):
    parse, text = LONG[name]
    before = time.process_time()
    parse(text)
    # Less than half a second here; what grows by the square of the length takes minutes.
    assert time.process_time() - before < 10
