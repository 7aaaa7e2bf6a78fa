"""``RenderOptions`` from strangers: their fields in forms and JSON, without the files of the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from http import HTTPStatus
from pathlib import Path
from typing import Any

from s3dnerf.errors import ArgumentError
from s3dnerf.render_options import MOTIONS, RenderOptions
from s3dnerf.serving.errors import RequestError


def read_options(values: Mapping[str, Any]) -> RenderOptions:
    """Return checked options.

    Args:
        values: by name, as text from a form, or as numbers, lists and text from JSON. Empty text is the default.

    Raises:
        ArgumentError: an option is unknown or out of range.
        RequestError: an option names a file.
    """
    given = {name: value for name, value in values.items() if value is not None and value != ""}
    options = RenderOptions().change(**given)
    kinds = {part.name: part for part in fields(RenderOptions)}
    options = options.change(**{name: _convert(kinds[name], value) for name, value in given.items()})
    # Before the check, which looks for the file.
    refuse_files(options)
    return options.check()


def refuse_files(options: RenderOptions) -> None:
    """Raise RequestError if an option names a file, since that would be one of the server."""
    if not options.inputs:
        return
    for part in fields(RenderOptions):
        value = getattr(options, part.name)
        if isinstance(value, (str, Path)) and RenderOptions().change(**{part.name: value}).inputs:
            hint = (
                f"Use {', '.join(MOTIONS)}, or upload a video as `motion`." if part.name == "pose" else "Leave it out."
            )
            sentence = f"{part.name}: files of the server cannot be named. {hint}"
            raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, sentence)
    sentence = "The options name files of the server. Leave them out."
    raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, sentence)


def describe_options() -> list[dict[str, Any]]:
    """Return name, help, kind, default and allowed values of each option, for the OpenAPI page and the web page."""
    described = []
    for part in fields(RenderOptions):
        rules, default = part.metadata, part.default
        entry: dict[str, Any] = {"name": part.name, "help": rules["help"], "default": default, "kind": "text"}
        if part.name == "pose":
            entry |= {"kind": "choice", "choices": list(MOTIONS)}
        elif rules["choices"] is not None:
            entry |= {"kind": "choice", "choices": list(rules["choices"])}
        elif rules["whole"] is not None:
            allowed = rules["whole"]
            entry |= {"kind": "integer", "minimum": allowed.minimum, "maximum": allowed.maximum}
        elif rules["number"] is not None:
            entry |= {"kind": "number", "minimum": rules["number"][0], "maximum": rules["number"][1]}
        elif isinstance(default, tuple):
            entry |= {"kind": "numbers", "default": list(default), "parts": list(rules["metavar"] or ())}
        described.append(entry)
    return described


def make_schema(files: Mapping[str, str], texts: Mapping[str, str], required: tuple[str, ...]) -> dict[str, Any]:
    """Return the OpenAPI description of a form with files, texts and the rendering options."""
    properties: dict[str, Any] = {
        name: {"type": "string", "format": "binary", "description": text} for name, text in files.items()
    }
    properties |= {name: {"type": "string", "description": text} for name, text in texts.items()}
    for entry in describe_options():
        properties[entry["name"]] = _describe_field(entry)
    schema = {"type": "object", "properties": properties, "required": list(required)}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def _describe_field(entry: dict[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {"type": "string", "description": entry["help"]}
    if entry["kind"] in ("integer", "number"):
        shown |= {"type": entry["kind"], "minimum": entry["minimum"], "maximum": entry["maximum"]}
    if entry["kind"] == "choice":
        shown["enum"] = entry["choices"]
    if entry["kind"] == "numbers":
        shown["default"] = " ".join(f"{number:g}" for number in entry["default"])
    elif entry["default"] is not None:
        shown["default"] = entry["default"]
    return shown


def _convert(part: Any, value: Any) -> Any:
    """Return a value of JSON, or the text of a form, as the type of an option."""
    rules = part.metadata
    if isinstance(part.default, tuple):
        words = value.replace(",", " ").split() if isinstance(value, str) else value
        if not isinstance(words, (list, tuple)):
            raise ArgumentError(part.name, str(value), "is not a list of numbers", "Give numbers such as 20 5.")
        return tuple(_to_number(part.name, word, float) for word in words)
    if rules["whole"] is not None:
        return _to_number(part.name, value, int)
    if rules["number"] is not None:
        return _to_number(part.name, value, float)
    if not isinstance(value, str):
        raise ArgumentError(part.name, str(value), "is not text", "Give it in quotes.")
    return value


def _to_number(name: str, value: Any, kind: type[int] | type[float]) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return kind(value)
    except ValueError:
        noun = "a whole number" if kind is int else "a number"
        raise ArgumentError(name, value, f"is not {noun}", f"Give {noun}.") from None
