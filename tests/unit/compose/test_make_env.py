"""docker/make-env.sh: passwords once, never overwritten, never wider than 0600."""

import configparser
import os
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

CHECKOUT = Path(__file__).parents[3]
#: What docker-compose.yaml cannot do without.
NEEDED = {"DSA_USER", "RABBITMQ_USER", "RABBITMQ_PASSWORD", "MONGODB_PASSWORD", "GIRDER_ADMIN_PASSWORD"}


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "docker").mkdir()
    shutil.copy(CHECKOUT / "docker" / "make-env.sh", tmp_path / "docker")
    return tmp_path


def make_env(checkout, *arguments, **environment):
    return subprocess.run(
        [str(checkout / "docker" / "make-env.sh"), *arguments],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=30,
    )


def variables(checkout):
    lines = (checkout / ".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_what_the_compose_file_needs_is_made(checkout):
    done = make_env(checkout)
    assert done.returncode == 0, done.stderr
    found = variables(checkout)
    required = yaml.safe_load((CHECKOUT / "docker-compose.yaml").read_text())["x-required"]
    assert {re.match(r"\$\{(\w+):\?", line)[1] for line in required} == NEEDED
    assert set(found) >= NEEDED
    assert (checkout / ".env").stat().st_mode & 0o777 == 0o600
    passwords = [value for name, value in found.items() if name.endswith("_PASSWORD")]
    assert len(set(passwords)) == 3
    assert all(re.fullmatch("[A-Za-z0-9]{32}", password) for password in passwords)
    assert not any(password in done.stdout + done.stderr for password in passwords)
    assert found["RABBITMQ_USER"] != "guest"
    assert {found[f"{name}_BIND"] for name in ("GIRDER", "RABBITMQ", "MONGODB")} == {"127.0.0.1"}


def test_the_services_run_as_the_one_who_called_sudo_and_never_as_root(checkout):
    if os.geteuid() == 0:
        assert "you are root" in make_env(checkout).stderr
        assert variables(checkout)["DSA_USER"] == "1000:1000"
    else:
        make_env(checkout)
        assert variables(checkout)["DSA_USER"] == f"{os.getuid()}:{os.getgid()}"


def test_mongodb_is_not_opened_with_the_others(checkout):
    make_env(
        checkout,
        "--bind",
        "10.0.0.5",
        "--sif",
        "/shared/my sifs",
        "--image",
        "dsarchive/dsa_common_5",
        "--user",
        "7:8",
    )
    found = variables(checkout)
    assert (found["GIRDER_BIND"], found["RABBITMQ_BIND"], found["MONGODB_BIND"]) == (
        "10.0.0.5",
        "10.0.0.5",
        "127.0.0.1",
    )
    assert (found["SIF_IMAGE_PATH"], found["DSA_USER"]) == ("'/shared/my sifs'", "7:8")
    assert (found["GIRDER_IMAGE"], found["COMPOSE_FILE"]) == (
        "dsarchive/dsa_common_5",
        "docker-compose.yaml:docker/dsa.yaml",
    )


def test_an_existing_file_is_not_overwritten(checkout):
    make_env(checkout)
    before = (checkout / ".env").read_text()
    done = make_env(checkout)
    assert done.returncode == 1
    assert "is there already and stays" in done.stderr
    assert (checkout / ".env").read_text() == before


def test_an_outdated_file_gets_what_it_lacks_and_keeps_the_rest(checkout):
    (checkout / ".env").write_text(
        "DSA_USER=5:6\nRABBITMQ_USER=mine\nRABBITMQ_PASSWORD=kept\nMONGODB_PASSWORD=\nGIRDER_PORT=9"
    )
    done = make_env(checkout, "--update")
    assert done.returncode == 0, done.stderr
    found = variables(checkout)
    assert set(found) >= NEEDED
    assert (found["DSA_USER"], found["RABBITMQ_USER"], found["RABBITMQ_PASSWORD"]) == ("5:6", "mine", "kept")
    assert found["GIRDER_PORT"] == "9"
    assert len(found["MONGODB_PASSWORD"]) == 32
    assert "MONGODB_PASSWORD" in done.stdout
    assert (checkout / ".env").stat().st_mode & 0o777 == 0o600
    assert make_env(checkout, "--update").stdout.startswith("make-env: nothing added")


def test_the_worker_gets_broker_and_address(checkout):
    make_env(checkout)
    file = checkout / "worker.local.cfg"
    done = make_env(checkout, "--worker", str(file), "--address", "girder.example.org")
    assert done.returncode == 0, done.stderr
    assert file.stat().st_mode & 0o777 == 0o600
    config = configparser.ConfigParser(interpolation=None)
    config.read(file)
    broker = urlsplit(config["celery"]["broker"])
    assert (broker.scheme, broker.username, broker.hostname, broker.port) == (
        "amqp",
        "girder",
        "girder.example.org",
        5672,
    )
    assert broker.password == variables(checkout)["RABBITMQ_PASSWORD"]
    assert config["celery"]["backend"] == config["celery"]["broker"].replace("amqp:", "rpc:")
    assert config["girder"]["api_url"] == "http://girder.example.org:8080/api/v1"
    again = make_env(checkout, "--worker", str(file))
    assert again.returncode == 1
    assert "is there already" in again.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--bind", "everywhere"],
        ["--user", "me"],
        ["--sif", "relative"],
        ["--sif"],
        ["--image", "a b"],
        ["--typo", "x"],
        ["extra"],
    ],
)
def test_wrong_usage_is_refused_and_writes_nothing(checkout, arguments):
    done = make_env(checkout, *arguments)
    assert done.returncode == 2
    assert "usage:" in done.stderr
    assert not (checkout / ".env").exists()


@pytest.mark.parametrize("arguments", [["--update"], ["--worker", "worker.local.cfg"]])
def test_what_needs_a_file_says_how_to_make_it(checkout, arguments):
    done = make_env(checkout, *arguments)
    assert done.returncode == 1
    assert "docker/make-env.sh" in done.stderr
