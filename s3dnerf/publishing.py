"""Publishing of a model folder on the Hugging Face hub, with its card."""

from __future__ import annotations

from pathlib import Path
from string import Template

from s3dnerf import __version__
from s3dnerf.config import to_dict
from s3dnerf.errors import UserError, first_line
from s3dnerf.hub import HUB_ID
from s3dnerf.models.pretrained import CONFIG_FILE, WEIGHTS_FILE
from s3dnerf.models.s3dnerf.config import RENDER_CONFIG_FILE
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.paths import is_file, is_folder

CARD = "README.md"
TEMPLATE = Path(__file__).parent / "assets" / "hub_card.md"
UPLOADED = (CONFIG_FILE, RENDER_CONFIG_FILE, WEIGHTS_FILE, CARD, "LICENSE")
"""Files of a model folder that are uploaded; checkpoints of training and logs are not."""


def push_model(folder: str | Path, repo: str, *, private: bool = False, license_name: str = "other") -> str:
    """Upload a model in one commit, and return its address. The repository is made if it does not exist.

    The card is the README.md of the folder; without one it is written from a template.

    Args:
        folder: holds ``config.json`` and ``model.safetensors``, or a folder ``model`` that does.
        repo: hub id, "user/model".
        private: whether a new repository is private.
        license_name: identifier of the license for the card, as the hub knows it.

    Raises:
        UserError: the folder holds no model that can be loaded, or the hub refuses it or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if not HUB_ID.fullmatch(repo):
        raise UserError(repo, "is no name of a repository", "Use the form user/model.")
    folder = Path(folder)
    if not is_folder(folder):
        raise UserError(folder, "is no folder", "Name the folder of a model.")
    folder = folder / "model" if is_folder(folder / "model") else folder
    card = make_card(S3DNeRF.load(folder), repo, license_name)
    files: dict[str, Path | bytes] = {name: folder / name for name in UPLOADED if is_file(folder / name)}
    files.setdefault(CARD, card.encode())
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()]
    api = HfApi(library_name="s3dnerf", library_version=__version__)
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.create_commit(repo, operations, commit_message=f"Upload the model with s3dnerf {__version__}")
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        hint = "Log in with `hf auth login`, with a token that may write to this repository, and check the connection."
        raise UserError(repo, f"was not uploaded ({first_line(error)})", hint) from error
    return str(address)


def make_card(model: S3DNeRF, repo: str, license_name: str) -> str:
    """Return the card of a model as Markdown."""
    parameters = sum(value.numel() for value in model.parameters())
    settings = ", ".join(f"`{name}` {value:g}" for name, value in to_dict(model.render_config).items())
    return Template(TEMPLATE.read_text("utf-8")).substitute(
        license=license_name,
        name=repo.partition("/")[2],
        repo=repo,
        version=__version__,
        size=model.config.image_size,
        parameters=f"{parameters / 1e6:.2f}",
        megabytes=f"{4 * parameters / 1e6:.1f}",
        settings=settings,
    )
