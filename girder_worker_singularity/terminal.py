"""Text from users, images and messages, so that a terminal shows it and obeys nothing in it.

What a terminal obeys may rewrite the window's title, hide or forge lines, or answer as if it had been typed.
"""

from __future__ import annotations

import codecs
import io
import json
import unicodedata
from typing import Any, BinaryIO

#: Control, format (text that runs backwards, for example), line and paragraph separators, halves of characters.
_OBEYED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def visible(text: str, *, keep: str = "") -> str:
    """The text with each character that a terminal obeys, or does not show, written out, as `^[` or `^J`.

    Characters of `keep` stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(
        _written(character)
        if character not in keep and unicodedata.category(character) in _OBEYED
        else character
        for character in text
    )


def visible_lines(text: str) -> str:
    """The same for text of several lines: line ends and tabs stay."""
    return "\n".join(visible(line, keep="\t") for line in text.split("\n"))


def visible_json(value: Any) -> str:
    """One JSON document, in which such characters are escaped as JSON has it."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    if text.replace("\n", "").isprintable():
        return text
    return "".join(
        json.dumps(character)[1:-1]
        if character != "\n" and unicodedata.category(character) in _OBEYED
        else character
        for character in text
    )


def _written(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return f"^{chr(code + 0x40)}"
    return "^?" if code == 0x7F else f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class TerminalOutput:
    """A terminal that is written to in pieces of bytes, cut anywhere."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        # A bar that draws itself anew after each "\r" becomes lines.
        self._decoder = io.IncrementalNewlineDecoder(decoder, translate=True)

    def write(self, data: bytes) -> int:
        """Shows what is whole of it."""
        self._out.write(visible_lines(self._decoder.decode(data)).encode("utf-8", "replace"))
        return len(data)

    def flush(self) -> None:
        """Brings it to the terminal."""
        self._out.flush()
