from __future__ import annotations

import json
from pathlib import Path

import pytest

from girder_worker_singularity.command_runner import CommandResult
from girder_worker_singularity.errors import CliContractViolated, ContainerNotStarted, ProgramMissing
from girder_worker_singularity.image.config import ImageConfig
from girder_worker_singularity.image.reference import parse_image_reference
from girder_worker_singularity.run.cli_contract import list_clis, run_on_this_host
from girder_worker_singularity.sif.shelf import Sif
from girder_worker_singularity.testing import FakeAnswer, FakeCommandRunner

SIF = Sif(Path("/s/tool.sif"), parse_image_reference("team/tool:1"), ImageConfig(entrypoint=("./run",)))


def image(answers):
    """An image that answers calls from a table; a number is an exit code."""

    def run(arguments):
        answer = answers.get(" ".join(arguments), 2)
        if isinstance(answer, int):
            return CommandResult(tuple(arguments), answer, "", "went wrong")
        return CommandResult(tuple(arguments), 0, answer, "")

    return run


def listed(clis, **answers):
    return list_clis(SIF, image({"--list_cli": json.dumps(clis), **answers}))


def test_a_cli_describes_itself_in_xml_by_default():
    (cli,) = listed({"A": {"type": "python"}}, **{"A --xml": "<executable/>"})
    assert (cli.name, cli.cli_type, cli.desc_type, cli.description) == ("A", "python", "xml", "<executable/>")
    assert cli.spec == {"type": "python", "desc-type": "xml", "xml": "<executable/>"}


def test_what_is_printed_around_a_description_is_dropped():
    clis = {"A": {}, "B": {"desc-type": "json"}}
    a, b = listed(clis, **{"A --xml": "starting\n<?xml?><x/>\ndone", "B --json": 'noise {"a": {}} noise'})
    assert a.description == "<?xml?><x/>"
    assert b.description == '{"a": {}}'


def test_yaml_is_kept_as_it_is():
    (cli,) = listed({"A": {"desc-type": "yaml"}}, **{"A --yaml": "name: A\n"})
    assert cli.description == "name: A\n"


def test_of_several_description_types_the_first_known_is_used():
    (cli,) = listed({"A": {"desc-type": ["toml", "json", "xml"]}}, **{"A --json": "{}"})
    assert (cli.desc_type, cli.spec["desc-type"]) == ("json", "json")


def test_other_keys_are_kept():
    (cli,) = listed({"A": {"docker-params": {"mem_limit": "1g"}, "alias": ["b"]}}, **{"A --xml": "<x/>"})
    assert cli.spec["docker-params"] == {"mem_limit": "1g"}
    assert cli.cli_type == "Unknown"


def test_noise_around_the_list_is_dropped():
    run = image({"--list_cli": '[2026] Starting {memcached}\n{"A": {}}\n{done}', "A --xml": "<x/>"})
    assert [cli.name for cli in list_clis(SIF, run)] == ["A"]


def test_an_image_without_clis_has_none():
    assert listed({}) == []


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({}, r"'--list_cli' with exit code 2 and said: 'went wrong'"),
        ({"--list_cli": "no json"}, "not JSON: 'no json'"),
        ({"--list_cli": "[1]"}, "not a mapping"),
        ({"--list_cli": '{"A": "x"}'}, "not a mapping"),
        ({"--list_cli": '{"A": {"desc-type": "toml"}}'}, "CLI A with the description type 'toml'"),
        ({"--list_cli": '{"A": {}}', "A --xml": 1}, "'A --xml' with exit code 1"),
        ({"--list_cli": '{"A": {}}', "A --xml": "nothing"}, "'A --xml' with no XML"),
        ({"--list_cli": '{"A": {"desc-type": "json"}}', "A --json": "}{"}, "no JSON"),
    ],
)
def test_an_image_that_breaks_the_contract_is_told_where(answers, message):
    with pytest.raises(CliContractViolated, match=message) as caught:
        list_clis(SIF, image(answers))
    assert "team/tool:1" in str(caught.value)


@pytest.mark.parametrize(
    "said",
    [
        "ERROR  : Failed to create user namespace: not allowed to create user namespace\n",
        # As Apptainer 1.4.5 said it.
        (
            "\x1b[91mERROR  : Failed to create user namespace: maximum number of user namespaces exceeded, check"
            " /proc/sys/user/max_user_namespaces\n\x1b[0m"
        ),
        "FATAL:   container creation failed: while mounting image: squashfuse mount failed: fuse: device not found\n",
    ],
)
def test_a_host_that_can_start_no_container_is_not_the_images_fault(said):
    def run(arguments):
        return CommandResult(tuple(arguments), 1, "", said)

    with pytest.raises(ContainerNotStarted, match="No container can be started on this host") as caught:
        list_clis(SIF, run)
    assert said.split("\n")[0][-20:] in str(caught.value)
    assert "\\x1b" not in str(caught.value)
    assert "must print" not in str(caught.value)


