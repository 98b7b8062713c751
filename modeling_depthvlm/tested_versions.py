# Copyright 2026 The DepthVLM authors. Licensed under the Apache License, Version 2.0.
"""Says on load with which versions of transformers this code was tested, where it is another. Imported for that."""

import transformers
from transformers.utils import logging

# First and last minor version that the tests ran with. Patch releases of the last count as tested.
TESTED_TRANSFORMERS = ((5, 18), (5, 23))


def version_note(installed: str) -> str | None:
    """What to tell the user of this version of transformers ("5.23.0"), or None where it is a tested one."""
    first, last = TESTED_TRANSFORMERS
    major, minor = installed.split(".")[:2]
    if first <= (int(major), int(minor)) <= last:
        return None
    oldest, newest = (".".join(map(str, version)) for version in TESTED_TRANSFORMERS)
    newer = (int(major), int(minor)) > last
    advice = f"If something fails, try transformers {newest}." if newer else f"Update it to {oldest} or newer."
    return (
        f"DepthVLM's code was tested with transformers {oldest} to {newest}, and {installed} is installed, which is "
        f"{'newer' if newer else 'older'}. {advice}"
    )


if note := version_note(transformers.__version__):
    logging.get_logger(__name__).warning_once(note)
