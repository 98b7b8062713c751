"""Rows of a build whose images are trained on at their own size: table 7's "raw mixed-source"."""

from datasets import Dataset

from .shards import load_build

CANONICAL_FOCAL_LENGTH = 1000.0  # px; images of this focal length are not resized


def rows(split: str, folder: str) -> Dataset:
    """A build with the canonical focal length said of every image, which leaves images and metres as they are.

    Args:
        split: of the build.
        folder: of the build, as `depthvlm bench build` wrote it.

    Raises:
        FileNotFoundError, BuildError: see [`load_build`].
    """
    data = load_build(folder, split).remove_columns(["intrinsics", "focal_length"])
    return data.add_column("focal_length", [CANONICAL_FOCAL_LENGTH] * len(data))
