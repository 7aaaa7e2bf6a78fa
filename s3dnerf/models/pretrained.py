"""Loading of models written by ``save_pretrained``. Errors name the file that is missing, broken or mismatched."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from s3dnerf.config import from_dict, to_dict
from s3dnerf.errors import UserError, first_line
from s3dnerf.hub import HINT, find_model
from s3dnerf.media.files import make_folder
from s3dnerf.paths import is_file
from s3dnerf.state_dict import describe_difference

Model = TypeVar("Model", bound=nn.Module)
Made = TypeVar("Made", bound=nn.Module, covariant=True)
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
COPY_AGAIN = "Copy or download it again."


class PretrainedModel(nn.Module):
    """A model that is saved as a folder with ``config.json`` and ``model.safetensors``, or on the Hugging Face hub.

    The files are those of ``PyTorchModelHubMixin`` of ``huggingface_hub``, which takes long to import and which only
    the hub needs.
    """

    config: Any
    """The settings, a dataclass."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write settings and weights into a folder."""
        folder = make_folder(folder)
        # `save_file` would leave it to the owner alone.
        weights = save({name: value.contiguous() for name, value in self.state_dict().items()})
        (folder / WEIGHTS_FILE).write_bytes(weights)
        (folder / CONFIG_FILE).write_text(json.dumps(to_dict(self.config), indent=2, sort_keys=True), "utf-8")

    def push_to_hub(self, repo_id: str, **options: Any) -> None:
        """Publish the model.

        Args:
            repo_id: hub id such as "user/model".
            options: of ``huggingface_hub.HfApi.create_repo``, such as ``private`` and ``token``.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=options.get("token"))
        api.create_repo(repo_id, exist_ok=True, **options)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            api.upload_folder(repo_id=repo_id, folder_path=folder)


class Configurable(Protocol[Made]):
    """A model class whose constructor takes a settings dataclass."""

    def __call__(self, config: Any) -> Made:
        """Build a model from its settings."""


def load_model(
    kind: Configurable[Model], schema: type, source: str | Path, aliases: Mapping[str, str | None] | None = None
) -> Model:
    """Load a model from a folder or from the Hugging Face hub.

    Args:
        kind: class of the model.
        schema: class of its settings.
        source: folder with ``config.json`` and ``model.safetensors``, or a hub id.
        aliases: names of settings in files of earlier versions, see :func:`rename_settings`.

    Raises:
        UserError: a file is missing or broken, or the weights do not match the settings.
    """
    folder = find_model(source)
    model = kind(
        from_dict(schema, rename_settings(read_config(folder, source), aliases or {}), str(folder / CONFIG_FILE))
    )
    fill_model(model, read_weights(folder, source), folder / WEIGHTS_FILE)
    return model


def fill_model(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Copy weights read from ``path`` into a model. Raises UserError unless they match the model exactly."""
    wrong = describe_difference(model.state_dict(), weights)
    if wrong:
        raise UserError(path, f"does not match its {CONFIG_FILE}: {wrong}", "Copy both files from the same model.")
    broken = next((name for name, value in weights.items() if not torch.isfinite(value).all()), None)
    if broken:
        raise UserError(path, f"holds values that are not finite numbers, in {broken}", "Use an earlier checkpoint.")
    model.load_state_dict(dict(weights))


def read_config(folder: Path, source: str | Path) -> dict[str, Any]:
    """Return ``config.json`` of a folder that was given as ``source``. Raises UserError if it does not exist."""
    path = folder / CONFIG_FILE
    if not is_file(path):
        raise UserError(source, f"holds no model: there is no {CONFIG_FILE} in it", HINT)
    return read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """Return the settings in a JSON file. Raises UserError if it cannot be read."""
    try:
        tree = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(path, f"cannot be read ({first_line(error)})", COPY_AGAIN) from error
    if not isinstance(tree, dict):
        raise UserError(path, "is not a mapping of settings", COPY_AGAIN)
    return tree


def read_weights(folder: Path, source: str | Path) -> dict[str, Tensor]:
    """Return the weights of a folder that was given as ``source``. Raises UserError if there are none."""
    path = folder / WEIGHTS_FILE
    if not is_file(path):
        raise UserError(source, f"holds no weights: there is no {WEIGHTS_FILE} in it", HINT)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(path, f"cannot be read ({first_line(error)})", COPY_AGAIN) from error


def rename_settings(tree: Mapping[str, Any], aliases: Mapping[str, str | None]) -> dict[str, Any]:
    """Return nested settings with the names of earlier versions replaced by current ones.

    ``aliases`` maps dotted names to dotted names, or to None for settings and sections that have become constants.
    """
    dropped = tuple(f"{name}." for name, target in aliases.items() if target is None)
    renamed: dict[str, Any] = {}
    for name, value in _flatten(tree):
        target = aliases.get(name, name)
        if target is None or name.startswith(dropped):
            continue
        *sections, leaf = target.split(".")
        node = renamed
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    return renamed


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            pairs += _flatten(value, f"{prefix}{name}.")
        else:
            pairs.append((f"{prefix}{name}", value))
    return pairs
