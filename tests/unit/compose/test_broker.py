"""Where Girder's containers look for the broker: the environment, else worker.dist.cfg."""

import pytest

from girder_compose.broker import OwnBroker, broker_urls, without_password
from girder_compose.environment import Site
from girder_compose.errors import SetupError

OWN = OwnBroker("rabbitmq", "girder", "s:e/cret")
SHIPPED = "[celery]\nbroker = amqp://guest:guest@localhost/\nbackend = rpc://guest:guest@localhost/\n"


def urls(text, environment=None):
    return broker_urls(environment or {}, "worker.dist.cfg", text, OWN)


def test_an_address_of_this_machine_stands_for_the_rabbitmq_beside_girder():
    assert urls(SHIPPED) == (
        "amqp://girder:s%3Ae%2Fcret@rabbitmq:5672/",
        "rpc://girder:s%3Ae%2Fcret@rabbitmq:5672/",
    )


@pytest.mark.parametrize("host", ["127.0.0.1:5673", "[::1]", "localhost:5672", "LOCALHOST"])
def test_port_and_account_of_such_an_address_are_those_of_outside(host):
    text = f"[celery]\nbroker = amqp://a:b@{host}//\nbackend = rpc://{host}/vhost\n"
    assert urls(text) == (
        "amqp://girder:s%3Ae%2Fcret@rabbitmq:5672//",
        "rpc://girder:s%3Ae%2Fcret@rabbitmq:5672/vhost",
    )


def test_another_machine_is_taken_as_it_is_and_gets_no_password_of_ours():
    text = "[celery]\nbroker = amqps://u:p%25@mq.example.org/\nbackend = redis://mq.example.org/1\n"
    assert urls(text) == ("amqps://u:p%25@mq.example.org/", "redis://mq.example.org/1")


def test_the_environment_wins_and_celerys_names_win_in_it():
    environment = {
        "GIRDER_WORKER_BROKER": "amqp://a/",
        "CELERY_BROKER_URL": "amqp://b/",
        "GIRDER_WORKER_BACKEND": "rpc://c/",
    }
    assert urls(None, environment) == ("amqp://b/", "rpc://c/")


def test_an_empty_variable_says_nothing():
    assert urls(SHIPPED, {"GIRDER_WORKER_BROKER": ""})[0].startswith("amqp://girder:")


def test_the_shipped_file_is_understood(request):
    text = (request.config.rootpath / "worker.dist.cfg").read_text(encoding="utf-8")
    assert urls(text)[0] == "amqp://girder:s%3Ae%2Fcret@rabbitmq:5672/"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "Nothing says where the broker is: there is no worker.dist.cfg"),
        ("[girder]\napi_url = x\n", "no section [celery]"),
        ("[celery]\nbroker = amqp://localhost/\n", "no `backend` in [celery]"),
        ("[celery]\nbroker =\nbackend = x\n", "no `broker` in [celery]"),
        ("[celery]\nbroker = localhost\nbackend = rpc://localhost/\n", "no address like amqp://"),
        ("[celery]\nbroker = amqp://[::1\nbackend = rpc://localhost/\n", "is not understood"),
        ("broker = amqp://localhost/\n", "cannot be read"),
    ],
)
def test_what_cannot_be_derived_is_named_with_the_remedy(text, said):
    with pytest.raises(SetupError) as raised:
        urls(text)
    assert said in str(raised.value)
    assert "worker.dist.cfg" in str(raised.value)


def test_no_password_gets_into_a_message():
    with pytest.raises(SetupError) as raised:
        urls("[celery]\nbroker = //u:hidden@\nbackend = rpc://localhost/\n")
    assert "hidden" not in str(raised.value)
    assert without_password("amqp://u:hidden@h:1/v") == "amqp://h:1/v"


@pytest.fixture
def site(tmp_path):
    (tmp_path / "secrets").mkdir()
    for name in ("mongodb_password", "rabbitmq_password"):
        (tmp_path / "secrets" / name).write_text(f"{name}/x\n")
    config = tmp_path / "worker.dist.cfg"
    config.write_text(SHIPPED)
    return Site({"PATH": "/bin", "EMPTY": "", "CELERY_BROKER_URL": ""}, tmp_path / "secrets", config)


def test_girder_gets_its_passwords_from_files_and_no_empty_variable(site):
    assert site.for_girder() == {
        "PATH": "/bin",
        "GIRDER_MONGO_URI": "mongodb://girder:mongodb_password%2Fx@mongodb:27017/girder?authSource=admin",
        "GIRDER_WORKER_BROKER": "amqp://girder:rabbitmq_password%2Fx@rabbitmq:5672/",
        "GIRDER_WORKER_BACKEND": "rpc://girder:rabbitmq_password%2Fx@rabbitmq:5672/",
    }


def test_a_missing_password_is_named(site):
    (site.secrets / "rabbitmq_password").unlink()
    with pytest.raises(
        SetupError, match=r"RABBITMQ_PASSWORD is empty or missing: run docker/make-env\.sh --update"
    ):
        site.for_girder()


def test_a_directory_that_docker_made_of_a_missing_file_is_explained(site, tmp_path):
    with pytest.raises(SetupError, match=r"WORKER_CONFIG in \.env names a file that does not exist"):
        Site({}, site.secrets, tmp_path).broker_urls()
