"""Through which proxies registries are reached."""

from __future__ import annotations

import pytest

from girder_worker_singularity.source.proxies import Proxies


def test_programs_find_them_under_both_spellings():
    assert Proxies("http://a:1", without="lab").environment == {
        "http_proxy": "http://a:1", "HTTP_PROXY": "http://a:1", "no_proxy": "lab", "NO_PROXY": "lab",
    }  # fmt: skip
    assert Proxies().environment == {}


def test_what_is_not_set_is_as_the_environment_says():
    environment = {"HTTPS_PROXY": "http://b:2", "http_proxy": "http://other", "no_proxy": "lab"}
    assert Proxies("http://a:1").completed(environment) == Proxies("http://a:1", "http://b:2", "lab")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://me:geheim@proxy:3128", ("geheim", "geheim")),
        ("http://me:ge%40heim@proxy:3128/", ("ge%40heim", "ge@heim")),
        ("http://proxy:3128", ()),
        ("", ()),
    ],
)
def test_the_password_of_a_proxy_is_a_secret(address, words):
    assert Proxies(address).secret_words == words
    assert "geheim" not in repr(Proxies(address))
