"""The versions of TRL and transformers that training was tested with, and the errors outside them."""

import logging
import warnings
from importlib.metadata import version

from packaging.version import Version

# Package: (first, last) version tested. Older releases lack features that training needs; newer ones may work. Patch
# releases of the last count as tested.
TESTED = {"trl": ("1.16", "1.16"), "transformers": ("5.18", "5.23")}


def version_range(package: str) -> str:
    """Return the tested versions as `"5.18 to 5.23"`, or one number if first and last are the same."""
    first, last = TESTED[package]
    return first if first == last else f"{first} to {last}"


def check_versions(installed: dict[str, str] | None = None) -> None:
    """Check TRL and transformers before they are used; warn if one is newer than the tested range.

    Args:
        installed: Version by package name; by default those installed.

    Raises:
        ImportError: If one is older than the tested range, with the range and the command that fixes it.
    """
    for package, (first, last) in TESTED.items():
        found = version(package) if installed is None else installed[package]
        release = Version(found)
        if Version(release.base_version) < Version(first):
            raise ImportError(
                f"DepthVLM trains with {package} {version_range(package)}, and {package} {found} is installed: "
                f'it is too old. Run `pip install "{package}>={first}"`.'
            )
        if release.release[:2] > Version(last).release:
            warnings.warn(
                f"{package} {found} is newer than what DepthVLM's training was tested with ({version_range(package)}). "
                f'If something fails, try `pip install "{package}=={last}.*"`.',
                stacklevel=2,
            )


def quiet_libraries() -> None:
    """Silence messages at the start of the command that its user cannot act on."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a kernel that a CPU does not need
    logging.getLogger("accelerate.commands.launch").setLevel(logging.ERROR)  # its defaults are ours
    # Names that transformers 5.23 has renamed, but 5.18 has not.
    warnings.filterwarnings("ignore", r"`\w+` is deprecated and will be removed in v6", FutureWarning)
