"""Finding models by name: a local folder, or a repository of the Hugging Face hub and its local cache."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from s3dnerf.errors import UserError, first_line
from s3dnerf.paths import is_folder, stat_path

Result = TypeVar("Result")
TIMEOUT = 4.0
"""Seconds within which the hub, or its proxy, must accept a connection, and then answer."""
HINT = "Name a folder with config.json and model.safetensors, or a hub id such as user/model that can be reached."
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
TRANSPORTS = ("httpx", "httpx2", "requests", "urllib3")
"""Packages whose errors huggingface_hub passes on, depending on its version."""


def find_model(source: str | Path, files: Sequence[str] = ("config.json", "model.safetensors")) -> Path:
    """Return the folder of a model: ``source`` itself, or the local cache of a hub repository.

    Without a connection, cached models are still found, and others fail within seconds.

    Args:
        source: a folder, or a hub id.
        files: files to fetch from the hub.

    Raises:
        UserError: ``source`` is not a folder, and the hub has no such model or cannot be reached.
    """
    if is_folder(source):
        return Path(source)
    if stat_path(source) is not None:
        raise UserError(source, "is a file, not the folder of a model", "Name the folder that the file is in.")
    if isinstance(source, Path) or not HUB_ID.fullmatch(source):
        raise UserError(source, "holds no model: there is no such folder", HINT)
    return fetch_model(source, files)


def is_online() -> bool:
    """Tell whether the hub, or its proxy, accepts connections."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        host, port = find_server(constants.ENDPOINT)
    except ValueError:  # invalid address, such as a port that is not a number
        return False
    connected: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), TIMEOUT).close()
            connected.append(True)
        except OSError:
            return

    # Name resolution has no timeout of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    return bool(connected)


def find_server(endpoint: str) -> tuple[str, int]:
    """Return the host and port of the endpoint, or of its proxy."""
    url = urlsplit(endpoint)
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(url.hostname or ""):
        url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return url.hostname or "", url.port or PORTS.get(url.scheme, 443)


def fetch_model(source: str, files: Sequence[str]) -> Path:
    """Return the local folder of a model on the hub, downloaded if need be. Raises UserError if that is impossible."""
    from huggingface_hub import model_info, snapshot_download

    failure = None
    if is_online():
        # This request comes first because it has a timeout: a proxy may accept a connection and never answer.
        _, failure = _try(lambda: model_info(source, timeout=TIMEOUT))
        if failure is None:
            folder, failure = _try(lambda: snapshot_download(source, allow_patterns=list(files)))
            if folder is not None:
                return Path(folder)
    folder, _ = _try(lambda: snapshot_download(source, allow_patterns=list(files), local_files_only=True))
    if folder is not None:
        return Path(folder)
    hub = "the hub cannot be reached" if failure is None else f"the hub does not give it ({first_line(failure)})"
    raise UserError(source, f"holds no model: there is no such folder, {hub}, and it is not in the cache", HINT)


def _try(ask: Callable[[], Result]) -> tuple[Result | None, Exception | None]:
    """Return the answer of the hub, or the error of the connection or request."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return ask(), None
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        return None, error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in TRANSPORTS:
            raise
        return None, error
