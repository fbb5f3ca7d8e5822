"""Which account a registry is asked with."""

from __future__ import annotations

import base64
import json
import logging

import pytest

from girder_worker_singularity.errors import CredentialsInvalid
from girder_worker_singularity.source.credentials import (
    CredentialOptions,
    Credentials,
    Keyring,
    authfile_text,
    plain_account,
    without_secrets,
)
from girder_worker_singularity.testing import FakeAnswer, FakeCommandRunner

REGISTRY = "registry.example"


def encoded(text):
    return base64.b64encode(text.encode()).decode()


class Home:
    """What lies in the home directory, and what helpers answer."""

    def __init__(self, path):
        self.path = path
        self.environment = {"HOME": str(path)}
        self.runner = FakeCommandRunner()

    def put(self, name, value, mode=0o600):
        file = self.path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(value if isinstance(value, str) else json.dumps(value))
        file.chmod(mode)
        return file

    def find(self, asked=REGISTRY, /, **options):
        return Keyring(CredentialOptions(environment=self.environment, **options), self.runner).find(asked)


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


def test_where_there_is_nothing_there_is_no_account(home):
    assert home.find() is None


@pytest.mark.parametrize(
    "where", ["environment", "authfile", "apptainer login", "docker login", "DOCKER_CONFIG"]
)
def test_an_account_is_taken_from_where_programs_leave_it(home, where):
    files = {
        "authfile": "auth.json",
        "apptainer login": ".apptainer/docker-config.json",
        "docker login": ".docker/config.json",
        "DOCKER_CONFIG": "elsewhere/config.json",
    }
    options = {}
    if where == "environment":
        home.environment |= {"APPTAINER_DOCKER_USERNAME": "me", "APPTAINER_DOCKER_PASSWORD": "word"}
    else:
        file = home.put(files[where], {"auths": {REGISTRY: {"auth": encoded("me:w:ord")}}})
        home.environment |= {"DOCKER_CONFIG": str(file.parent)} if where == "DOCKER_CONFIG" else {}
        options = {"authfile": file} if where == "authfile" else {}
    assert home.find(**options) == Credentials("me", "word" if where == "environment" else "w:ord")
    if where != "environment":
        assert home.find("other.example", **options) is None


def test_docker_hub_has_the_key_that_docker_gives_it(home):
    home.put(".docker/config.json", {"auths": {"https://index.docker.io/v1/": {"auth": encoded("me:word")}}})
    assert home.find("docker.io") == Credentials("me", "word")


def test_the_most_specific_account_wins(home):
    home.put(".docker/config.json", {"auths": {REGISTRY: {"auth": encoded("docker:1")}}})
    own = {"username": "site", "password": "2", "registry": REGISTRY}
    assert home.find().username == "docker"
    assert home.find(**own).username == "site"
    home.environment |= {"APPTAINER_DOCKER_USERNAME": "env", "APPTAINER_DOCKER_PASSWORD": "3"}
    assert home.find(**own).username == "env"
    auth_map = home.put("map.json", {REGISTRY: {"username": "map", "password": "4"}})
    assert home.find(**own, auth_map=auth_map).username == "map"
    assert home.find("other.example", **own, auth_map=auth_map).username == "env"


def test_the_sites_account_is_for_its_own_registry_only(home):
    assert home.find("evil.example", username="site", password="2", registry=REGISTRY) is None
    assert home.find("docker.io", username="site", password="2") == Credentials("site", "2")


@pytest.mark.parametrize(
    ("username", "password", "account"),
    [
        ("me", "word", ("me", "word")),
        (encoded("me"), encoded("pass word"), ("me", "pass word")),
        ("team", encoded("x"), ("team", encoded("x"))),
        (encoded("me"), "not base64!", (encoded("me"), "not base64!")),
        ("", "word", None),
        ("me", "", None),
    ],
)
def test_both_words_are_plain_or_both_in_base64(username, password, account):
    assert plain_account(username, password) == (Credentials(*account) if account else None)


@pytest.mark.parametrize("key", ["credHelpers", "credsStore"])
def test_a_credential_helper_is_asked_with_the_registry_on_its_input(home, key):
    home.put(".docker/config.json", {key: {REGISTRY: "site"} if key == "credHelpers" else "site"})
    answer = json.dumps({"ServerURL": REGISTRY, "Username": "me", "Secret": "word"})
    home.runner.programs["docker-credential-site"] = FakeAnswer(stdout=answer)
    assert home.find() == Credentials("me", "word")
    assert [(call.argv, call.stdin) for call in home.runner.calls] == [
        (("docker-credential-site", "get"), REGISTRY)
    ]


@pytest.mark.parametrize(
    "answer",
    [
        FakeAnswer(returncode=1, stdout="credentials not found in native keychain, geheim"),
        FakeAnswer(stdout="geheim"),
        FakeAnswer(stdout='{"Username": "<token>", "Secret": "geheim"}'),
        FakeAnswer(stdout='{"Secret": "geheim"}'),
        FakeAnswer(stdout='["geheim"]'),
        FakeAnswer(takes_seconds=10**6, stdout="geheim"),
        None,
    ],
)
def test_a_helper_without_an_account_is_passed_by_and_not_quoted(home, answer, caplog):
    caplog.set_level(logging.DEBUG)
    home.put(".docker/config.json", {"credsStore": "site"})
    if answer is not None:
        home.runner.programs["docker-credential-site"] = answer
    assert home.find() is None
    assert "geheim" not in caplog.text


@pytest.mark.parametrize("name", ["../../bin/x", "/bin/x", "", "-x", "a b", ["a"], 1])
def test_a_helpers_name_is_never_a_path(home, name):
    home.put(".docker/config.json", {"credsStore": name})
    assert home.find() is None
    assert home.runner.calls == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"auths": []}',
        '{"auths": {"registry.example": {"auth": "%%"}}}',
        '{"credHelpers": []}',
        "\x00",
    ],
)
def test_a_broken_file_of_docker_is_passed_by(home, text):
    home.put(".docker/config.json", text)
    assert home.find() is None


def test_the_map_may_be_a_file_of_docker_or_have_base64(home):
    path = home.put("m.json", {"auths": {REGISTRY: {"auth": encoded("me:word")}}})
    assert home.find(auth_map=path) == Credentials("me", "word")
    path = home.put("m.json", {REGISTRY: {"username": encoded("me"), "password": encoded("word")}})
    assert home.find(auth_map=path) == Credentials("me", "word")


@pytest.mark.parametrize(
    ("text", "mode", "word"),
    [
        ("{}", 0o640, "read by others"),
        ("{}", 0o604, "read by others"),
        ('{"geheim"', 0o600, "not JSON"),
        ("[]", 0o600, "object of registries"),
        (None, 0, "No such file"),
    ],
)
def test_a_map_that_cannot_be_used_is_an_error_that_quotes_nothing_of_it(home, text, mode, word):
    path = home.path / "m.json" if text is None else home.put("m.json", text, mode)
    with pytest.raises(CredentialsInvalid, match=word) as caught:
        home.find(auth_map=path)
    assert "geheim" not in f"{caught.value} {caught.value.__cause__}"


def test_the_file_for_apptainer_has_one_account():
    assert json.loads(authfile_text(REGISTRY, Credentials("me", "word"))) == {
        "auths": {REGISTRY: {"auth": encoded("me:word")}}
    }


def test_a_secret_is_taken_out_of_a_text():
    assert without_secrets("a geheimer b geheim", ("geheim", "", "geheimer")) == "a *** b ***"
    assert "word" not in repr(Credentials("me", "word"))
    assert "word" not in repr(CredentialOptions(password="word"))
