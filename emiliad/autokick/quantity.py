"""Kubernetes' quantities: '500m', '512Gi', '1e3'."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

# A whole number of digits, perhaps a point; then a decimal exponent or one suffix.
_QUANTITY = re.compile(r"^([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d{1,2})|([numkKMGTPE]i?|))$")
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}  # powers of 1024


def parse_quantity(text: str | int | float) -> float:
    """The amount in base units (cores, bytes, pieces), rounded once. Raises ValueError."""
    found = _QUANTITY.match(str(text).strip())
    if found is None:
        raise ValueError(f"{text!r} is no quantity")
    number, exponent, suffix = Fraction(found[1]), found[2], found[3]
    if exponent:
        return float(number * Fraction(Decimal(f"1{exponent}")))
    if suffix in _BINARY:
        return float(number * 1024 ** _BINARY[suffix])
    if suffix not in _DECIMAL:
        raise ValueError(f"{text!r} is no quantity: {suffix!r} is no suffix")
    return float(number * Fraction(10) ** _DECIMAL[suffix or ""])
