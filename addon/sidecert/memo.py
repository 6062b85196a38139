"""What was worked out before, kept for the next time that it is asked for."""

from __future__ import annotations

from typing import Final

_MOST: Final = 256
_LONGEST: Final = 2048


class Memo[Key, Value](dict[Key, Value]):
    """By what a value was worked out from. Callers choose that, hence the bounds.

    A value is kept when it is worked out for the second time. A tool that calls again mostly sends what it
    sent before; what never comes again would only push other things out of the processor's caches.
    """

    __slots__ = ("_once",)

    def __init__(self) -> None:
        super().__init__()
        self._once: set[int] = set()
        """Hashes of what was worked out once."""

    def keep(self, key: Key, value: Value, size: int) -> None:
        """Remember `value`; `size` is what it takes in bytes, roughly: too much is not kept."""
        mark = hash(key)
        if mark not in self._once:
            if len(self._once) >= _MOST:
                self._once.clear()
            self._once.add(mark)
        elif size <= _LONGEST:
            if len(self) >= _MOST:
                self.clear()
            self[key] = value
