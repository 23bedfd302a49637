"""The protocol of numbers: everything that must agree before two of them may be compared."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

IMAGE_ROUTE = "decoded to [0, 1], times 255, rounded to nearest, clamped, uint8"
NOISE_PURPOSE = "images"
FORMULAS = 1
"""Raised when a metric's definition changes."""
FORMULAS_TO_FLOAT = 2
"""The same where float images stand in place of real ones."""


def protocol_id(protocol: Mapping[str, Any]) -> str:
    """Sixteen hex digits over every field; equal protocols have equal ones."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:16]
