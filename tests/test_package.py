"""The package as a whole: the cost of imports, the contents of an installation, allowed imports between layers."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import s3dnerf
from s3dnerf.config import find_config
from s3dnerf.media.image import write_image

PACKAGE = Path(s3dnerf.__file__).parent

FLOORS = (
    {
        *("config", "constants", "constraints", "limits", "keyframes", "options", "render_options", "paths", "hub"),
        *(
            "errors",
            "failures",
            "interruption",
            "memory",
            "media",
            "ops",
            "optimization",
            "device",
            "metrics",
            "precision",
        ),
        *("memory", "state_dict"),
    },
    {"structures", "encoding", "rendering", "face"},
    {"models", "data"},
    {
        *("training", "fitting", "framing", "pipeline", "source_image", "render_file", "speech_motion", "publishing"),
        *("sync_embedder", "talking_video", "encoded_portrait", "diffusion_frames", "reenactment", "utterance"),
        *("control", "geometry", "mesh", "motion_file"),
        *("live", "batch"),
    },
    {"evaluation", "serving", "onnx_export"},
    {"cli", "__main__"},
)


def floor_of(module: str) -> int:
    """Return the layer of a module such as ``s3dnerf.face.camera``; the package itself is the bottom layer."""
    parts = module.split(".")
    return next((n for n, rooms in enumerate(FLOORS) if parts[1:] and parts[1] in rooms), 0)


def imports_of(path: Path) -> set[str]:
    """Return the modules of the package that a file imports, at the top level or in functions."""
    found = set()
    package = ("s3dnerf", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "s3dnerf"}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_from_its_own_floor_or_below(path: Path) -> None:
    own = floor_of("s3dnerf." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts))
    above = {name for name in imports_of(path) if floor_of(name) > own}
    assert not above


FORBIDDEN = {"face": {"rendering", "models", "data"}, "data": {"models"}}
"""Packages that a package must not import although its layer allows it."""


@pytest.mark.parametrize("package", FORBIDDEN)
def test_packages_import_none_of_their_neighbors(package: str) -> None:
    imported = set().union(*(imports_of(path) for path in (PACKAGE / package).glob("*.py")))
    assert not {name for name in imported if name.split(".")[1:2] and name.split(".")[1] in FORBIDDEN[package]}


@pytest.mark.parametrize("path", sorted((PACKAGE / "evaluation").rglob("*.py")), ids=lambda path: path.stem)
def test_evaluation_imports_no_trainer(path: Path) -> None:
    training = {name.split(".")[2] for name in imports_of(path) if name.startswith("s3dnerf.training.")}
    assert training <= {"config", "losses", "checkpoint"}


def test_every_room_stands_on_a_floor() -> None:
    rooms = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in modules()}
    assert rooms <= set().union(*FLOORS)


def test_every_room_is_a_package_so_that_it_is_installed() -> None:
    assert all((path.parent / "__init__.py").is_file() for path in modules())


def test_importing_the_package_and_its_help_loads_nothing_heavy() -> None:
    heavy = {"torch", "cv2", "av", "scipy", "skimage", "transformers"}
    code = f"import sys, s3dnerf, s3dnerf.cli; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


SLOW_IMPORTS = {
    *("torch._dynamo", "transformers", "diffusers", "accelerate", "huggingface_hub", "tensorboard", "tyro", "skimage"),
    *(
        "scipy",
        "s3dnerf.training",
        "s3dnerf.data",
        "s3dnerf.evaluation",
        "s3dnerf.face.driving_video",
        "s3dnerf.face.pose_cleaning",
    ),
}
"""Modules that take long to import and that rendering does not need."""


def list_loaded(code: str) -> set[str]:
    """Return the modules that are loaded after some lines of Python in a new process."""
    lines = f"import sys\n{code}\nprint(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True).stdout.split())


def test_the_pipeline_is_imported_without_what_takes_long() -> None:
    loaded = list_loaded("import s3dnerf; s3dnerf.TalkingHeadPipeline")
    assert not loaded & {*SLOW_IMPORTS, "mediapipe", "soundfile", "numpy.ma"}


def test_a_frame_is_rendered_without_what_takes_long(tmp_path: Path) -> None:
    from skimage.data import astronaut

    write_image(tmp_path / "face.png", astronaut()[:300, 60:400])
    inputs = str(tmp_path / "face.png"), str(PACKAGE / "assets" / "speech.wav")
    code = f"from s3dnerf import TalkingHeadPipeline; next(iter(TalkingHeadPipeline.from_pretrained()(*{inputs})))"
    assert not list_loaded(code) & SLOW_IMPORTS


@pytest.mark.parametrize("name", s3dnerf.__all__)
def test_exported_names_are_there(name: str) -> None:
    assert getattr(s3dnerf, name) is not None
    assert name in dir(s3dnerf)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = s3dnerf.nothing


@pytest.mark.parametrize("name", ["base.yaml", "smoke.yaml", "vox.yaml", "hdtf.yaml"])
def test_settings_files_are_found_by_bare_name(name: str) -> None:
    assert find_config(name).name == name


@pytest.mark.parametrize("name", ["assets/speech.wav", "face/canonical_face.npy"])
def test_data_files_are_in_the_package(name: str) -> None:
    assert (PACKAGE / name).is_file()


def test_weights_are_in_the_package_and_small() -> None:
    weights = list((PACKAGE / "weights").rglob("*.safetensors"))
    assert weights and sum(path.stat().st_size for path in weights) <= 40_000_000


def list_imported_modules(path: Path) -> set[str]:
    """The modules of the package that a file imports when it is imported itself; not those inside functions."""
    found = set()
    package = ("s3dnerf", *path.relative_to(PACKAGE).parent.parts)
    nodes = list(ast.parse(path.read_text("utf-8")).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            type_checking = isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
            nodes += (
                [] if type_checking else [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
            )
    return found


def test_there_are_no_import_cycles() -> None:
    names = {".".join(("s3dnerf", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in modules()}
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    # A package's __init__ imports its own modules, which is no cycle unless they import the package's names back.
    graph = {name: (list_imported_modules(path) & names.keys()) - {name} for name, path in names.items()}
    remaining = dict(graph)
    while leaves := {name for name, imported in remaining.items() if not imported & remaining.keys()}:
        for name in leaves:
            del remaining[name]
    in_cycles = {name for name in remaining if any(name in remaining[other] for other in remaining)}
    assert not in_cycles
