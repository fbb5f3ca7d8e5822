"""A Girder client for inputs and outputs that can be stopped, resumed and pointed at another address.

It stands in for the clients that travel inside Girder's transforms. A broken connection raises
GirderUnreachable, after which the same step is done again: what was uploaded is not uploaded twice.
"""

from __future__ import annotations

import contextlib
import errno
import json
import mimetypes
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import requests
from girder_client import GirderClient, HttpError

from girder_worker_slurm.errors import GirderUnreachable, OutputRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_TIMEOUT = (10.0, 300.0)
CHUNK_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class Upload:
    """An upload that was begun, and how many bytes of it Girder has acknowledged."""

    upload_id: str
    acknowledged: int


class UploadLedger(Protocol):
    """Where uploads are recorded, so that a restarted worker goes on with them."""

    def is_uploaded(self, key: str) -> bool:
        """Whether this file is in Girder as a whole."""

    def upload(self, key: str) -> Upload | None:
        """The upload that was begun for this file."""

    def begun(self, key: str, upload_id: str) -> None:
        """Records an upload before its first byte is sent."""

    def acknowledged(self, key: str, offset: int) -> None:
        """Records that Girder has a chunk that ends there."""

    def finished(self, key: str) -> None:
        """Records that the file is in Girder."""


class TransferClient(GirderClient):  # type: ignore[misc] # girder_client has no types
    """One job's client for one token."""

    def __init__(self, api_url: str, token: str, check: Callable[[], None]) -> None:
        super().__init__(apiUrl=api_url)
        self.token = token
        self._check = check
        self.ledger: UploadLedger | None = None
        self.upload_root = Path("/")
        self.key_prefix = ""
        # girder_client's own attribute: one kept-alive connection instead of one per request.
        self._session = requests.Session()

    def sendRestRequest(self, method: str, path: str, *args: Any, **kwargs: Any) -> Any:
        """As in girder_client; checks for cancel first and raises GirderUnreachable when there is no answer."""
        self._check()
        kwargs.setdefault("timeout", _TIMEOUT)
        try:
            return super().sendRestRequest(method, path, *args, **kwargs)
        except HttpError as error:
            if error.status >= 500 or error.status == 429 or _is_of_a_proxy(error, method):
                msg = f"Girder answered {error.status} for {method} {path.split('?', maxsplit=1)[0]}."
                raise GirderUnreachable(msg) from error
            raise
        except requests.RequestException as error:
            msg = f"Girder did not answer for {method} {path.split('?', maxsplit=1)[0]}: {type(error).__name__}."
            raise GirderUnreachable(msg) from error

    def downloadFile(self, fileId: str, path: Any, created: str | None = None) -> None:
        """Brings a file here, straight to its place: the system's temporary directory may be small.

        Raises GirderUnreachable when the connection breaks midway or fewer bytes come than the file has.
        """
        if not isinstance(path, (str, Path)):
            super().downloadFile(fileId, path, created)
            return
        expected = int(self.getFile(fileId)["size"])
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.part")
        received = 0
        try:
            response = self.sendRestRequest("get", f"file/{fileId}/download", jsonResp=False, stream=True)
            with response, partial.open("wb") as handle:
                for chunk in response.iter_content(chunk_size=1024 * 1024):
                    self._check()
                    handle.write(chunk)
                    received += len(chunk)
        except requests.RequestException as error:
            msg = f"The download of file {fileId} broke off: {type(error).__name__}."
            raise GirderUnreachable(msg) from error
        if received != expected:
            msg = f"The download of file {fileId} gave {received} of {expected} bytes."
            raise GirderUnreachable(msg)
        partial.rename(target)

    def uploadFileToFolder(
        self,
        folderId: str,
        filepath: str,
        reference: str | None = None,
        mimeType: str | None = None,
        filename: str | None = None,
        progressCallback: Any = None,
    ) -> None:
        """Brings a file into a folder, once."""
        del progressCallback
        parameters = {"parentType": "folder", "parentId": folderId}
        self._upload(Path(filepath), filename, mimeType, reference, parameters, None)

    def uploadFileToItem(
        self,
        itemId: str,
        filepath: str,
        reference: str | None = None,
        mimeType: str | None = None,
        filename: str | None = None,
        progressCallback: Any = None,
    ) -> None:
        """Brings a file into an item, once; a file of that name in the item gets the new content."""
        del progressCallback
        name = Path(filename or filepath).name
        existing = next((file for file in self.listFile(itemId) if file["name"] == name), None)
        parameters = {"parentType": "item", "parentId": itemId}
        self._upload(
            Path(filepath), filename, mimeType, reference, parameters, existing and str(existing["_id"])
        )

    def _upload(
        self,
        path: Path,
        filename: str | None,
        mime_type: str | None,
        reference: str | None,
        parameters: dict[str, Any],
        replaced_file: str | None,
    ) -> None:
        ledger = self.ledger
        if ledger is None:
            msg = "This client was not made for uploads."
            raise RuntimeError(msg)
        key = f"{self.key_prefix}:{_relative(path, self.upload_root)}"
        if ledger.is_uploaded(key):
            return
        with open_output(path, self.upload_root) as handle:
            size = os.fstat(handle.fileno()).st_size
            name = Path(filename or path).name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            details = {"name": name, "size": size, "mimeType": mime_type or mimetypes.guess_type(name)[0]}
            if reference:
                details["reference"] = reference
            upload = self._known_upload(ledger, key, size)
            if upload is not None and 0 < size != upload.acknowledged:
                try:
                    self._send_chunks(handle, ledger, key, upload, size)
                except HttpError as error:
                    if error.status != 403:
                        raise
                    # Begun with the token of another user, who alone may go on with it.
                    upload = None
            if upload is None:
                if replaced_file is not None:
                    begun = self.put(f"file/{replaced_file}/contents", parameters=details)
                else:
                    begun = self.post("file", parameters={**parameters, **details})
                # Girder makes an empty file at once, without an upload.
                if size:
                    upload = Upload(str(begun["_id"]), 0)
                    ledger.begun(key, upload.upload_id)
                    self._send_chunks(handle, ledger, key, upload, size)
        ledger.finished(key)

    def _known_upload(self, ledger: UploadLedger, key: str, size: int) -> Upload | None:
        """The upload to go on with; None if a new one has to be begun.

        Girder hashes what it receives: an upload can only be resumed where the last acknowledged chunk ended. Asked
        for the offset, Girder counts bytes of a broken chunk that it has not hashed.
        """
        upload = ledger.upload(key)
        if upload is None:
            return None
        offset = self._offset(upload.upload_id)
        if offset is None and size - upload.acknowledged <= CHUNK_BYTES:
            # Girder forgets an upload when its last byte has come: it was finished, its answer was lost.
            return Upload(upload.upload_id, size)
        if offset == upload.acknowledged:
            return upload
        with contextlib.suppress(HttpError, GirderUnreachable):  # Girder removes it some day
            self.delete(f"file/upload/{upload.upload_id}")
        return None

    def _send_chunks(
        self, handle: BinaryIO, ledger: UploadLedger, key: str, upload: Upload, size: int
    ) -> None:
        offset = upload.acknowledged
        handle.seek(offset)
        answer: Any = None
        while offset < size:
            chunk = handle.read(min(CHUNK_BYTES, size - offset))
            if not chunk:
                msg = f"An output became shorter while it was uploaded ({offset} of {size} bytes)."
                raise OSError(errno.EIO, msg)
            answer = self.post(f"file/chunk?offset={offset}&uploadId={upload.upload_id}", data=chunk)
            offset += len(chunk)
            ledger.acknowledged(key, offset)
        # The answer to the last chunk is the file; anything else is an upload that Girder could not finish.
        if not isinstance(answer, dict) or "itemId" not in answer:
            msg = "Girder took the last byte of an upload but made no file of it."
            raise GirderUnreachable(msg)

    def _offset(self, upload_id: str) -> int | None:
        """How many bytes of an upload Girder has; None when it does not know the upload, -1 when it cannot say."""
        try:
            return int(self.get("file/offset", parameters={"uploadId": upload_id})["offset"])
        except HttpError as error:
            if error.status in (400, 404):
                return None
            raise
        except GirderUnreachable:
            # Away, or stumbling over this one upload: then a new one is begun.
            self.get("system/version")
            return -1


@contextlib.contextmanager
def open_output(path: Path, volume: Path) -> Iterator[BinaryIO]:
    """An output file, opened only if it really is a file where it seems to be.

    A container can leave links to anywhere, which, followed here, would give away files of the worker's user. Raises
    OutputRefused.
    """
    place = volume if path.is_relative_to(volume) else path.parent
    real = path.resolve(strict=True)
    if not real.is_relative_to(place.resolve()):
        msg = f"The output {path.name} is a link that leads out of the job's directory."
        raise OutputRefused(msg)
    # The path has no links any more; one that was put there since is refused.
    descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as handle:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            msg = f"The output {path.name} is no file."
            raise OutputRefused(msg)
        yield handle


def _is_of_a_proxy(error: HttpError, method: str) -> bool:
    """Whether it is a page that stands in for Girder while that is away. Its 404 would make an upload one that was finished."""
    if error.status != 404 and (error.status not in (401, 403) or method.lower() != "get"):
        return False  # what a proxy will not let through, by its size or content, it will refuse again
    try:
        return not isinstance(json.loads(error.responseText), dict)
    except ValueError:
        return True


def _relative(path: Path, root: Path) -> str:
    try:
        return str(path.relative_to(root))
    except ValueError:
        return str(path)
