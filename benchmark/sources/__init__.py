"""Sources: readers of datasets as downloaded, by name. May import `depthvlm`, processing and `synthetic`."""

from __future__ import annotations

from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from .frames import Source

SOURCES: dict[str, str] = {
    "argoverse2": "argoverse2:Argoverse2",
    "waymo": "waymo:Waymo",
    "ddad": "ddad:Ddad",
    "nuscenes": "nuscenes:NuScenes",
    "scannetpp": "scannetpp:ScanNetPP",
    "taskonomy": "omnidata:Taskonomy",
    "hm3d": "omnidata:HM3D",
    "matterport3d": "matterport3d:Matterport3D",
    "sunrgbd": "sunrgbd:SunRGBD",
    "ibims1": "ibims1:IBims1",
    "nyuv2": "nyuv2:NYUv2",
    "eth3d": "eth3d:ETH3D",
    "nyuv2-sunrgbd": "sunrgbd:NYUv2OfSunRGBD",
    "kitti": "kitti:Kitti",
    "kitti-lidar": "kitti:KittiLidar",
    "folder": "folder:RGBDFolder",
    "lines": "lines:AnnotationLines",
    "synthetic": "synthetic:Synthetic",
}
"""Name on the command line -> "module of this package:class"; in the order of the paper's appendix A, then ours."""


def source_names() -> tuple[str, ...]:
    """Return the names of all readers."""
    return tuple(SOURCES)


def source_class(name: str) -> type[Source]:
    """Return the class of a reader.

    Raises:
        ValueError: No reader has that name; the message lists those there are.
    """
    if name not in SOURCES:
        raise ValueError(f"There is no source {name!r}. There are: {', '.join(SOURCES)}.")
    module, _, attribute = SOURCES[name].partition(":")
    return getattr(import_module(f".{module}", __name__), attribute)


def open_source(name: str, root: str | Path, **options: Any) -> Source:
    """Open a dataset by the name of its reader and the folder of its download.

    Args:
        name: One of `source_names()`.
        root: Folder of the download.
        options: Other arguments of the reader, such as `depth_scale` of "folder".

    Raises:
        ValueError: No reader has that name, or it does not take an option.
        SourceError: The root lacks the layout of that dataset.
    """
    reader = source_class(name)
    parameters = signature(reader).parameters
    takes = [option for option in parameters if option != "root"]
    unknown = [option for option in options if option not in takes]
    if unknown and not any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values()):
        raise ValueError(
            f"The source {name!r} does not take {', '.join(unknown)}; it takes {', '.join(takes) or 'none'}."
        )
    return reader(root, **options)


__all__ = ["SOURCES", "open_source", "source_class", "source_names"]
