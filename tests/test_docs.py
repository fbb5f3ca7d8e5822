"""What the documentation says exists, and what exists is documented."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

import girder_worker_slurm
from girder_worker_singularity.cli import cli as singularity_cli
from girder_worker_slurm.cli import cli
from girder_worker_slurm.settings import load_settings, render_reference, render_sample, setting_fields

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def pages() -> list[Path]:
    return sorted([*REPOSITORY.glob("*.md"), *DOCS.rglob("*.md"), REPOSITORY / "devstack" / "README.md"])


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ +(.+?) *#*$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_relative_links_lead_somewhere(page):
    broken = []
    for link in _LINK.findall(_CODE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def samples(page: Path) -> list[str]:
    """The pieces of configuration that a page shows, as somebody would copy them."""
    sections = {field.section for field in setting_fields()}
    blocks = re.findall(r"(?:^(?: {4,}.*)?\n)+", page.read_text(encoding="utf-8"), re.MULTILINE)
    texts = [textwrap.dedent(block) for block in blocks]
    return [
        text
        for text in texts
        if {name.partition(".")[0] for name in re.findall(r"^\[([a-z_.]+)\]$", text, re.MULTILINE)} & sections
    ]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_configuration_that_a_page_shows_is_accepted(page, tmp_path):
    for text in samples(page):
        sample = tmp_path / "worker.local.cfg"
        sample.write_text(text.replace("...", "x"), encoding="utf-8")
        load_settings((sample,), {})
        # A remark behind a value is part of the value.
        assert re.findall(r"^ *[a-z_]+ = \S+ +[#(].*$", text, re.MULTILINE) == []


def test_the_load_page_names_every_slurm_command_that_the_worker_calls():
    package = Path(girder_worker_slurm.__file__).parent
    called = {
        name
        for folder in ("cluster", "job", "doctor")
        for path in (package / folder).rglob("*.py")
        for name in re.findall(
            r'[\[(]\s*"(s(?:acct|acctmgr|alloc|batch|cancel|control|diag|info|queue|run|share|stat))"',
            path.read_text(encoding="utf-8"),
        )
    }
    assert {"sbatch", "squeue", "scontrol", "scancel", "sacct"} <= called
    page = (DOCS / "reference" / "cluster-load.md").read_text(encoding="utf-8")
    calls = page.partition("## Calls to Slurm")[2].partition("`commands_per_second` in")[0]
    assert set(re.findall(r"^\| `(s[a-z]+)", calls, re.MULTILINE)) == called


def test_the_load_page_has_the_defaults_of_the_settings():
    page = (DOCS / "reference" / "cluster-load.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z_]+)` \| `\[([a-z]+)\]` \| ([0-9.]+)", page, re.MULTILINE)
    told = {(section, name): float(default) for name, section, default in rows}
    defaults = {(field.section, field.name): field.default for field in setting_fields()}
    assert told
    assert told == {key: defaults[key] for key in told}


def test_the_settings_page_is_the_generated_one():
    """girder-slurm settings --reference > docs/reference/settings.md"""
    assert (DOCS / "reference" / "settings.md").read_text(encoding="utf-8") == render_reference()


def test_the_sample_configuration_is_the_generated_one():
    """girder-slurm settings > worker.dist.cfg"""
    assert (REPOSITORY / "worker.dist.cfg").read_text(encoding="utf-8") == render_sample()


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_is_described(command):
    assert f"girder-slurm {command}" in (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", sorted(singularity_cli.commands))
def test_every_command_for_images_is_described(command):
    page = (DOCS / "reference" / "cli-singularity.md").read_text(encoding="utf-8")
    assert f"## girder-singularity {command}" in page


def test_every_command_for_images_that_is_mentioned_exists():
    mentioned = {
        name
        for page in pages()
        for name in re.findall(
            r"girder-singularity ([a-z]+)", "\n".join(_CODE.findall(page.read_text("utf-8")))
        )
    }
    assert mentioned
    assert mentioned - set(singularity_cli.commands) == set()


def test_every_command_that_is_mentioned_exists():
    unknown = {}
    for page in pages():
        mentioned = re.findall(
            r"(?:^ *|`|\$ )girder-slurm +([a-z][a-z-]*)",
            "\n".join(_CODE.findall(page.read_text(encoding="utf-8"))),
        )
        missing = set(mentioned) - set(cli.commands)
        if missing:
            unknown[str(page.relative_to(REPOSITORY))] = missing
    assert unknown == {}


def test_every_command_that_a_message_recommends_exists():
    mentioned = {
        (path.name, name)
        for path in Path(girder_worker_slurm.__file__).parent.rglob("*.py")
        for name in re.findall(r"(?:`|: |run )girder-slurm ([a-z][a-z-]*)", path.read_text(encoding="utf-8"))
    }
    assert {(path, name) for path, name in mentioned if name not in cli.commands} == set()


def test_variables_that_the_documentation_names_are_settings():
    known = {name for field in setting_fields() for name in (*field.environment, *field.generic_environment)}
    known |= {"GIRDER_WORKER_SLURM_ENABLED", "GIRDER_WORKER_SLURM_CONFIG", "GIRDER_WORKER_SLURM_VENV"}
    unknown = {}
    for page in sorted(DOCS.rglob("*.md")):
        named = set(re.findall(r"\bGIRDER_WORKER_SLURM_[A-Z_]+\b", page.read_text(encoding="utf-8")))
        if named - known:
            unknown[str(page.relative_to(REPOSITORY))] = named - known
    assert unknown == {}
