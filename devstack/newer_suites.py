"""Single packages of newer Debian releases, fetched without telling the machine's apt about those releases."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import DevstackError
from .packages import apt_get

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .layout import Layout

_DEBIAN_KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_SUITES = ("trixie", "sid")
_LOCK = threading.Lock()


def download(layout: Layout, packages: Sequence[str], directory: Path) -> None:
    """Fetches the .deb files of these packages (`name` or `name/suite`) into a new directory."""
    directory.mkdir(parents=True)
    with _LOCK:  # the lists of both suites are fetched once, whoever comes first
        flags = _flags(layout)
        if not layout.below("opt", "newer-suites", "ready").exists():
            apt_get(*flags, "update", timeout_seconds=300)
            layout.below("opt", "newer-suites", "ready").touch()
        apt_get(*flags, "download", *packages, timeout_seconds=300, cwd=directory)


def _flags(layout: Layout) -> list[str]:
    work = layout.below("opt", "newer-suites")
    if not (work / "parts").exists():
        for name in ("lists/partial", "cache/archives/partial", "parts"):
            (work / name).mkdir(parents=True, exist_ok=True)
        origin = debian_origin()
        for suite in _SUITES:
            (work / "parts" / f"{suite}.sources").write_text(
                origin.replace("@SUITE@", suite), encoding="utf-8"
            )
    options = [f"Dir::State::Lists={work / 'lists'}", f"Dir::Cache={work / 'cache'}"]
    options += ["Dir::Etc::SourceList=/dev/null", f"Dir::Etc::SourceParts={work / 'parts'}"]
    options += ["APT::Sandbox::User=root", "Acquire::Languages=none"]
    # sid looks expired from a machine with a frozen mirror
    options += ["Acquire::Check-Valid-Until=false"]
    return [word for option in options for word in ("-o", option)]


def machine_is(distribution: str) -> bool:
    """Whether this machine runs that distribution, `debian` or `ubuntu`."""
    text = Path("/etc/os-release").read_text(encoding="utf-8")
    return re.search(rf'^ID="?{distribution}"?$', text, re.MULTILINE) is not None


def debian_origin() -> str:
    """A deb822 entry for the machine's own Debian mirror, with @SUITE@ where the release goes."""
    for stanza in _source_stanzas():
        suites = stanza.get("suites", "").split()
        is_main = (
            "main" in stanza.get("components", "").split() and "deb" in stanza.get("types", "deb").split()
        )
        is_release = any(re.fullmatch(r"[a-z]+", suite) for suite in suites)
        if is_main and is_release and stanza.get("enabled", "yes").lower() != "no":
            lines = [
                "Types: deb",
                f"URIs: {stanza['uris'].split()[0]}",
                "Suites: @SUITE@",
                "Components: main",
            ]
            if "trusted" in stanza:
                lines.append(f"Trusted: {stanza['trusted']}")
            # Not the entry's own key: an older release's key does not sign the newer ones.
            if _DEBIAN_KEYS.exists():
                lines.append(f"Signed-By: {_DEBIAN_KEYS}")
            elif "signed-by" in stanza:
                lines.append(f"Signed-By: {stanza['signed-by']}")
            return "\n".join(lines) + "\n"
    raise DevstackError("no Debian mirror in /etc/apt/sources.list*: newer packages cannot be fetched")


def _source_stanzas() -> Iterator[dict[str, str]]:
    """Every package source of the machine, in either of apt's two formats, keys in lower case."""
    directory = Path("/etc/apt/sources.list.d")
    for file in sorted(directory.glob("*.sources")):
        for block in re.split(r"\n\s*\n", file.read_text(encoding="utf-8", errors="replace")):
            fields = _deb822_fields(block)
            if "uris" in fields:
                yield fields
    for file in (Path("/etc/apt/sources.list"), *sorted(directory.glob("*.list"))):
        if file.exists():
            yield from _one_line_entries(file.read_text(encoding="utf-8", errors="replace"))


def _deb822_fields(block: str) -> dict[str, str]:
    """The fields of one `Key: value` block; a value may go on in indented lines."""
    fields: dict[str, str] = {}
    key = ""
    for line in block.splitlines():
        if line.startswith("#"):
            continue
        if line[:1].isspace() and key:
            fields[key] += "\n" + line
        elif ":" in line:
            name, _, value = line.partition(":")
            key = name.strip().lower()
            fields[key] = value.strip()
    return fields


def _one_line_entries(text: str) -> Iterator[dict[str, str]]:
    """The entries of a sources.list, as `deb [option=value] uri suite component ...`."""
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)\s+([^#]*)", line)
        if match:
            options = dict(re.findall(r"(\S+?)=(\S+)", match[1] or ""))
            yield {**options, "types": "deb", "uris": match[2], "suites": match[3], "components": match[4]}
