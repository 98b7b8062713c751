"""Sources of images: files, folders, patterns and parquet tables, on disks, in object stores and on the Hub."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from glob import has_magic

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from ..inputs import is_url
from ..processing.images_depthvlm import raster_suffixes

CAMERA_COLUMNS = ("focal_length", "fov", "intrinsics")
_ID_COLUMNS = ("id", "image_id")
_TABLE = ".parquet"
_FETCHED = ("http", "https", "data")  # URLs of single images, which `open_image` reads
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_FOOTERS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Entry:
    """One image file, or consecutive rows of a parquet table.

    Attributes:
        location: Path or URL of the file.
        first: Number of the first row in its table; -1 for an image file.
        rows: Number of images.
    """

    location: str
    first: int = -1
    rows: int = 1


@dataclass(frozen=True)
class Columns:
    """Columns of a table that are read.

    Attributes:
        image: Images: bytes, `{"bytes", "path"}` as `datasets` writes them, or paths and URLs.
        id: Names of the images, or None.
        cameras: Those of `focal_length`, `fov` and `intrinsics` that the table has.
    """

    image: str
    id: str | None = None
    cameras: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Names of all columns that are read."""
        return [self.image, *([self.id] if self.id else []), *self.cameras]


@dataclass
class Listing:
    """The images of a source, in an order that depends on their names alone.

    Args:
        arguments: Image files, parquet tables, folders, patterns, URLs that fsspec opens, and data sets on the Hub.
        image_column: The column with images of tables; None: the only one that can hold some, or `image`.
        split: The split of data sets on the Hub; None: all.

    Attributes:
        columns: Columns of the tables, known once the listing has been read; None without tables.
        passed_over: Number of files in folders that are neither images nor tables.
    """

    arguments: Sequence[str]
    image_column: str | None = None
    split: str | None = None
    columns: Columns | None = None
    passed_over: int = 0
    _seen: set[int] = field(default_factory=set)

    def __iter__(self) -> Iterator[Entry]:
        """Yield the entries. The names of one folder or pattern are in memory at a time.

        Raises:
            ValueError: A folder or a pattern holds nothing to predict, or a table no column of images.
            OSError: Something cannot be listed.
        """
        for argument in self.arguments:
            for entry in self._entries(argument):
                if len(self.arguments) > 1:  # a file named twice is predicted once
                    key = hash((entry.location, entry.first))
                    if key in self._seen:
                        continue
                    self._seen.add(key)
                yield entry

    def _entries(self, argument: str) -> Iterator[Entry]:
        if argument.partition(":")[0].lower() in _FETCHED:
            yield Entry(argument)
            return
        if not is_url(argument) and not os.path.exists(argument) and is_data_set(argument):
            names: Iterable[str] = data_set_files(argument, self.split)
            locate: Callable[[str], str] = str
        else:
            names, locate = self._files(argument)
        tables = []
        for name in names:
            if name.lower().endswith(_TABLE):
                tables.append(locate(name))
            else:
                yield Entry(locate(name))
        with ThreadPoolExecutor(_FOOTERS_AT_ONCE, "depthvlm-footers") as threads:
            for location, rows in zip(tables, threads.map(self._rows_of, tables), strict=True):
                if rows:
                    yield Entry(location, 0, rows)

    def _files(self, argument: str) -> tuple[list[str], Callable[[str], str]]:
        """Return the sorted names and their way to locations of one argument."""
        fs, path = fsspec.core.url_to_fs(argument)
        locate = str if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol
        if has_magic(path) and not fs.exists(path):
            names = sorted(name for name in fs.glob(path) if self._is_wanted(name))
        elif fs.isdir(path):
            names = sorted(name for name in fs.ls(path, detail=False) if self._is_wanted(name))
            if {name.lower().endswith(_TABLE) for name in names} == {True, False}:
                raise ValueError(
                    f"{argument} holds images and parquet tables: name those to predict, such as '{argument}/*.jpg'."
                )
        else:
            return [path], locate
        if not names:
            raise ValueError(
                f"{argument}: no images and no parquet tables there. Give files, folders that hold some (not in "
                "sub-folders), patterns like 'a/**/*.jpg', or a data set on the Hub (owner/name)."
            )
        return names, locate

    def _is_wanted(self, name: str) -> bool:
        base = name.rstrip("/").rpartition("/")[2]
        wanted = not base.startswith(".") and base.lower().endswith((*raster_suffixes(), _TABLE))
        self.passed_over += not wanted
        return wanted

    def _rows_of(self, location: str) -> int:
        """Return the number of rows of a table; check that it has the columns of the others."""
        with fsspec.open(location, "rb") as file, pq.ParquetFile(file) as table:
            schema, rows = table.schema_arrow, table.metadata.num_rows
        columns = table_columns(schema, self.image_column, location)
        self.columns = self.columns or columns
        if columns != self.columns:
            raise ValueError(
                f"{location} has other columns than the tables before it: {', '.join(columns.names)} in place of "
                f"{', '.join(self.columns.names)}. Predict them in two runs."
            )
        return rows


def table_columns(schema: pa.Schema, image_column: str | None, name: str) -> Columns:
    """Return the columns of a table that are read.

    Args:
        schema: The table's.
        image_column: Its column with images; None: `image` if that can hold some, else the only one that can.
        name: Its name in messages.

    Raises:
        ValueError: There is no such column, or no such choice.
    """
    names = schema.names
    if image_column is None:
        can = [one.name for one in schema if _holds_images(one.type)]
        if len(can) != 1 and "image" not in can:
            raise ValueError(
                f"{name} has {'several columns' if can else 'no column'} of image bytes or {{bytes, path}} "
                f"({', '.join(can or names)}): name it with --image-column."
            )
        image_column = "image" if "image" in can else can[0]
    elif image_column not in names:
        raise ValueError(f"{name} has no column {image_column!r} (--image-column), but {', '.join(names)}.")
    identity = next((one for one in _ID_COLUMNS if one in names), None)
    return Columns(image_column, identity, tuple(one for one in CAMERA_COLUMNS if one in names))


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def is_data_set(argument: str) -> bool:
    """Return whether an argument that is no local file has the form of a data set's name on the Hub."""
    return bool(_HUB_NAME.fullmatch(argument)) and not argument.lower().endswith((*raster_suffixes(), _TABLE))


def data_set_files(name: str, split: str | None) -> list[str]:
    """Return the URLs of a data set's files on the Hub, at one commit, as `datasets` finds them.

    Args:
        name: `owner/name`, or `owner/name@revision`.
        split: Its split; None: all, in the order of the data set's card.

    Raises:
        ValueError: It has no such split, or consists of files other than parquet tables and images.
        OSError: There is no such data set, or the Hub cannot be reached.
    """
    from datasets import load_dataset_builder

    repository, _, revision = name.partition("@")
    files = load_dataset_builder(repository, revision=revision or None).config.data_files or {}
    if split is not None and split not in files:
        raise ValueError(f"The data set {name} has no split {split!r} (--split), but {', '.join(files)}.")
    found = [str(file) for one in ([split] if split else files) for file in files[one]]
    others = [file for file in found if not file.lower().endswith((*raster_suffixes(), _TABLE))]
    if others or not found:
        raise ValueError(
            f"The data set {name} is not one of parquet tables or image files ({(others or ['no files'])[0]}). Write "
            "it as tables first: Dataset.to_parquet."
        )
    return found
