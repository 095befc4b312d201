"""What a bad setting looks like to the person who wrote it."""

from __future__ import annotations

from pydantic import ValidationError


class InvalidSettingError(ValueError):
    """A known key has a value that it cannot have. The text starts with the key's dotted path. Change the file or the
    request.
    """


def describe(error: ValidationError, *, prefix: str = "") -> str:
    """Turn pydantic's findings into one line each: dotted path, then the reason."""
    lines: list[str] = []
    for finding in error.errors(include_url=False, include_context=False, include_input=False):
        path = ".".join(str(part) for part in finding["loc"])
        where = ".".join(part for part in (prefix, path) if part)
        lines.append(f"{where}: {finding['msg']}" if where else finding["msg"])
    return "; ".join(lines)
