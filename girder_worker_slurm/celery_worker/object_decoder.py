"""Python objects from the JSON that jsonpickle makes of them, for the admitted classes and plain data only.

jsonpickle's own decoder imports and calls what a text names. This one knows each form that it accepts and refuses all others; it
imports admitted classes, makes their instances without their constructor, and sets attributes. It counts objects as jsonpickle does,
because `py/id` refers to them by their number; the tests compare the two.
"""

from __future__ import annotations

import base64
import binascii
import collections
import datetime as dt
import decimal
import json
import pkgutil
import uuid
from typing import TYPE_CHECKING, Any

from girder_worker_slurm.errors import MessageUndecodable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

MOST_BYTES = 32 * 1024 * 1024
DEEPEST = 100

_KEY_PREFIX = "json://"
_STATE = "py/state"
_FACTORY = "default_factory"
#: Celery's signatures are dicts, and Celery takes plain ones for them. Their `__dict__` holds the sender's whole app, by a call.
_SIGNATURES = frozenset(
    f"celery.canvas.{name}"
    for name in (
        "Signature",
        "_basemap",
        "_chain",
        "_chord",
        "chain",
        "chord",
        "chunks",
        "group",
        "xmap",
        "xstarmap",
    )
)
_MOMENTS: Mapping[str, Any] = {
    "datetime.date": dt.date,
    "datetime.datetime": dt.datetime,
    "datetime.time": dt.time,
}
#: Types that may be called with what a message gives them: they compute nothing, and take no more room than that.
_VALUES: Mapping[str, Any] = {
    "builtins.frozenset": frozenset,
    "collections.OrderedDict": collections.OrderedDict,
    "datetime.timedelta": dt.timedelta,
    "datetime.timezone": dt.timezone,
    "decimal.Decimal": decimal.Decimal,
}
_BUILTINS: Mapping[str, Any] = {
    f"builtins.{cls.__name__}": cls for cls in (bool, dict, float, int, list, set, str, tuple)
}
#: The client of a server's own, which hooks have with them: as it is, and with this type of an attribute.
_CLIENT = "girder_client.GirderClient"
_CLIENT_REPORTER = "girder_client._NoopProgressReporter"

#: In the place of an object that is being made; no text of jsonpickle's refers to one.
_UNFINISHED = object()
#: In the place of what is counted but not made.
_LEFT_OUT = object()


def decode_text(data: str | bytes, admitted: Collection[str]) -> Any:
    """What a text in jsonpickle's JSON stands for; raises MessageUndecodable for all that is not admitted, too large or too deep."""
    if len(data) > MOST_BYTES:
        msg = f"The task message has {len(data)} bytes; {MOST_BYTES} are the most that is read here."
        raise MessageUndecodable(msg)
    return _Decoder(admitted, object_keys=True).whole(_parsed(data))


def decode_value(value: Any, admitted: Collection[str]) -> Any:
    """The same for JSON that is read already, whose keys are all text, such as a result hook in the headers of a message."""
    return _Decoder(admitted, object_keys=False).whole(value)


