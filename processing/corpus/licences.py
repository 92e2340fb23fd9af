"""What is known of the licences by which sources name themselves: their id on the Hub, and what one may pass on."""

from __future__ import annotations

import re

# Licences that allow anyone to pass the files on, changed and beside others; the Hub's ids of those that it knows.
_OPEN = (
    (re.compile(r"CC0(?: 1\.0)?"), "cc0-1.0"),
    (re.compile(r"CC (BY|BY-SA|BY-NC|BY-NC-SA) ([1-4]\.0)"), None),
    (re.compile(r"MIT"), "mit"),
    (re.compile(r"Apache-2\.0"), "apache-2.0"),
    (re.compile(r"BSD-2-Clause"), "bsd-2-clause"),
    (re.compile(r"BSD-3-Clause"), "bsd-3-clause"),
    (re.compile(r"ODC-BY(?: 1\.0)?"), "odc-by"),
    (re.compile(r"ODbL(?: 1\.0)?"), "odbl"),
    (re.compile(r"PDDL(?: 1\.0)?"), "pddl"),
    (re.compile(r"NIH Clinical Center: unrestricted use.*"), "other"),
)
_HUB_VERSIONS = {  # of the Creative Commons licences
    "BY": ("2.0", "3.0", "4.0"),
    "BY-SA": ("3.0", "4.0"),
    "BY-NC": ("2.0", "3.0", "4.0"),
    "BY-NC-SA": ("2.0", "3.0", "4.0"),
}


def may_redistribute(license_name: str) -> bool:
    """Whether a licence lets anyone pass the files on; False where that is unknown, needs an agreement or a request.

    CC licences with ND count as closed: a corpus changes what it takes over.
    """
    return any(pattern.fullmatch(license_name.strip()) for pattern, _ in _OPEN)


def hub_license(license_name: str) -> str:
    """The Hub's id of a licence, "other" where it has none."""
    for pattern, hub_id in _OPEN:
        match = pattern.fullmatch(license_name.strip())
        if match and hub_id:
            return hub_id
        if match and match[2] in _HUB_VERSIONS[match[1]]:
            return f"cc-{match[1].lower()}-{match[2]}"
    return "other"
