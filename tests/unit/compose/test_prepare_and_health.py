"""The steps before the start, and what a health check says."""

import pytest

from girder_compose.__main__ import main
from girder_compose.environment import Site
from girder_compose.errors import SetupError
from girder_compose.health import check_free_space
from girder_compose.prepare import check_env_file, give, owner_of


@pytest.mark.parametrize(("text", "owner"), [("1000:1001", (1000, 1001)), ("7", (7, 7)), ("0:0", (0, 0))])
def test_dsa_user_is_read(text, owner):
    assert owner_of(text) == owner


@pytest.mark.parametrize("text", ["", "me", "me:you", "1:", "1:x", "-1:1"])
def test_names_are_no_dsa_user(text):
    if text == "1:":
        assert owner_of(text) == (1, 1)
        return
    with pytest.raises(SetupError, match="UID:GID in numbers"):
        owner_of(text)


def test_a_directory_that_belongs_to_the_user_is_left_alone(tmp_path):
    owner = tmp_path.stat()
    assert give(tmp_path, owner.st_uid, owner.st_gid) is False


def test_little_space_is_said_with_the_remedy(tmp_path):
    check_free_space(tmp_path, 0)
    with pytest.raises(
        SetupError, match=r"Only \d+ MB are free .* MIN_FREE_MB \(1000000000\).*ASSETSTORE_DATA"
    ):
        check_free_space(tmp_path, 10**9)


def test_what_has_to_be_mended_is_one_message_and_exit_code_1(capsys, tmp_path):
    assert main(["prepare", "me", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("prepare: DSA_USER has to be UID:GID")


@pytest.fixture
def site(tmp_path):
    for name in ("rabbitmq_password", "mongodb_password", "girder_admin_password"):
        (tmp_path / name).write_text(f"{name}-1")
    return Site({}, tmp_path)


def test_an_env_file_with_the_same_passwords_is_fine(site):
    check_env_file(
        "# mine\nRABBITMQ_PASSWORD='rabbitmq_password-1'\nMONGODB_PASSWORD=mongodb_password-1\n", site
    )


def test_a_changed_password_is_named_but_not_shown(site):
    with pytest.raises(SetupError, match="--force-recreate") as raised:
        check_env_file("RABBITMQ_PASSWORD=hidden\nMONGODB_PASSWORD=mongodb_password-1\n", site)
    assert str(raised.value).startswith(
        "RABBITMQ_PASSWORD in .env is not what these containers were made with"
    )
    assert "hidden" not in str(raised.value)
