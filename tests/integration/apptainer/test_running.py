"""How a container of a converted image behaves: arguments, environment, directories, isolation."""

from __future__ import annotations

import os
import subprocess
import time

import pytest

from girder_worker_singularity import (
    ContainerSpec,
    LocalCommandRunner,
    Mount,
    container_arguments,
    container_argv,
    container_environment,
    environment_file_text,
    read_sif,
    run_on_this_host,
)
from girder_worker_singularity.image.config import image_config
from tests.integration.apptainer.conftest import ODD_VALUE

RUNNER = LocalCommandRunner()
ODD_ARGUMENTS = [
    "a $(id) \"q\" 'x' ;é",
    "",
    "--env",
    "-x",
    "back\\slash",
    "two\nlines",
    "*",
    '{"a": ["b"]}',
    "`id`",
    "$HOME",
]
ODD_PATH = "a dir, x:y \"q\" 'p' é"


def run(sif, *arguments, env=None, check=True, **changes):
    spec = ContainerSpec(sif=str(sif.path), image=sif.config, **changes)
    result = RUNNER.run(container_argv(spec, arguments=arguments), timeout_seconds=120, env=env)
    if check:
        assert result.returncode == 0, result.stderr
    return result


def run_shell(sif, script, *arguments, **changes):
    return run(sif, "-c", script, "sh", *arguments, entrypoint=("/bin/sh",), **changes)


def shown(arguments):
    return "".join(f"<{argument}>\n" for argument in arguments)


def environment_of(sif, tmp_path, environment, **changes):
    """The variables that a container really has."""
    spec = ContainerSpec(sif=str(sif.path), image=sif.config, environment=environment)
    file = tmp_path / 'environment, of "job"'
    file.write_bytes(environment_file_text(container_environment(spec)).encode())
    argv = container_argv(
        ContainerSpec(
            sif=spec.sif,
            image=spec.image,
            environment=environment,
            environment_file=str(file),
            entrypoint=("cat", "/proc/self/environ"),
        ),
        arguments=[],
    )
    output = subprocess.run(argv, capture_output=True, check=True, timeout=120, **changes).stdout.decode()
    return dict(pair.split("=", 1) for pair in output.split("\0") if pair)


def test_the_entrypoint_gets_every_argument_as_it_is(show):
    assert run(show, *ODD_ARGUMENTS).stdout == shown(["one two", *ODD_ARGUMENTS])


def test_without_arguments_the_images_own_command_is_used(show):
    assert run(show).stdout == shown(["one two", "from", "the image"])


def test_the_runscript_gets_every_argument_as_it_is(show):
    """The way of images whose entrypoint is not known."""
    spec = ContainerSpec(sif=str(show.path), image=image_config(None, {"entry_path": "/opt/my app"}))
    result = RUNNER.run(container_argv(spec, arguments=ODD_ARGUMENTS), timeout_seconds=120)
    assert result.stdout == shown(["one two", *ODD_ARGUMENTS])


def test_a_sites_own_script_can_say_apptainer_exec(show):
    spec = ContainerSpec(sif=str(show.path), image=show.config)
    script = 'exec apptainer exec "$@"'
    result = RUNNER.run(["sh", "-c", script, "sh", *container_arguments(spec), "a b"], timeout_seconds=120)
    assert result.stdout == shown(["one two", "a b"])


def test_the_images_working_directory_is_used_unless_the_job_names_one(show):
    assert run(show, entrypoint=("pwd",)).stdout == "/opt/my app\n"
    assert run(show, entrypoint=("pwd",), working_dir="/opt").stdout == "/opt\n"


def test_every_value_of_a_variable_arrives_as_it_is(show, tmp_path):
    values = {
        "A": "a $HOME \"q\" 'x' , = `id` \\ ; é",
        "B": "l1\nl2\n",
        "C": "\\n \\t \\\\ $(id) !! !x %d #c ~ * ?",
        "D": "",
        "E": "trailing\\",
        "F": "\t tab\r return ",
        "G": "  blanks  ",
        "H": "${A} $A $$ $1 \\$A",
        "I": '{"a": ["b", "c\'d"]}',
        "J": "\x01\x7f",
        "K": "continued\\\nline",
        "PLAIN": "mine, not the image's",
    }
    seen = environment_of(show, tmp_path, values)
    assert {name: seen.get(name) for name in values} == values


def test_the_images_own_variables_are_set_as_it_wrote_them(show, tmp_path):
    seen = environment_of(show, tmp_path, {})
    assert seen["ODD"] == ODD_VALUE
    assert seen["PLAIN"] == "plain"


def test_nothing_of_the_hosts_environment_gets_in(show, tmp_path):
    seen = environment_of(show, tmp_path, {}, env={**os.environ, "SECRET_OF_HOST": "x", "PLAIN": "host"})
    assert "SECRET_OF_HOST" not in seen
    assert seen["PLAIN"] == "plain"


@pytest.mark.parametrize("destination", [f"/mnt/{ODD_PATH}", "/new/deep/place", "/opt/my app/in"])
def test_a_mount_keeps_its_paths_and_its_mode(show, tmp_path, destination):
    source = tmp_path / ODD_PATH
    source.mkdir()
    (source / "file").write_text("content")
    writable = Mount(str(source), destination)
    assert (
        run_shell(show, 'cat "$1/file"; echo x > "$1/new"', destination, mounts=(writable,)).stdout
        == "content"
    )
    assert (source / "new").read_text() == "x\n"
    read_only = Mount(str(source), destination, read_only=True)
    refused = run_shell(
        show, 'cat "$1/file"; echo x > "$1/more"', destination, mounts=(read_only,), check=False
    )
    assert refused.stdout == "content"
    assert refused.returncode != 0
    assert not (source / "more").exists()


