from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from girder_worker_singularity.errors import ContainerError, EnvironmentInvalid
from girder_worker_singularity.image.config import ImageConfig
from girder_worker_singularity.run.container import (
    RUNSCRIPT,
    ContainerSpec,
    container_arguments,
    container_argv,
    container_environment,
    default_arguments,
    environment_file_text,
    overlay_argv,
)
from girder_worker_singularity.run.mounts import Mount

IMAGE = ImageConfig(entrypoint=("./run",), command=("--help",), working_dir="/opt/x")


def spec(**changes):
    return ContainerSpec(**{"sif": "/s/a.sif", "image": IMAGE, **changes})


def test_a_plain_container_sees_nothing_of_the_host():
    assert container_argv(spec()) == (
        "apptainer", "--quiet", "exec", "--containall", "--cleanenv", "--no-eval", "--pwd", "/opt/x", "/s/a.sif", "./run",
    )  # fmt: skip


def test_every_option_stands_before_the_sif():
    arguments = container_arguments(
        spec(
            mounts=(Mount("/h", "/c", read_only=True),),
            environment={"TOKEN": "s3cret"},
            environment_file="/r/environment",
            scratch="/scratch",
            gpu="nv",
            hostname="node1",
            writable_tmpfs=True,
            fakeroot=True,
            network_none=True,
        )
    )
    assert arguments == (
        "--containall", "--cleanenv", "--no-eval", "--fakeroot", "--no-home", "--writable-tmpfs",
        "--net", "--network", "none", "--nv", "--hostname", "node1", "--workdir", "/scratch",
        "--env-file", '"/r/environment"', "--mount", 'type=bind,"source=/h","destination=/c",ro',
        "--pwd", "/opt/x", "/s/a.sif", "./run",
    )  # fmt: skip


def test_an_overlay_and_scratch_mounts_are_quoted_for_apptainers_lists():
    arguments = container_arguments(spec(overlay="/a,b/o.img", scratch="/s", scratch_mounts=("/c,d", "/e")))
    assert arguments[3:11] == (
        "--overlay", '"/a,b/o.img"', "--workdir", "/s", "--scratch", '"/c,d"', "--scratch", '"/e"',
    )  # fmt: skip


@pytest.mark.parametrize("overlay", ["/a:b/o.img", "relative.img", "/a\nb"])
def test_an_overlay_whose_path_apptainer_cannot_take_is_refused(overlay):
    with pytest.raises(ContainerError, match="overlay"):
        spec(overlay=overlay)


def test_a_container_is_not_written_into_two_places():
    with pytest.raises(ContainerError, match="not both"):
        spec(overlay="/o.img", writable_tmpfs=True)


def test_an_overlay_for_root_is_made_as_one():
    assert overlay_argv("/o.img", 600, fakeroot=False)[-4:] == ("--sparse", "--size", "600", "/o.img")
    assert overlay_argv("/o.img", 600, fakeroot=True, apptainer="/a")[:5] == (
        "/a", "--quiet", "overlay", "create", "--fakeroot",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("entrypoint", "expected"), [(None, ("--help",)), ((), ("--help",)), (("/bin/x",), ())]
)
def test_the_image_s_command_is_for_its_own_entrypoint_or_for_none(entrypoint, expected):
    assert default_arguments(spec(entrypoint=entrypoint)) == expected


def test_values_of_variables_never_stand_in_the_arguments():
    arguments = container_arguments(spec(environment={"TOKEN": "s3cret"}, environment_file="/r/e"))
    assert not any("s3cret" in argument for argument in arguments)


def test_variables_without_a_file_are_refused():
    with pytest.raises(EnvironmentInvalid, match="TOKEN"):
        container_arguments(spec(environment={"TOKEN": "s3cret"}))


def test_the_specs_own_entrypoint_and_directory_win():
    assert container_arguments(spec(entrypoint=("sh", "-c"), working_dir="/w"))[-5:] == (
        "--pwd",
        "/w",
        "/s/a.sif",
        "sh",
        "-c",
    )


def test_an_image_whose_entrypoint_is_not_known_starts_by_its_runscript():
    assert container_arguments(spec(image=ImageConfig(entrypoint=None)))[-1] == RUNSCRIPT


def test_an_image_without_entrypoint_starts_what_the_arguments_name():
    assert container_argv(spec(image=ImageConfig(entrypoint=())), arguments=["sh", "-c", "x"])[-4:] == (
        "/s/a.sif", "sh", "-c", "x",
    )  # fmt: skip


def test_no_arguments_mean_the_images_own_command():
    assert container_argv(spec(), arguments=[])[-2:] == ("./run", "--help")
    assert container_argv(spec(), arguments=["a"])[-2:] == ("./run", "a")
    assert container_argv(spec(entrypoint=("sh",)), arguments=[])[-1] == "sh"


def test_variables_that_apptainer_would_evaluate_are_set_as_the_image_wrote_them():
    image = ImageConfig(environment=("PLAIN=a b", "ODD=$HOME", 'QUOTED=a="b"', "HOME=$x", "1BAD=$"))
    assert container_environment(spec(image=image)) == {"PLAIN": "a b", "ODD": "$HOME", "QUOTED": 'a="b"'}


def test_variables_that_apptainer_sets_well_are_left_to_it():
    assert container_environment(spec(image=ImageConfig(environment=("A=a b", "B='c'")))) == {}


def test_the_specs_variables_win_over_the_images():
    image = ImageConfig(environment=("ODD=$HOME",))
    assert container_environment(spec(image=image, environment={"ODD": "mine", "B": "1"})) == {
        "ODD": "mine",
        "B": "1",
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"sif": "a.sif"},
        {"sif": "-x"},
        {"working_dir": "w"},
        {"scratch": "s"},
        {"working_dir": "/w\n"},
        {"environment_file": "e"},
        {"hostname": "a b"},
        {"hostname": "-a"},
        {"environment": {"A B": "x"}},
        {"environment": {"A": "x\0"}},
        {"environment": {"A=B": "x"}},
        {"environment": {"": "x"}},
    ],
)
def test_what_apptainer_cannot_take_is_refused_at_once(changes):
    with pytest.raises(ContainerError):
        spec(**changes)


def test_an_environment_file_quotes_what_means_something_in_it():
    text = environment_file_text({"A": "a \"b\" $c `d` \\ 'e'", "B": "1\n2"})
    assert text == 'A="a \\"b\\" \\$c \\`d\\` \\\\ \'e\'"\nB="1\n2"\n'


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_no_value_ends_its_own_quotes(value):
    text = environment_file_text({"A": value})
    body = text.removeprefix('A="').removesuffix('"\n')
    unescaped, escape = "", False
    for character in body:
        if not escape and character == "\\":
            escape = True
            continue
        assert escape or character not in '"$`'
        unescaped += character
        escape = False
    assert not escape
    assert unescaped == value
