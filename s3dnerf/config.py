"""Settings: typed dataclasses filled from YAML files and from dotted names on the command line.

This module is independent of particular settings. The dataclasses are defined next to the code that they configure and
passed in as ``schema``; a schema may nest other dataclasses to any depth. Every name in a file or an override must
exist in the schema, and every value must have the declared type and range (see ``s3dnerf.constraints``). Errors suggest
the nearest valid name.

A YAML file may start with ``extends: base.yaml`` and then contains only the differences to that file.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import pydantic
import yaml

from s3dnerf.errors import UserError, shorten
from s3dnerf.limits import SIMILARITY
from s3dnerf.media.files import atomic_write
from s3dnerf.paths import is_file

T = TypeVar("T")
Tree = dict[str, Any]

COMMAND_LINE = "command line"
LONGEST_VALUE = 100
"""Maximum number of characters of an invalid value in a message."""


def load_config(schema: type[T], name_or_path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Return ``schema`` filled from a YAML file, then from ``overrides``. All other settings keep their defaults.

    Args:
        schema: the settings dataclass.
        name_or_path: a path, or the bare name of a file in ``configs/``.
        overrides: command line words such as ``["--train.batch_size", "4", "--train.steps=100"]``.

    Raises:
        UserError: the file is missing or broken, a name is unknown, or a value has the wrong type or is out of range.
    """
    layers = [*_read_layers(find_config(name_or_path)), (COMMAND_LINE, parse_overrides(overrides))]
    return _build(schema, layers)


def from_dict(schema: type[T], tree: Mapping[str, Any], source: str = "settings") -> T:
    """Return ``schema`` filled from a nested mapping, the inverse of ``to_dict``. ``source`` names it in errors."""
    return _build(schema, [(source, dict(tree))])


def check_config(config: Any, source: str = "settings") -> None:
    """Check a settings dataclass that was created or changed in Python, as ``load_config`` checks a file.

    Raises UserError for a value of the wrong type or out of range.
    """
    _build(type(config), [(source, dataclasses.asdict(config))])


def to_dict(config: Any) -> Tree:
    """Return a settings dataclass as nested dicts, lists, strings and numbers that YAML and JSON can hold."""
    kind: type = type(config)  # `type[Any]` is no Hashable to mypy
    return _make_adapter(kind).dump_python(config, mode="json")


def save_config(path: str | Path, config: Any) -> None:
    """Write a settings dataclass as a complete YAML file, which ``load_config`` reads back to an equal object."""
    with atomic_write(path) as temporary:
        temporary.write_text(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True), "utf-8")


def find_config(name_or_path: str | Path) -> Path:
    """Return the path of a settings file: as given, or for a bare name the file in ``configs/``."""
    path = Path(name_or_path)
    if is_file(path):
        return path
    folder = _config_folder()
    if path.name == str(path) and is_file(folder / path.name):
        return folder / path.name
    known = sorted(file.name for file in folder.glob("*.yaml"))
    # Names are compared without the suffix, which would make all of them similar.
    close = difflib.get_close_matches(path.stem, [name.removesuffix(".yaml") for name in known], n=1, cutoff=SIMILARITY)
    question = f"Did you mean {close[0]}.yaml? " if close else ""
    raise UserError(path, "no such settings file", f"{question}Give a path, or one of: {', '.join(known)}.")


def dotted_names(schema: type) -> dict[str, Any]:
    """Return every setting of ``schema`` as dotted name -> type, depth first, including sections."""
    names: dict[str, Any] = {}
    hints = _read_hints(schema)
    for field in dataclasses.fields(schema):
        names[field.name] = hints[field.name]
        if dataclasses.is_dataclass(hints[field.name]):
            inner = dotted_names(hints[field.name])
            names.update({f"{field.name}.{name}": kind for name, kind in inner.items()})
    return names