def test_a_file_can_be_mounted_inside_a_mounted_directory(show, tmp_path):
    (tmp_path / "dir").mkdir()
    (tmp_path / "file").write_text("content")
    mounts = (
        Mount(str(tmp_path / "dir"), "/data"),
        Mount(str(tmp_path / "file"), "/data/in/x.txt", read_only=True),
    )
    assert run_shell(show, "cat /data/in/x.txt", mounts=mounts).stdout == "content"


def test_home_and_tmp_are_in_the_scratch_directory_and_the_hosts_are_not_seen(show, tmp_path):
    scratch = tmp_path / "scratch, of: job"
    scratch.mkdir()
    script = 'for d in "$HOME" /tmp /var/tmp; do ls -A "$d"; echo x > "$d/made" || exit 1; done'
    assert run_shell(show, script, scratch=str(scratch)).stdout == ""
    assert len(list(scratch.rglob("made"))) == 3


def test_without_scratch_home_and_tmp_are_there_all_the_same(show):
    run_shell(show, 'echo x > "$HOME/made" && echo x > /tmp/made')


def test_the_image_is_read_only_unless_it_may_be_written_over(show):
    assert run_shell(show, "echo x > /opt/new", check=False).returncode != 0
    assert (
        run_shell(show, "echo x > /opt/new && cat /opt/new", writable_tmpfs=True, fakeroot=True).stdout
        == "x\n"
    )


def test_as_root_the_images_own_home_directory_is_seen(push, session_store):
    sif = session_store.ensure(
        push(files={"/root/tool": "content", "/run": "#!/bin/sh\n"}, entrypoint=["/run"])
    )
    script = 'id -u; echo "$HOME"; cat /root/tool; echo x > /root/new'
    assert run_shell(sif, script, writable_tmpfs=True, fakeroot=True).stdout == "0\n/root\ncontent"


def test_the_container_has_its_own_processes_and_takes_them_with_it(show):
    word = "sleep 7777.125"
    started = time.monotonic()
    assert int(run_shell(show, f"{word} >/dev/null 2>&1 & ps | wc -l").stdout) < 10
    assert time.monotonic() - started < 60
    assert subprocess.run(["pgrep", "-f", word], capture_output=True, check=False).returncode != 0


def test_exit_codes_and_signals_come_through(show):
    assert run_shell(show, "exit 7", check=False).returncode == 7
    assert run_shell(show, "kill -9 $$", check=False).returncode == 137
    assert run_shell(show, "kill -TERM $$", check=False).returncode == 143


def test_a_container_may_have_no_network_and_a_name_of_its_own(show):
    assert run_shell(show, "hostname", hostname="some-node.1").stdout == "some-node.1\n"
    with_network = run_shell(show, "ip link").stdout
    without = run_shell(show, "ip link", network_none=True).stdout
    assert "UP" in with_network.upper()
    assert len(without.splitlines()) <= len(with_network.splitlines())
    assert "state UP" not in without


def test_a_gpu_option_does_no_harm_where_there_is_none(show):
    assert run(show, "x", gpu="nv").stdout == shown(["one two", "x"])


def test_the_image_can_be_asked_on_this_host(show, tmp_path):
    result = run_on_this_host(show, ["--list_cli"], runner=RUNNER, scratch=tmp_path)
    assert result.stdout == shown(["one two", "--list_cli"])


def build(directory, name, definition):
    (directory / "def").write_text(definition)
    path = directory / name
    argv = ["apptainer", "build", "--disable-cache", str(path), str(directory / "def")]
    subprocess.run(argv, check=True, capture_output=True, timeout=300)
    return path


def container_of(path):
    contents = read_sif(path)
    config = image_config(
        contents.oci_config, contents.labels, overrides_runscript=contents.overrides_runscript
    )
    return contents, ContainerSpec(sif=str(path), image=config)


def output(spec, *arguments):
    return RUNNER.run(container_argv(spec, arguments=arguments), timeout_seconds=120).stdout


def test_a_definition_with_its_own_runscript_is_started_by_that(show, tmp_path):
    path = build(
        tmp_path, "own.sif", f'Bootstrap: localimage\nFrom: {show.path}\n%runscript\n    echo own "$@"\n'
    )
    contents, spec = container_of(path)
    assert contents.overrides_runscript
    assert output(spec, "a  b", "$(id)") == "own a  b $(id)\n"
    child = build(
        tmp_path, "child.sif", f"Bootstrap: localimage\nFrom: {path}\n%labels\n    entry_path /opt\n"
    )
    contents, spec = container_of(child)
    assert contents.labels["entry_path"] == "/opt"
    assert output(spec, "x") == "own x\n"


def test_a_sif_made_from_a_directory_is_started_by_its_runscript(show, tmp_path):
    sandbox, path = tmp_path / "sandbox", tmp_path / "x.sif"
    for argv in (["--sandbox", str(sandbox), str(show.path)], [str(path), str(sandbox)]):
        subprocess.run(
            ["apptainer", "build", "--disable-cache", *argv], check=True, capture_output=True, timeout=300
        )
    contents, spec = container_of(path)
    assert contents.oci_config is None
    spec = ContainerSpec(sif=str(path), image=spec.image, working_dir="/opt/my app")
    assert output(spec, *ODD_ARGUMENTS) == shown(["one two", *ODD_ARGUMENTS])