def test_running_here_starts_where_this_user_can_be(tmp_path):
    runner = FakeCommandRunner({"apptainer": FakeAnswer(stdout="{}")})
    run_on_this_host(SIF, ["--list_cli"], runner=runner, scratch=tmp_path)
    assert runner.calls[0].cwd == tmp_path


def test_running_here_appends_the_arguments_to_the_entrypoint(tmp_path):
    runner = FakeCommandRunner({"apptainer": FakeAnswer(stdout="{}")})
    assert run_on_this_host(SIF, ["--list_cli"], runner=runner, scratch=tmp_path).stdout == "{}"
    assert runner.calls[0].argv[-3:] == ("/s/tool.sif", "./run", "--list_cli")


def test_variables_of_the_image_go_through_a_private_file(tmp_path):
    odd = Sif(SIF.path, SIF.reference, ImageConfig(entrypoint=("./run",), environment=("A=$HOME",)))
    runner = FakeCommandRunner({"apptainer": FakeAnswer()})
    run_on_this_host(odd, ["x"], runner=runner, scratch=tmp_path)
    argv = runner.calls[0].argv
    file = Path(argv[argv.index("--env-file") + 1].strip('"'))
    assert file.read_text() == 'A="\\$HOME"\n'
    assert file.stat().st_mode & 0o777 == 0o600


def test_an_image_that_hangs_breaks_the_contract(tmp_path):
    runner = FakeCommandRunner({"apptainer": FakeAnswer(takes_seconds=1000)})
    with pytest.raises(CliContractViolated, match="within 300 s"):
        run_on_this_host(SIF, ["--list_cli"], runner=runner, scratch=tmp_path)


def test_a_missing_apptainer_is_not_the_images_fault(tmp_path):
    with pytest.raises(ProgramMissing):
        run_on_this_host(SIF, ["--list_cli"], runner=FakeCommandRunner(), scratch=tmp_path)


def test_an_answer_whose_middle_is_missing_is_not_used():
    def run(arguments):
        return CommandResult(tuple(arguments), 0, "{}", "", truncated=True)

    with pytest.raises(CliContractViolated, match="more than can be read"):
        list_clis(SIF, run)


def described(desc_type, text):
    (cli,) = listed({"A": {"desc-type": desc_type}}, **{f"A --{desc_type}": text})
    return cli.description


def test_noise_with_brackets_of_its_own_is_dropped():
    xml = '<?xml version="1.0"?>\n<executable>\n<title>a > b</title></executable>'
    assert described("xml", f"<frozen importlib> warns\n{xml}\n<done>") == xml
    assert described("xml", "warning: <executable><title>T</title></executable > bye") == (
        "<executable><title>T</title></executable >"
    )
    json_text = '{"title": "T", "parameter_groups": [{"label": "}"}]}'
    assert described("json", f'{{memcached}} {{"level": {{"title": 1}}}}\n{json_text}\n{{done}}') == json_text


def test_noise_around_yaml_is_dropped_where_the_description_is_recognized():
    yaml = "title: T\ndescription: >-\n  long:\n  text\nparameter_groups:\n- label: IO\n  x: [1,\n2\n]\n"
    assert described("yaml", f"Starting up ...\nWarning: old\n{yaml}\nall done\n") == yaml
    assert described("yaml", f"noise\n---\n{yaml}...\nbye bye\n") == f"---\n{yaml}...\n"
    assert described("yaml", '"title": T\n') == '"title": T\n'


@pytest.mark.parametrize("desc_type", ["xml", "json", "yaml"])
def test_no_description_at_all_is_told(desc_type):
    with pytest.raises(CliContractViolated, match=f"no {desc_type.upper()}"):
        described(desc_type, " \n")


def test_a_description_that_girder_cannot_keep_is_refused():
    with pytest.raises(
        CliContractViolated, match=r"'A --xml' with 16\.5 MB; Girder can keep 16 MB"
    ) as caught:
        described("xml", f"<executable>{'é' * 8_250_000}</executable>")
    assert "out of it" in str(caught.value)
    assert described("xml", f"<executable>{'e' * 15_900_000}</executable>")
