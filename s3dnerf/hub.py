"""Models by name: a folder on this machine, or a repository on the Hugging Face hub and its copy in the local cache."""

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
PATIENCE = 4.0
"""Seconds in which the hub, or the proxy before it, has to accept a connection, and again to answer."""
CURE = "Name a folder with config.json and model.safetensors, or a hub id such as user/model that can be reached."
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
TRANSPORTS = ("httpx", "httpx2", "requests", "urllib3")
"""Packages whose errors huggingface_hub passes on, depending on its version: a proxy refuses, a download breaks off."""


def find_model(source: str | Path, files: Sequence[str] = ("config.json", "model.safetensors")) -> Path:
    """Return the folder of a model: ``source`` itself, or a copy of the hub's files in the local cache.

    Without a connection, a model that was loaded before is taken from the cache; any other fails within seconds.

    Args:
        source: a folder, or a hub id.
        files: what is fetched from the hub.

    Raises:
        UserError: ``source`` is no folder, and the hub has no such model or cannot be reached.
    """
    if is_folder(source):
        return Path(source)
    if stat_path(source) is not None:
        raise UserError(source, "is a file, not the folder of a model", "Name the folder that the file is in.")
    if isinstance(source, Path) or not HUB_ID.fullmatch(source):
        raise UserError(source, "holds no model: there is no such folder", CURE)
    return _fetch(source, files)


def is_online() -> bool:
    """Tell whether the hub, or the proxy before it, accepts connections."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        host, port = _find_server(constants.ENDPOINT)
    except ValueError:  # an address that is none, such as a port that is no number
        return False
    connected: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), PATIENCE).close()
            connected.append(True)
        except OSError:
            return

    # Looking up a name has no time limit of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return bool(connected)


def _find_server(endpoint: str) -> tuple[str, int]:
    """Return host and port that a connection to ``endpoint`` goes to first: its own, or those of a proxy."""
    url = urlsplit(endpoint)
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(url.hostname or ""):
        url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return url.hostname or "", url.port or PORTS.get(url.scheme, 443)


def _fetch(source: str, files: Sequence[str]) -> Path:
    from huggingface_hub import model_info, snapshot_download

    failure = None
    if is_online():
        # Asked first because it can be given a time limit: a proxy may accept a connection and never answer.
        _, failure = _try(lambda: model_info(source, timeout=PATIENCE))
        if failure is None:
            folder, failure = _try(lambda: snapshot_download(source, allow_patterns=list(files)))
            if folder is not None:
                return Path(folder)
    folder, _ = _try(lambda: snapshot_download(source, allow_patterns=list(files), local_files_only=True))
    if folder is not None:
        return Path(folder)
    hub = "the hub cannot be reached" if failure is None else f"the hub does not give it ({first_line(failure)})"
    raise UserError(source, f"holds no model: there is no such folder, {hub}, and it is not in the cache", CURE)


def _try(ask: Callable[[], Result]) -> tuple[Result | None, Exception | None]:
    """Return what the hub answers, or else the error of the connection or of the request."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return ask(), None
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        return None, error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in TRANSPORTS:
            raise
        return None, error
