"""The version comes from git's tags; without git or tags there is one as well, and everything can be built."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
#: What decides about the version, and what hatchling wants to see.
FILES = ("pyproject.toml", "README.md", "LICENSE", ".gitignore", ".gitattributes", ".git_archival.txt")


def git(tree: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=tree, check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout.strip()


def version(tree: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "hatchling", "version"],
        cwd=tree, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The project's files without git."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in FILES:
        shutil.copy(REPOSITORY / name, tree)
    return tree


@pytest.fixture
def repository(tree: Path) -> Path:
    """The project's files in a repository with two commits and no tag."""
    git(tree, "init", "--quiet")
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--message=one")
    git(tree, "commit", "--quiet", "--message=two", "--allow-empty")
    return tree


def archive(repository: Path, destination: Path) -> Path:
    destination.mkdir()
    content = subprocess.run(["git", "archive", "HEAD"], cwd=repository, check=True, capture_output=True)
    subprocess.run(["tar", "-x"], cwd=destination, check=True, input=content.stdout)
    return destination


def test_a_tag_is_the_version(repository):
    git(repository, "tag", "v1.2.0")
    assert version(repository) == "1.2.0"


def test_a_tag_of_a_release_candidate_is_one(repository):
    git(repository, "tag", "v1.2.0rc1")
    assert version(repository) == "1.2.0rc1"


def test_commits_after_a_tag_lead_to_the_next_version_and_name_the_commit(repository):
    git(repository, "tag", "v1.2.0")
    git(repository, "commit", "--quiet", "--message=three", "--allow-empty")
    commit = git(repository, "rev-parse", "--short=7", "HEAD")
    assert version(repository).startswith(f"1.2.1.dev1+g{commit}")


def test_a_tag_that_names_no_version_is_not_looked_at(repository):
    git(repository, "tag", "v1.2.0", "HEAD~1")
    git(repository, "tag", "demonstration")
    assert version(repository).startswith("1.2.1.dev1+g")


def test_what_was_changed_after_a_tag_is_not_that_version(repository):
    git(repository, "tag", "v1.2.0")
    with (repository / "README.md").open("a") as readme:
        readme.write("changed\n")
    assert version(repository).startswith("1.2.1.dev0+g")


def test_a_clone_without_tags_counts_commits(repository):
    assert version(repository).startswith("0.1.dev2+g")


def test_a_shallow_clone_has_a_version(repository, tmp_path):
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "--quiet", "--depth=1", repository.as_uri(), str(shallow))
    assert version(shallow).startswith("0.1.dev1+g")


def test_a_shallow_clone_of_a_tag_is_that_version(repository, tmp_path):
    git(repository, "tag", "v1.2.0")
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "--quiet", "--depth=1", "--branch=v1.2.0", repository.as_uri(), str(shallow))
    assert version(shallow) == "1.2.0"


def test_a_git_archive_of_a_tag_is_that_version(repository, tmp_path):
    git(repository, "tag", "v1.2.0")
    assert version(archive(repository, tmp_path / "archive")) == "1.2.0"


def test_a_git_archive_after_a_tag_is_the_next_version(repository, tmp_path):
    git(repository, "tag", "v1.2.0", "HEAD~1")
    assert version(archive(repository, tmp_path / "archive")).startswith("1.2.1.dev1+g")


def test_a_git_archive_without_tags_knows_no_version(repository, tmp_path):
    assert version(archive(repository, tmp_path / "archive")) == "0.0"


def test_a_copy_without_git_knows_no_version(tree):
    assert version(tree) == "0.0"


def test_a_copy_inside_another_repository_does_not_take_its_version(repository):
    git(repository, "tag", "v1.2.0")
    copy = repository / ".nox" / "copy"
    copy.mkdir(parents=True)
    for name in FILES:
        shutil.copy(REPOSITORY / name, copy)
    assert version(copy) == "0.0"
