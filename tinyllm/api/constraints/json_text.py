"""Where in a JSON text a point is: inside a string, or how far into a number."""

from __future__ import annotations

from dataclasses import dataclass, replace

DIGITS = frozenset(b"0123456789")
_EXPONENT, _IN_NUMBER = frozenset(b"eE"), frozenset(b".+-")


@dataclass
class JsonText:
    """What has been read so far; text around the JSON does no harm if it has no quotes."""

    in_string: bool = False
    in_number: bool = False
    in_exponent: bool = False
    n_digits: int = 0  # of the number, or of its exponent
    _escaped: bool = False

    def push(self, raw: bytes) -> None:
        """Read on."""
        for byte in raw:
            if self.in_string:
                if self._escaped:
                    self._escaped = False
                elif byte == 0x5C:  # a backslash
                    self._escaped = True
                elif byte == 0x22:  # a quote
                    self.in_string = False
            elif byte == 0x22:
                self.in_string, self.in_number = True, False
            elif byte in DIGITS:
                if not self.in_number:
                    self.in_number, self.in_exponent, self.n_digits = True, False, 0
                self.n_digits += 1
            elif self.in_number and byte in _EXPONENT:
                self.in_exponent, self.n_digits = True, 0
            elif byte not in _IN_NUMBER:
                self.in_number = False

    def copy(self) -> JsonText:
        return replace(self)
