from __future__ import annotations

import pytest

from girder_worker_singularity.image.config import image_config

OCI = {
    "Entrypoint": ["python3", "./entry.py"],
    "Cmd": ["--help"],
    "Env": ["PATH=/bin", "A=b=c"],
    "WorkingDir": "/opt/demo",
    "Labels": {"a": "1"},
}


def test_the_oci_configuration_says_how_the_image_starts():
    config = image_config(OCI, {})
    assert config.entrypoint == ("python3", "./entry.py")
    assert config.command == ("--help",)
    assert config.environment == ("PATH=/bin", "A=b=c")
    assert config.working_dir == "/opt/demo"


def test_the_entry_path_label_wins_over_the_working_directory():
    assert image_config(OCI, {"entry_path": "/opt/other"}).working_dir == "/opt/other"


@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_label_says_nothing(value):
    assert image_config(OCI, {"entry_path": value}).working_dir == "/opt/demo"


def test_a_relative_working_directory_starts_at_the_root():
    assert image_config({"WorkingDir": "opt/x/../y"}, {}).working_dir == "/opt/y"


@pytest.mark.parametrize("config", [None, {}, {"WorkingDir": ""}, {"WorkingDir": None}])
def test_without_any_word_the_working_directory_is_the_root(config):
    assert image_config(config, {}).working_dir == "/"


def test_without_oci_configuration_the_entrypoint_is_not_known():
    assert image_config(None, {}).entrypoint is None


def test_an_image_without_entrypoint_is_known_to_have_none():
    assert image_config({"Cmd": ["sh"]}, {}).entrypoint == ()


def test_a_replaced_runscript_hides_the_entrypoint_of_the_parent():
    config = image_config(OCI, {}, overrides_runscript=True)
    assert config.entrypoint is None
    assert config.command == ()
    assert config.working_dir == "/opt/demo"


def test_labels_of_the_sif_win_over_those_of_the_image():
    assert image_config(OCI, {"a": "2", "b": "3"}).labels == {"a": "2", "b": "3"}


@pytest.mark.parametrize(
    ("value", "needed"),
    [("nvidia_driver", True), ("true", True), ("1", True), ("", False), ("false", False), ("0", False)],
)
def test_the_nvidia_label_asks_for_a_gpu(value, needed):
    assert image_config(None, {"com.nvidia.volumes.needed": value}).needs_nvidia is needed


def test_an_image_without_the_label_needs_no_gpu():
    assert image_config(OCI, {}).needs_nvidia is False


@pytest.mark.parametrize(
    "broken", [{"Env": "x", "Labels": 5, "Cmd": None, "WorkingDir": 7}, {"Labels": None}]
)
def test_odd_values_do_no_harm(broken):
    assert image_config(broken, {}).working_dir == "/"
