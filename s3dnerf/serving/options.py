"""``RenderOptions`` from strangers: their fields in forms and JSON, without the files of the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from http import HTTPStatus
from typing import Any

from PIL import ImageColor

from s3dnerf.errors import ArgumentError
from s3dnerf.render_options import BLUR, KEEP, MOTIONS, TRANSPARENT, RenderOptions, read_rate
from s3dnerf.serving.errors import RequestError

WORDS = {"pose": MOTIONS, "camera": ("orbit",), "blink": ("auto", "off"), "background": (KEEP, TRANSPARENT, BLUR)}
"""Values that are no files, of the options that may be files. Other such options cannot be used from the network."""
HINTS = {
    "pose": f"Use {', '.join(MOTIONS)}, or upload a video as motion.",
    "camera": "Use orbit, or leave it out.",
    "blink": "Use auto, off or blinks a minute.",
    "background": "Use keep, blur, transparent, or a color such as green or #00ff00.",
}


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


def read_live_options(values: Mapping[str, Any]) -> RenderOptions:
    """Return the options of a live session, as :func:`read_options`; the head is idle unless they say otherwise.

    Motion from speech would need six seconds of it ahead.
    """
    return read_options({"pose": "idle", **values})


def refuse_files(options: RenderOptions) -> None:
    """Raise RequestError if an option could name a file, since that would be one of the server.

    Whether there is such a file makes no difference, so that nobody learns which files there are.
    """
    for part in fields(RenderOptions):
        value = getattr(options, part.name)
        if "Path" in str(part.type) and value != part.default and not _is_word(part.name, value):
            sentence = f"{part.name}: files of the server cannot be named. {HINTS.get(part.name, 'Leave it out.')}"
            raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, sentence)
    if options.inputs:
        sentence = f"The server has a file named {options.inputs[0].name}, which it does not use. Use another value."
        raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, sentence)


def _is_word(name: str, value: object) -> bool:
    """Tell whether the value of an option that may be a file is one of its other values."""
    if value in WORDS.get(name, ()):
        return True
    if name == "blink":
        return read_rate(value) is not None
    return name == "background" and (str(value) in ImageColor.colormap or str(value).startswith("#"))


def describe_options() -> list[dict[str, Any]]:
    """Return name, help, kind, default and allowed values of each option, for the OpenAPI page and the web page."""
    described = []
    for part in fields(RenderOptions):
        rules, default = part.metadata, part.default
        entry: dict[str, Any] = {"name": part.name, "help": rules["help"], "default": default, "kind": "text"}
        if "Path" in str(part.type) and part.name not in WORDS:
            continue
        if part.name in ("pose", "camera"):
            none = [""] if default is None else []
            entry |= {"kind": "choice", "choices": [*none, *WORDS[part.name]], "default": default or ""}
        elif isinstance(default, bool):
            entry["kind"] = "boolean"
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
    if entry["kind"] == "boolean":
        shown["type"] = "boolean"
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
    if isinstance(part.default, bool):
        return _to_switch(part.name, value)
    if isinstance(part.default, tuple):
        words = value.replace(",", " ").split() if isinstance(value, str) else value
        if not isinstance(words, (list, tuple)):
            raise ArgumentError(part.name, str(value), "is not a list of numbers", "Give numbers such as 20 5.")
        return tuple(_to_number(part.name, word, float) for word in words)
    if rules["whole"] is not None or isinstance(part.default, int):
        return _to_number(part.name, value, int)
    if rules["number"] is not None:
        return _to_number(part.name, value, float)
    if part.name == "blink" and (rate := read_rate(value)) is not None:
        return rate
    if not isinstance(value, str):
        raise ArgumentError(part.name, str(value), "is not text", "Give it in quotes.")
    return value


def _to_switch(name: str, value: Any) -> bool:
    known = {True: True, False: False, "true": True, "false": False, "on": True, "off": False}
    if not isinstance(value, (bool, str)) or value not in known:
        raise ArgumentError(name, str(value), "is neither true nor false", "Give true or false.")
    return known[value]


def _to_number(name: str, value: Any, kind: type[int] | type[float]) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return kind(value)
    except ValueError:
        noun = "a whole number" if kind is int else "a number"
        raise ArgumentError(name, value, f"is not {noun}", f"Give {noun}.") from None