def parse_overrides(words: Sequence[str]) -> Tree:
    """Return command line words as a nested tree: ``--a.b 4``, ``--a.b=4``, and a bare ``--a.b`` for true.

    Lists and null are written as in YAML (``[1, 2]``, ``null``). All other values stay text, which the schema converts.
    """
    tree: Tree = {}
    words = list(words)
    while words:
        word = words.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not name:
            raise UserError(word, "is not an option", "Write settings as --section.name VALUE.")
        if not equals:
            text = words.pop(0) if words and not words[0].startswith("--") else "true"
        *sections, leaf = name.replace("-", "_").split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise UserError(f"--{name}", "is set twice", f"--{section} is a value here; leave one out.")
        node[leaf] = _parse_value(word, text)
    return tree


def show_options(schema: type, default: Any, prog: str) -> None:
    """Print every dotted option of ``schema`` with its type, its value in ``default`` and its help text.

    The help text of a field is the docstring or comment next to it. Exits the program with code 0.
    """
    # It takes long to import.
    import tyro

    tyro.cli(
        schema,
        prog=prog,
        default=default,
        args=["--help"],
        config=(tyro.conf.FlagConversionOff,),
        use_underscores=True,
    )


def nearest_name(name: str, names: Sequence[str]) -> str | None:
    """Return the entry of ``names`` most similar to ``name``, preferring entries with the same leaf, or None."""
    leaf = name.rpartition(".")[2]
    same_leaf = [known for known in names if known.rpartition(".")[2] == leaf]
    close = difflib.get_close_matches(name, same_leaf or names, n=1, cutoff=0.0 if same_leaf else 0.5)
    return close[0] if close else None


def _config_folder() -> Path:
    """Return the installed ``configs`` next to this file, or ``configs`` of the repository that contains this file."""
    package = Path(__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def _read_layers(path: Path, above: tuple[Path, ...] = ()) -> list[tuple[str, Tree]]:
    """Read a settings file and the files that it extends, the most general first."""
    path = path.resolve()
    if path in above:
        raise UserError(path, "extends itself", "Remove the cycle from the `extends` lines.")
    tree = _read_yaml(path)
    parent = tree.pop("extends", None)
    if parent is None:
        return [(str(path), tree)]
    beside = path.parent / str(parent)
    parent_path = beside if beside.is_file() else find_config(str(parent))
    return [*_read_layers(parent_path, (*above, path)), (str(path), tree)]


def _read_yaml(path: Path) -> Tree:
    try:
        tree = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror})", "Check the file and its permissions.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # YAML raises ValueError for text that is not UTF-8, for invalid dates and for numbers that are too long.
        reason = shorten(" ".join(str(error).split()), 300)
        raise UserError(path, f"is not valid YAML ({reason})", "Fix the line that it names.") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(path, "holds no settings", "Write it as `section:` with `name: value` lines below.")
    return tree


def _parse_value(word: str, text: str) -> Any:
    # Numbers and booleans stay text, so that a folder called 2024 or a mode called off is not parsed as a number or a
    # boolean. The validator converts them if the schema expects one.
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = f"cannot read the value {_show(text)}"
        raise UserError(word.partition("=")[0], reason, "Write lists as '[1, 2]'.") from error
    return value if value is None or isinstance(value, (list, dict)) else text


def _build(schema: type[T], layers: Sequence[tuple[str, Tree]]) -> T:
    merged: Tree = {}
    for source, tree in layers:
        _refuse_unknown(schema, tree, source)
        merged = _merge(merged, tree)
    try:
        kind: type = schema  # nor is `type[T]`
        return _make_adapter(kind).validate_python(merged)
    except pydantic.ValidationError as error:
        raise _explain(error, schema, layers) from error


@functools.cache
def _read_hints(schema: type) -> Mapping[str, Any]:
    return get_type_hints(schema)


@functools.cache
def _make_adapter(schema: type) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(schema)


