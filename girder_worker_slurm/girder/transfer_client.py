"""A Girder client for inputs and outputs that can be stopped, resumed and pointed at another address.

It stands in for the clients that travel inside Girder's transforms. A broken connection raises
GirderUnreachable, after which the same step is done again: what was uploaded is not uploaded twice.
"""

from __future__ import annotations

import mimetypes
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import requests
from girder_client import GirderClient, HttpError

from girder_worker_slurm.errors import GirderUnreachable

if TYPE_CHECKING:
    from collections.abc import Callable

_TIMEOUT = (10.0, 300.0)
_CHUNK_BYTES = 32 * 1024 * 1024


class UploadLedger(Protocol):
    """Where uploads are recorded, so that a restarted worker goes on with them."""

    def is_uploaded(self, key: str) -> bool:
        """Whether this file is in Girder as a whole."""

    def upload_id(self, key: str) -> str | None:
        """The upload that was begun for this file."""

    def begun(self, key: str, upload_id: str) -> None:
        """Records an upload before its first byte is sent."""

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
            if error.status >= 500 or error.status == 429:
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
        size = path.stat().st_size
        upload_id = ledger.upload_id(key)
        if upload_id is None:
            name = Path(filename or path).name
            details = {"name": name, "size": size, "mimeType": mime_type or mimetypes.guess_type(name)[0]}
            if reference:
                details["reference"] = reference
            if replaced_file is not None:
                begun = self.put(f"file/{replaced_file}/contents", parameters=details)
            else:
                begun = self.post("file", parameters={**parameters, **details})
            offset = 0
            # Girder makes an empty file at once, without an upload.
            if size == 0:
                ledger.finished(key)
                return
            upload_id = str(begun["_id"])
            ledger.begun(key, upload_id)
        else:
            known = self._offset(upload_id)
            if known is None:
                # Girder forgets an upload when its last byte has come: it was finished, its answer was lost.
                ledger.finished(key)
                return
            offset = known
        self._send_chunks(path, upload_id, offset, size)
        ledger.finished(key)

    def _send_chunks(self, path: Path, upload_id: str, offset: int, size: int) -> None:
        with path.open("rb") as handle:
            handle.seek(offset)
            while offset < size:
                chunk = handle.read(min(_CHUNK_BYTES, size - offset))
                if not chunk:
                    msg = f"{path} became shorter while it was uploaded ({offset} of {size} bytes)."
                    raise OSError(msg)
                self.post(f"file/chunk?offset={offset}&uploadId={upload_id}", data=chunk)
                offset += len(chunk)

    def _offset(self, upload_id: str) -> int | None:
        """How many bytes of an upload Girder has; None when it does not know the upload."""
        try:
            return int(self.get("file/offset", parameters={"uploadId": upload_id})["offset"])
        except HttpError as error:
            if error.status in (400, 404):
                return None
            raise


def _relative(path: Path, root: Path) -> str:
    try:
        return str(path.relative_to(root))
    except ValueError:
        return str(path)
