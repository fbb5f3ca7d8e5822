"""Reads a site's file about its users, in our form or in that of the JARVICE document; errors have file and line.

::

    users:                                   users_id_mapping:
      - group: Pathology                       - user: Benoit Leveugle
        account: patho                           jarvice_user: bleveugleb
        limits: {time: 2-0, gpus: 1}             mail: benoit.leveugle@eviden.net
      - login: [ada, grace]                      mapped_user: kirby
        unix_user: kirby                         ssh_private_key_b64: "..."
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

import yaml

from girder_worker_slurm.errors import SettingsInvalid
from girder_worker_slurm.options.layers import option_name
from girder_worker_slurm.options.limits import Limits, parse_limits
from girder_worker_slurm.options.requests import check_site_options, parse_allowed
from girder_worker_slurm.users.mapping import KEYS, MappingEntry, UserMapping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from girder_worker_slurm.options.layers import AllowedOptions
    from girder_worker_slurm.users.mapping import Key, Unmapped

#: Nothing that a command could take for an option, a path or a list.
_UNIX_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}\Z")
_LISTS = ("users", "users_id_mapping")
#: Options that have a key of their own, because they are what most sites want.
_DIRECT = ("account", "qos", "partition")
_RIGHTS = (*_DIRECT, "options", "limits", "allow_options")
_OURS = (*KEYS, *_RIGHTS, "unix_user")
#: Keys of the JARVICE document; `mail` says who it is, `mapped_user` whom their jobs run as.
_JARVICE = ("mail", "user", "jarvice_user", "mapped_user", "ssh_private_key_b64")


def read_mapping(path: Path | None, unmapped: Unmapped = "refuse") -> UserMapping:
    """The mapping in this file, or one that maps nobody if there is none.

    Raises SettingsInvalid naming file, line and what to write instead. No value of the file is repeated in it that
    could be a secret.
    """
    if path is None:
        return UserMapping()
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsInvalid(f"{path}: {error.strerror}: see `mapping_file` in [users].") from error
    except UnicodeDecodeError as error:
        raise SettingsInvalid(f"{path}: is not UTF-8: see `mapping_file` in [users].") from error
    try:
        return parse_mapping(text, unmapped)
    except _Wrong as error:
        raise SettingsInvalid(f"{path}:{error.line}: {error}.") from error


def parse_mapping(text: str, unmapped: Unmapped = "refuse") -> UserMapping:
    """The mapping that a text holds."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise _Wrong(mark.line + 1 if mark else 1, f"is not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise _Wrong(1, f"is not YAML: {type(error).__name__}") from error
    except RecursionError as error:
        raise _Wrong(1, "is nested too deeply") from error
    if root is None:
        raise _Wrong(1, f"is empty; write a list `{_LISTS[0]}:`")
    entries: list[MappingEntry] = []
    for name, node in _pairs(root, _LISTS):
        for item in _items(node, name):
            said = dict(_pairs(item, _OURS if name == _LISTS[0] else (*_JARVICE, *_RIGHTS)))
            entries.append(_entry(item, said))
    return UserMapping(tuple(entries), unmapped, is_set=True)


class _Wrong(ValueError):
    """Something that makes no sense, and in which line it stands."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(what)
        self.line = line


def _entry(item: Any, said: dict[str, Any]) -> MappingEntry:
    keys: list[tuple[Key, str]] = [(key, key) for key in KEYS if key in said]
    if "mail" in said:
        keys.append(("email", "mail"))
    if len(keys) != 1:
        wanted = ", ".join(KEYS) if "users_id_mapping" not in said else "mail"
        found = "none" if not keys else " and ".join(written for _, written in keys)
        raise _Wrong(
            _line(item),
            f"an entry says once for whom it is ({wanted}; `mail` in users_id_mapping), not {found}",
        )
    key, written = keys[0]
    return MappingEntry(
        key,
        tuple(name.lower() for name in _names(said[written], written)),
        options=tuple(_options(said)),
        limits=_limits(said.get("limits")),
        allowed=_allowed(said.get("allow_options")),
        unix_user=_unix_user(said.get("unix_user", said.get("mapped_user"))),
    )


def _options(said: dict[str, Any]) -> Iterator[tuple[str, str]]:
    pairs = [(name, said[name]) for name in _DIRECT if name in said]
    if "options" in said:
        pairs += [(option_name(name), node) for name, node in _pairs(said["options"], None)]
    seen: set[str] = set()
    for name, node in pairs:
        if name in seen:
            raise _Wrong(_line(node), f"`{name}` is set twice")
        seen.add(name)
        value = _text(node)
        if node.tag.endswith(":bool"):
            value = "" if value.lower() in ("true", "yes", "on") else value
        _checked(node, check_site_options, [(name, value)])
        yield name, value


def _limits(node: Any) -> Limits:
    if node is None:
        return Limits()
    return cast("Limits", _checked(node, parse_limits, {name: _text(v) for name, v in _pairs(node, None)}))


def _allowed(node: Any) -> AllowedOptions | None:
    if node is None:
        return None
    names = [_text(item) for item in _items(node, "allow_options")]
    return cast("AllowedOptions", _checked(node, parse_allowed, names))


def _unix_user(node: Any) -> str:
    if node is None:
        return ""
    name = _text(node)
    if name and not _UNIX_USER.match(name):
        raise _Wrong(_line(node), f"{name!r} is not the name of a Unix user")
    return name


def _checked(node: Any, check: Callable[[Any], Any], value: Any) -> Any:
    try:
        return check(value)
    except ValueError as error:
        raise _Wrong(_line(node), str(error)) from error


def _pairs(node: Any, known: tuple[str, ...] | None) -> list[tuple[str, Any]]:
    """Names and values of a node that has them."""
    if not isinstance(node, yaml.MappingNode):
        names = f", as {', '.join(f'`{name}:`' for name in known)}" if known else ""
        raise _Wrong(_line(node), f"names with values are expected here{names}")
    found: dict[str, Any] = {}
    for key, value in node.value:
        name = _text(key)
        if known is not None and name not in known:
            raise _Wrong(_line(key), f"unknown key `{name}`; known: {', '.join(known)}")
        if name in found:
            raise _Wrong(_line(key), f"`{name}` stands here twice")
        found[name] = value
    return list(found.items())


def _items(node: Any, name: str) -> list[Any]:
    if not isinstance(node, yaml.SequenceNode):
        raise _Wrong(_line(node), f"`{name}` is a list: each entry begins with `- `")
    return list(node.value)


def _names(node: Any, key: str) -> list[str]:
    items = node.value if isinstance(node, yaml.SequenceNode) else [node]
    names = [_text(item).strip() for item in items]
    if not names or not all(names):
        raise _Wrong(_line(node), f"`{key}` is empty")
    return names


def _text(node: Any) -> str:
    """A value as it is written: YAML would make a number of the time 1:30:00."""
    if not isinstance(node, yaml.ScalarNode):
        raise _Wrong(_line(node), "one value is expected here, not several")
    return "" if node.tag.endswith(":null") else str(node.value)


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1
