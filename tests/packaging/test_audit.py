"""What becomes of pip-audit's answers: findings fail, silence is not success."""

from __future__ import annotations

import pytest

from tests.packaging.audit import IGNORED, PINS, NoAuditMade, Report, audit, ignored, pinned, rounds

VULNERABLE = {
    "name": "jinja2",
    "version": "2.10",
    "vulns": [{"id": "PYSEC-2019-217", "fix_versions": ["2.10.1"], "aliases": ["CVE-2019-10906"], "description": "x"}],
}  # fmt: skip
HARMLESS = {"name": "amqp", "version": "5.4.2", "vulns": []}
UNKNOWN = {"name": "celery", "skip_reason": "Dependency not found and could not be audited: celery (5.7.0)"}


def service(*entries, knows=(VULNERABLE,)):
    """One that has `knows` to say of the version that is known to be vulnerable, and these entries of all others."""

    def ask(versions):
        told = knows if versions == ["jinja2==2.10"] else entries
        return Report.of({"dependencies": list(told), "fixes": []}, versions)

    return ask


def test_nothing_known_is_success():
    code, lines = audit(["amqp==5.4.2"], {}, service(HARMLESS))
    assert code == 0
    assert lines == ["audit: nothing is known against 1 versions"]


def test_a_finding_fails_with_version_names_and_remedy():
    code, lines = audit(["jinja2==2.10", "amqp==5.4.2"], {}, service(VULNERABLE, HARMLESS))
    assert code == 1
    assert lines[0] == "audit: jinja2==2.10: PYSEC-2019-217 (CVE-2019-10906), fixed in 2.10.1"
    assert "1 findings, 0 not looked up, of 2 versions" in lines[-1]


@pytest.mark.parametrize("name", ["PYSEC-2019-217", "CVE-2019-10906"])
def test_an_accepted_finding_passes_by_any_of_its_names(name):
    code, lines = audit(
        ["jinja2==2.10", "amqp==5.4.2"], {name: "no templates"}, service(VULNERABLE, HARMLESS)
    )
    assert code == 0
    assert "audit-ignore.txt accepts" in lines[-1]


def test_an_accepted_finding_does_not_cover_another():
    code, _ = audit(["jinja2==2.10", "amqp==5.4.2"], {"CVE-1": "x"}, service(VULNERABLE, HARMLESS))
    assert code == 1


def test_an_accepted_finding_that_is_gone_is_named():
    code, lines = audit(["amqp==5.4.2"], {"CVE-1": "x"}, service(HARMLESS))
    assert code == 0
    assert "CVE-1 in audit-ignore.txt is not found any more" in lines[0]


@pytest.mark.parametrize("entries", [[HARMLESS, UNKNOWN], [HARMLESS]], ids=["skipped", "missing"])
def test_a_version_that_was_not_looked_up_is_no_success(entries):
    code, lines = audit(["amqp==5.4.2", "celery==5.7.0"], {}, service(*entries))
    assert code == 1
    assert "audit: celery==5.7.0: could not be looked up" in lines


@pytest.mark.parametrize(
    "knows",
    [
        [{"name": "jinja2", "skip_reason": "Dependency not found and could not be audited: jinja2 (2.10)"}],
        [{"name": "jinja2", "version": "2.10", "vulns": []}],
        [],
    ],
    ids=["not-found", "without-data", "empty"],
)
def test_a_service_that_knows_nothing_makes_no_audit(knows):
    with pytest.raises(NoAuditMade, match=r"knows nothing against jinja2==2\.10"):
        audit(["amqp==5.4.2"], {}, service(HARMLESS, knows=knows))


def test_all_versions_for_linux_are_asked_about_whatever_the_python():
    text = (
        "# head\n"
        "a==1 ; python_full_version < '3.11'\n"
        "a==2 ; python_full_version >= '3.11'\n"
        "b==3 ; sys_platform == 'win32'\n"
        "c==4 ; python_full_version < '3.11.3'\n"
        "d==5\n"
    )
    assert pinned(text) == ["a==1", "a==2", "c==4", "d==5"]
    assert rounds(pinned(text)) == [["a==1", "c==4", "d==5"], ["a==2"]]


def test_the_pins_of_an_installation_are_understood():
    versions = pinned(PINS.read_text(encoding="utf-8"))
    assert any(version.startswith("celery==") for version in versions)
    assert all(version.count("==") == 1 for version in versions)
    assert sorted(version for one in rounds(versions) for version in one) == sorted(versions)


def test_each_accepted_finding_has_a_reason():
    assert ignored("# head\n\nCVE-1  not reachable from here\n") == {"CVE-1": "not reachable from here"}
    with pytest.raises(ValueError, match="CVE-1 has no reason"):
        ignored("CVE-1 \n")
    ignored(IGNORED.read_text(encoding="utf-8"))