def _refuse_unknown(schema: type, tree: Tree, source: str) -> None:
    names = dotted_names(schema)
    for name in _flatten(schema, tree):
        if name not in names:
            nearest = nearest_name(name, list(names))
            hint = f"Did you mean '{nearest}'?" if nearest else "`s3dnerf train --help` lists all settings."
            raise UserError(source, f"unknown setting '{name}'", hint)


def _flatten(schema: type | None, tree: Mapping[Any, Any]) -> list[str]:
    """Return the dotted names in ``tree``. Sections are entered, including unknown ones; mapping values are not."""
    names = []
    hints = _read_hints(schema) if schema else {}
    for key, value in tree.items():
        kind = hints.get(key)
        inside = isinstance(value, Mapping) and (kind is None or dataclasses.is_dataclass(kind))
        if kind is not None or not inside:
            names.append(str(key))
        if inside:
            names += [f"{key}.{name}" for name in _flatten(kind, value)]
    return names


def _merge(lower: Tree, upper: Tree) -> Tree:
    merged = dict(lower)
    for key, value in upper.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _explain(error: pydantic.ValidationError, schema: type, layers: Sequence[tuple[str, Tree]]) -> UserError:
    """Convert the first validation error into one line: source, setting, reason and hint."""
    first = error.errors(include_url=False)[0]
    known = dotted_names(schema)
    # After the name of the setting, a location may continue with tuple entries or union members.
    paths = itertools.accumulate((str(part) for part in first["loc"]), "{}.{}".format)
    name = max((path for path in paths if path in known), key=len, default="")
    source = _find_source(schema, name, layers)
    if first["type"] == "missing":
        if len(first["loc"]) == len(name.split(".")):
            return UserError(source, f"'{name}' is missing", "Add it.")
        return UserError(source, f"'{name}' has too few values", f"Give {len(get_args(known[name]))} of them.")
    if first["type"] == "dataclass_type":
        example = next(other for other in known if other.startswith(f"{name}."))
        reason = f"'{name}': should be a section of settings, but is {_show(first['input'])}"
        return UserError(source, reason, f"Set one of its values, such as '{example}'.")
    message = first["msg"].removeprefix("Value error, ")
    message = f"{message[:1].lower()}{message[1:]}" if first["type"] != "value_error" else message
    if name:
        message = f"'{name}': {message}"
    is_section = not name or dataclasses.is_dataclass(known[name])
    if is_section and first["type"] == "value_error":
        # The error of a dataclass validator names the values. The whole section would only hide them.
        return UserError(source, message, "Fix one of these values.")
    return UserError(
        source, f"{message}, but is {_show(first['input'])}", _suggest(schema, name, known, first["input"])
    )


def _find_source(schema: type, name: str, layers: Sequence[tuple[str, Tree]]) -> str:
    """Return the last layer that sets ``name`` (or, without a name, anything), because it overrides earlier layers."""
    sources = [source for source, tree in layers if (name in _flatten(schema, tree) if name else tree)]
    return sources[-1] if sources else layers[-1][0]


def _suggest(schema: type, name: str, known: Mapping[str, Any], value: Any) -> str:
    """Return the hint for an invalid value: the most similar choice, or else the default."""
    kind = known.get(name)
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    if close := difflib.get_close_matches(str(value), choices, n=1, cutoff=SIMILARITY):
        return f"Did you mean '{close[0]}'?"
    default = _find_default(schema, name)
    return "Fix the value." if default is dataclasses.MISSING else f"Fix the value; the default is {_show(default)}."


def _find_default(schema: type, name: str) -> Any:
    """Return the default of a setting by its dotted name, or MISSING if it has none."""
    section, dot, rest = name.partition(".")
    if dot:
        return _find_default(_read_hints(schema)[section], rest)
    return next(field.default for field in dataclasses.fields(schema) if field.name == section)


def _show(value: Any) -> str:
    return shorten(str(value) if isinstance(value, Path) else repr(value), LONGEST_VALUE)
