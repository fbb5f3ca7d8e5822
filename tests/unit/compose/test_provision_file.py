"""The file that says how Girder is set up."""

import pytest

from girder_compose.errors import ProvisionFileError
from girder_compose.provision_file import full_name, parse


def test_the_shipped_file_is_understood(request):
    text = (request.config.rootpath / "docker" / "provision.yaml").read_text(encoding="utf-8")
    wanted = parse(text, "provision.yaml")
    assert wanted.assetstore == {"name": "Assetstore", "directory": "/assetstore"}
    assert wanted.task_folder == {"collection": "Slicer CLI tasks", "folder": "Tasks", "public": True}
    assert (wanted.settings, wanted.images) == ({}, ())


def test_an_empty_file_wants_nothing_but_an_administrator():
    wanted = parse("# nothing\n", "provision.yaml")
    assert (wanted.assetstore, wanted.task_folder, wanted.settings, wanted.images) == (None, None, {}, ())
    assert wanted.admin["email"] == "admin@example.com"


def test_images_get_the_tag_that_girder_keeps():
    assert parse("images: [a/b, 'r:5000/a/b', 'a:1', 'a@sha256:0']", "f").images == (
        "a/b:latest",
        "r:5000/a/b:latest",
        "a:1",
        "a@sha256:0",
    )
    assert full_name("a") == "a:latest"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "image: [a]",
            "the file: unknown `image`; known are admin, assetstore, images, settings, task_folder",
        ),
        ("images: a/b", "images: has to be a list, one `- entry` per line, not 'a/b'"),
        ("images: [a, 5]", "images[1]: has to be text, not 5"),
        ("images: ['a b']", "images[0]: "),
        ("images: [a, a]", "images: "),
        ("assetstore: {name: a}", "assetstore: lacks `directory`"),
        ("assetstore: {name: a, directory: relative}", "assetstore.directory: "),
        (
            "task_folder: {collection: a, folder: b, public: maybe}",
            "task_folder.public: has to be true or false, not 'maybe'",
        ),
        ("settings: [core.x]", "settings: has to be a mapping `name: value`, not ['core.x']"),
        ("settings: {nodot: 1}", "settings: "),
        ("admin: {password: x}", "admin: unknown `password`; known are email, first_name, last_name"),
        ("- a", "the file: has to be a mapping"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_mistake_is_named_with_its_place(text, said):
    with pytest.raises(ProvisionFileError) as raised:
        parse(text, "provision.yaml")
    assert said in str(raised.value)
    assert str(raised.value).startswith("provision.yaml ")


def test_all_mistakes_are_named_at_once():
    with pytest.raises(ProvisionFileError) as raised:
        parse("images: 1\nsettings: 2\nextra: 3\n", "provision.yaml")
    assert [line.split(":")[0].strip() for line in str(raised.value).splitlines()[1:]] == [
        "the file",
        "images",
        "settings",
    ]