def _parsed(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:
        msg = f"The task message cannot be decoded: {type(error).__name__}: {error}."
        raise MessageUndecodable(msg) from error


def _too_deep() -> MessageUndecodable:
    return MessageUndecodable(f"The task message is nested deeper than {DEEPEST} levels.")


def _refused(tag: str, value: Any) -> MessageUndecodable:
    return MessageUndecodable(
        f"The task message has {tag[:40]!r} of {str(value)[:80]!r}, which could run code while it is decoded; it is not decoded."
    )


def _malformed(what: str, error: object = None) -> MessageUndecodable:
    return MessageUndecodable(f"The task message cannot be decoded: {what}{f' ({error})' if error else ''}.")


class _Decoder:
    """Decodes one text; every method that takes a node also takes how deep it lies."""

    def __init__(self, admitted: Collection[str], *, object_keys: bool) -> None:
        self._admitted = admitted
        self._object_keys = object_keys
        #: All objects that can be referred to, in jsonpickle's order.
        self._objects: list[Any] = []
        #: Above 0 inside of what is counted only.
        self._leaving_out = 0
        #: Forms that are dicts with one key.
        self._forms: Mapping[str, Callable[[Any, int], Any]] = {
            "py/b64": lambda text, _depth: self._bytes(base64.b64decode, text),
            "py/b85": lambda text, _depth: self._bytes(base64.b85decode, text),
            "py/function": lambda name, _depth: self._function(name),
            "py/id": lambda number, _depth: self._reference(number),
            "py/reduce": self._reduce,
            "py/set": lambda nodes, depth: _made(set, self._all(nodes, depth)),
            "py/tuple": lambda nodes, depth: tuple(self._all(nodes, depth)),
            "py/type": lambda name, _depth: self._type(name),
        }
        #: Forms of `py/object` that are not instances with attributes.
        self._classes: Mapping[str, Callable[[str, dict[str, Any], int, int], Any]] = {
            **dict.fromkeys(_SIGNATURES, self._signature),
            **dict.fromkeys(_MOMENTS, self._moment),
            "bson.objectid.ObjectId": self._object_id,
            "collections.defaultdict": self._defaultdict,
            "uuid.UUID": self._uuid,
        }

    def whole(self, node: Any) -> Any:
        return self._decode(node, 0)

    def _decode(self, node: Any, depth: int) -> Any:
        if depth > DEEPEST:
            raise _too_deep()
        if isinstance(node, dict):
            return self._dict_or_form(node, depth)
        if isinstance(node, list):
            made: list[Any] = []
            self._count(made)
            made.extend(self._all(node, depth))
            return made
        return node

    def _all(self, nodes: Any, depth: int) -> Iterable[Any]:
        if not isinstance(nodes, list):
            raise _malformed("a list is expected where there is none")
        return [self._decode(node, depth + 1) for node in nodes]

    def _dict_or_form(self, node: dict[str, Any], depth: int) -> Any:
        tag = next((key for key in node if key.startswith("py/")), None)
        if tag is None:
            made: dict[Any, Any] = {}
            self._count(made)
            self._fill(made, node.items(), depth)
            return made
        if "py/object" in node:
            return self._object(node, depth)
        form = self._forms.get(tag)
        if form is None or len(node) != 1:
            raise _refused(tag, node[tag])
        return form(node[tag], depth)

    def _fill(self, made: dict[Any, Any], items: Iterable[tuple[str, Any]], depth: int) -> None:
        """Keys that are text come first, as jsonpickle counts."""
        late = []
        for key, inner in items:
            if self._object_keys and key.startswith(_KEY_PREFIX):
                late.append((key, inner))
            else:
                made[key] = self._decode(inner, depth + 1)
        for text, inner in late:
            key = self._decode(_parsed(text.removeprefix(_KEY_PREFIX)), depth + 1)
            if isinstance(key, str) and key.startswith("py/"):
                raise _refused(key, inner)
            _made(made.__setitem__, key, self._decode(inner, depth + 1))

    def _count(self, made: Any) -> int:
        self._objects.append(_LEFT_OUT if self._leaving_out else made)
        return len(self._objects) - 1

    def _finish(self, number: int, made: Any) -> Any:
        if not self._leaving_out:
            self._objects[number] = made
        return made

    # Forms with one key.

    def _bytes(self, decode: Callable[[Any], bytes], text: Any) -> bytes:
        try:
            return decode(text)
        except (TypeError, ValueError, binascii.Error) as error:
            raise _malformed("bytes that are none", error) from error

    def _reference(self, number: Any) -> Any:
        if type(number) is not int or not 0 <= number < len(self._objects):
            raise _malformed("a reference to nothing")
        found = self._objects[number]
        if found is _UNFINISHED or (found is _LEFT_OUT and not self._leaving_out):
            raise _malformed("a reference to what is not made")
        return found

    def _function(self, name: Any) -> Any:
        if not self._leaving_out:
            raise _refused("py/function", name)
        return _LEFT_OUT

    def _type(self, name: Any) -> Any:
        if self._leaving_out:
            return _LEFT_OUT
        for known in (_BUILTINS, _MOMENTS, _VALUES):
            if isinstance(name, str) and name in known:
                return known[name]
        if name == _CLIENT_REPORTER:
            return _class(name)
        raise _refused("py/type", name)

    def _reduce(self, nodes: Any, depth: int) -> Any:
        number = self._count(_UNFINISHED)
        called, arguments, *rest = [*self._all(nodes, depth), None, None]
        if self._leaving_out:
            return _LEFT_OUT
        state, listed, pairs = [*rest, None, None, None][:3]
        if called not in _VALUES.values() or not isinstance(arguments, tuple) or state or listed:
            raise _refused("py/reduce", nodes)
        made = _made(called, *arguments)
        if pairs:
            _made(made.update, pairs)
        return self._finish(number, made)

    # Instances of classes.

    def _object(self, node: dict[str, Any], depth: int) -> Any:
        name = node["py/object"]
        if not isinstance(name, str):
            raise _refused("py/object", name)
        number = self._count(_UNFINISHED)
        if self._leaving_out:
            return self._left_out(node, depth)
        special = self._classes.get(name)
        if special is not None:
            return self._finish(number, special(name, node, number, depth))
        return self._instance(name, node, number, depth)

    def _instance(self, name: str, node: dict[str, Any], number: int, depth: int) -> Any:
        if name != _CLIENT and name not in self._admitted:
            raise _not_admitted(name)
        cls = _class(name)
        made = self._finish(number, _made(cls.__new__, cls))
        for key, inner in node.items():
            if key in ("py/object", _STATE):
                continue
            if key.startswith(("py/", "__")):
                raise _refused(key, inner)
            _made(setattr, made, key, self._decode(inner, depth + 1))
        if _STATE in node:
            state = self._decode(node[_STATE], depth + 1)
            if hasattr(made, "__setstate__"):
                _made(made.__setstate__, state)
            elif isinstance(state, dict) and not any(str(key).startswith("__") for key in state):
                for key, value in state.items():
                    _made(setattr, made, key, value)
            else:
                raise _refused(_STATE, state)
        return made

    def _signature(self, _name: str, node: dict[str, Any], number: int, depth: int) -> Any:
        made: dict[Any, Any] = {}
        self._finish(number, made)
        for key, inner in node.items():
            if key == "py/object":
                continue
            if key == "__dict__":
                self._leaving_out += 1
                self._decode(inner, depth + 1)
                self._leaving_out -= 1
            elif key.startswith("py/"):
                raise _refused(key, inner)
            else:
                self._fill(made, [(key, inner)], depth)
        return made

    def _moment(self, name: str, node: dict[str, Any], _number: int, depth: int) -> Any:
        try:
            named, (text, *others) = node["__reduce__"]
        except (KeyError, TypeError, ValueError) as error:
            raise _malformed(f"a {name} that is none") from error
        if named != {"py/type": name} or len(node) != 2:
            raise _refused("__reduce__", node)
        return _made(
            _MOMENTS[name],
            self._bytes(base64.b64decode, text),
            *(self._decode(other, depth + 1) for other in others),
        )

    def _uuid(self, name: str, node: dict[str, Any], _number: int, _depth: int) -> Any:
        if set(node) != {"py/object", "hex"} or not isinstance(node["hex"], str):
            raise _malformed(f"a {name} that is none")
        return _made(uuid.UUID, node["hex"])

    def _object_id(self, name: str, node: dict[str, Any], _number: int, depth: int) -> Any:
        state = self._decode(node.get(_STATE), depth + 1)
        if set(node) != {"py/object", _STATE} or not isinstance(state, bytes) or len(state) != 12:
            raise _malformed(f"a {name} that is none")
        try:
            from bson import ObjectId  # noqa: PLC0415 - MongoDB's, which a worker without Girder's packages has not
        except ImportError:
            return state.hex()
        return ObjectId(state)

    def _defaultdict(self, name: str, node: dict[str, Any], number: int, depth: int) -> Any:
        factory = self._decode(node.get(_FACTORY), depth + 1)
        if factory is not None and factory not in _BUILTINS.values():
            raise _malformed(f"a {name} that is none")
        made: dict[Any, Any] = collections.defaultdict(factory)
        self._finish(number, made)
        for key, inner in node.items():
            if key in ("py/object", _FACTORY):
                continue
            if key.startswith(("py/", "__")):
                raise _refused(key, inner)
            self._fill(made, [(key, inner)], depth)
        return made

    def _left_out(self, node: dict[str, Any], depth: int) -> Any:
        """Counts what is in an object that is not made, in the order in which jsonpickle does."""
        if node["py/object"] in _MOMENTS:
            parts = node.get("__reduce__")
            self._decode({"py/tuple": parts[1] if isinstance(parts, list) and len(parts) == 2 else []}, depth)
            return _LEFT_OUT
        for tag, value in node.items():
            if tag.startswith("py/") and tag not in ("py/object", _STATE):
                raise _refused(tag, value)
        # jsonpickle makes these first and last, wherever they stand.
        others = (key for key in node if key not in (_FACTORY, "py/object", _STATE))
        for key in (_FACTORY, *others, _STATE):
            self._decode(node.get(key), depth + 1)
        return _LEFT_OUT


def _class(name: str) -> Any:
    """An admitted class."""
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        package = name.split(".", 1)[0].replace("_", "-")
        msg = f"The task uses {name}, which is not installed in this worker: install `{package}` in its environment."
        raise MessageUndecodable(msg) from error
    if not isinstance(found, type):
        msg = f"The task uses {name}, which is no class."
        raise MessageUndecodable(msg)
    return found


def _not_admitted(name: str) -> MessageUndecodable:
    shown = name[:200]
    package = shown.split(".", 1)[0].replace("_", "-")
    return MessageUndecodable(
        f"The task uses {shown}, which is none of the classes that this worker admits. If you trust it, install `{package}`"
        " in the worker's environment and name the class in `allow_classes` of [celery]."
    )


def _made(make: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return make(*arguments)
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise _malformed("a value that is none", f"{type(error).__name__}: {error}") from error
