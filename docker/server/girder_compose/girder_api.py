"""As much of Girder's REST API as provisioning needs."""

from __future__ import annotations

import json
from typing import Any

import requests

from .errors import SetupError

ROOT = "http://girder:8080/api/v1"


class GirderApi:
    """Girder as its administrator sees it."""

    def __init__(self, root: str = ROOT) -> None:
        self._root = root
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy stands between two containers

    def log_in(self, login: str, password: str) -> bool:
        """Whether Girder lets this user in; from then on calls are made as that user."""
        answer = self._send("GET", "user/authentication", auth=(login, password))
        if answer.status_code == 401:
            return False
        self._session.headers["Girder-Token"] = self._json(answer)["authToken"]["token"]
        return True

    def call(self, method: str, path: str, **parameters: Any) -> Any:
        """Girder's answer; raises SetupError with its words when it refuses."""
        # Girder wants a Content-Length with every POST and PUT.
        where = {"params": parameters} if method == "GET" else {"data": parameters or ""}
        return self._json(self._send(method, path, **where))

    def setting(self, key: str) -> Any:
        """A setting's value."""
        return self.call("GET", "system/setting", key=key)

    def change_setting(self, key: str, value: Any) -> None:
        """Changes a setting; raises SetupError where Girder does not know it or refuses the value."""
        self.call("PUT", "system/setting", key=key, value=json.dumps(value))

    def _send(self, method: str, path: str, **options: Any) -> requests.Response:
        try:
            return self._session.request(method, f"{self._root}/{path}", timeout=60, **options)
        except requests.RequestException as error:
            raise SetupError(f"Girder does not answer to {method} {path}: {error}") from error

    @staticmethod
    def _json(answer: requests.Response) -> Any:
        if not answer.ok:
            try:
                said = answer.json().get("message", "")
            except ValueError:
                said = answer.text[:300]
            raise SetupError(
                f"Girder refuses {answer.request.method} {answer.request.path_url.partition('?')[0]}: {said}"
            )
        return answer.json()
