"""Images of one chunk of the plan, read from files, object stores and rows of tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..inputs import is_url
from ..processing.camera_depthvlm import cameras_per_image
from ..processing.images_depthvlm import require_file
from .sources import Columns, Entry

_OPENED = ("http", "https", "data", "file")  # schemes that `open_image` reads itself


@dataclass
class Item:
    """One image that is to be predicted.

    Attributes:
        id: Its name: from the table's column of names, else of its file, else of its row.
        source: Path or URL of its file; of a row, `TABLE#ROW`.
        image: What `open_image` takes; None if it cannot be read.
        camera: Its own `focal_length`, `fov` or `intrinsics`.
        problem: The reason why it cannot be read.
    """

    id: str
    source: str
    image: Any = None
    camera: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None


def read_items(entries: Sequence[Entry], columns: Columns | None) -> list[Item]:
    """Return the images of consecutive entries, in order; one that cannot be read has a `problem`.

    Files on this machine are named, not read. Those of an object store are fetched together.

    Args:
        entries: Image files, and rows of tables.
        columns: Columns of the tables.
    """
    items: list[Item] = []
    for entry in entries:
        if entry.first < 0:
            items.append(_of_file(entry.location))
        elif columns is None:
            raise ValueError(f"{entry.location} is a table, and its columns are not given.")
        else:
            items += _of_rows(entry, columns)
    _fetch(items)
    return items


def _of_file(location: str) -> Item:
    name = location.rstrip("/").rpartition("/")[2] if is_url(location) else Path(location).name
    item = Item(name, location, location if is_url(location) else Path(location))
    if isinstance(item.image, Path):
        try:
            require_file(item.image)
        except (OSError, ValueError) as error:
            item.image, item.problem = None, str(error)
    return item


def _of_rows(entry: Entry, columns: Columns) -> list[Item]:
    return [
        _of_row(row, f"{entry.location}#{entry.first + offset}", columns)
        for offset, row in enumerate(_rows(entry, columns))
    ]


def _rows(entry: Entry, columns: Columns) -> list[dict[str, Any]]:
    """Return rows of a table, reading the row groups that hold them."""
    wanted, begin = list[pa.Table](), 0
    with fsspec.open(entry.location, "rb") as file, pq.ParquetFile(file) as table:
        for group in range(table.num_row_groups):
            rows = table.metadata.row_group(group).num_rows
            low, high = max(entry.first, begin), min(entry.first + entry.rows, begin + rows)
            if low < high:
                wanted.append(table.read_row_group(group, columns=columns.names).slice(low - begin, high - low))
            begin += rows
    return pa.concat_tables(wanted).to_pylist()


def _of_row(row: Mapping[str, Any], source: str, columns: Columns) -> Item:
    image = row[columns.image]
    if isinstance(image, Mapping) and image.get("bytes") is None:
        image = image.get("path")
    elif isinstance(image, Mapping):
        image = {"bytes": image["bytes"], "path": image.get("path")}
    name = image.get("path") if isinstance(image, Mapping) else image if isinstance(image, str) else None
    name = row[columns.id] if columns.id and row[columns.id] is not None else name
    item = Item(str(source.rpartition("/")[2] if name is None else name), source)
    if image is None:
        item.problem = "its row holds no image."
        return item
    if isinstance(image, str):
        image = _beside(image, source)
    try:
        item.camera = _camera(row, columns)
        item.image = {"bytes": image, "path": None} if isinstance(image, bytes) else image
    except ValueError as error:
        item.problem = str(error)
    return item


def _beside(name: str, source: str) -> str | Path:
    """Return the place of an image that a row names: relative to its table."""
    folder = source.rpartition("/")[0]
    if is_url(name):
        return name
    return f"{folder}/{name}" if is_url(folder) and not name.startswith("/") else Path(folder) / name


def _camera(row: Mapping[str, Any], columns: Columns) -> dict[str, Any]:
    given = {name: row[name] for name in columns.cameras if row[name] is not None}
    if len(given) > 1:
        raise ValueError(f"its row gives {' and '.join(given)}, which both name the camera: leave all but one empty.")
    if "intrinsics" in given:
        matrix = np.asarray(given["intrinsics"], dtype=np.float64)
        given["intrinsics"] = matrix.reshape(3, 3) if matrix.size == 9 else matrix
    checked = cameras_per_image(1, **{name: [value] for name, value in given.items()})
    return {name: checked[name][0] for name in given}


def _fetch(items: Sequence[Item]) -> None:
    """Replace the URLs of object stores by their bytes; `open_image` fetches the others."""
    by_system: dict[str, list[Item]] = {}
    for item in items:
        if isinstance(item.image, str) and (scheme := item.image.partition(":")[0].lower()) not in _OPENED:
            by_system.setdefault(scheme, []).append(item)
    for group in by_system.values():
        try:
            system = fsspec.core.url_to_fs(group[0].image)[0]
            paths = [system._strip_protocol(item.image) for item in group]
            contents = system.cat(paths, on_error="return")
        except Exception as error:  # whatever a store's client raises
            contents, paths = dict.fromkeys(range(len(group)), error), list(range(len(group)))
        for item, path in zip(group, paths, strict=True):
            content = contents[path]
            if isinstance(content, Exception):
                item.image, item.problem = None, f"cannot be fetched: {type(content).__name__}: {content}"
            else:
                item.image = {"bytes": content, "path": item.image}
