"""The protocol of numbers: everything that must agree before two of them may be compared."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

IMAGE_ROUTE = "decoded to [0, 1], times 255, rounded to nearest, clamped, uint8"
NOISE_PURPOSE = "images"
FORMULAS = 1
"""Raised when a metric's definition changes."""


def protocol_id(protocol: Mapping[str, Any]) -> str:
    """Sixteen hex digits over every field; equal protocols have equal ones."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:16]


def require_one_protocol(protocols: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse to compare reports whose numbers mean different things.

    Args:
        protocols: of each report, by its name.

    Raises:
        ValueError: they differ; the message names every field that does, its values and which reports have them.
    """
    fields = dict.fromkeys(field for protocol in protocols.values() for field in protocol)
    complaints = []
    for field in fields:
        holders: dict[str, list[str]] = {}
        for name, protocol in protocols.items():
            value = json.dumps(protocol[field]) if field in protocol else "absent"
            holders.setdefault(value, []).append(name)
        if len(holders) > 1:
            complaints.append(f"{field}: " + ", ".join(f"{value} ({_few(names)})" for value, names in holders.items()))
    if complaints:
        raise ValueError(
            "expected reports of one protocol, got numbers that cannot be compared, as these fields differ; collect "
            f"them folder by folder: {'; '.join(complaints)}"
        )


def _few(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
