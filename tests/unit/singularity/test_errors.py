from __future__ import annotations

import pickle

import pytest

from girder_worker_singularity import errors
from girder_worker_singularity.errors import ContainerError, ImageNotFound

KINDS = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ContainerError)
]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not ContainerError])
def test_every_error_says_what_to_do(kind):
    assert kind.remedy.endswith(".")
    assert str(kind("It broke.")) == f"It broke. {kind.remedy}"


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_stands_in_the_tree(kind):
    assert kind.__name__ in errors.__doc__


def test_a_case_may_have_its_own_remedy():
    assert str(ImageNotFound("Gone.", remedy="Push it.")) == "Gone. Push it."


def test_an_error_survives_a_process_border():
    error = pickle.loads(pickle.dumps(ImageNotFound("Gone.", remedy="Push it.")))  # noqa: S301
    assert (str(error), error.remedy, type(error)) == ("Gone. Push it.", "Push it.", ImageNotFound)
