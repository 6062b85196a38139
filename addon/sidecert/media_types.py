"""The choice between two forms of an answer by the caller's Accept header (RFC 9110, section 12.5.1)."""

from __future__ import annotations


def quality(accept: str, media_type: str) -> float:
    """How much `accept` wants `media_type` (lower-case), from 0.0 (not at all) to 1.0.

    The most specific range decides. An empty header takes anything; a range whose q is malformed counts
    as not there; other parameters are not looked at.
    """
    if not accept.strip():
        return 1.0
    wanted = (media_type, media_type.partition("/")[0] + "/*", "*/*")
    found = [0.0, 0.0, 0.0]
    listed = [False, False, False]
    for item in accept.split(","):
        name, _, parameters = item.partition(";")
        name = name.strip().lower()
        if name in wanted and (q := _q(parameters)) is not None:
            place = wanted.index(name)
            found[place] = max(found[place], q)
            listed[place] = True
    return next((q for q, is_there in zip(found, listed, strict=True) if is_there), 0.0)


def _q(parameters: str) -> float | None:
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            try:
                q = float(value.strip())
            except ValueError:
                return None
            return q if 0.0 <= q <= 1.0 else None
    return 1.0
