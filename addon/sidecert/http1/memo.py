"""What was made of some bytes before, kept for the next time they come."""

from __future__ import annotations

from typing import Final

_LONGEST: Final = 2048
_MOST: Final = 256


class Memo[Value](dict[bytes, Value]):
    """By the bytes that a value was made of. Callers choose those, hence the bounds on their size and number.

    A tool that calls again mostly sends the same head again, and gets the same one back.
    """

    __slots__ = ()

    def keep(self, made_of: bytes, value: Value) -> Value:
        """Remember `value`, if there is room for what it was made of; gives it back."""
        if len(made_of) <= _LONGEST:
            if len(self) >= _MOST:
                self.clear()
            self[made_of] = value
        return value
