"""Pictures of the worst images of a report: the image of a build, with its points, true metres and answers."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from ..build.inspection import draw_labels
from .analysis import PointRow

PICTURE_WIDTH = 420  # pixels
_RIGHT, _WRONG, _FAILED = "#1a9850", "#d73027", "#777777"


def build_images(folders: Iterable[str | Path], wanted: Mapping[str, set[str]]) -> dict[tuple[str, str], bytes]:
    """
    Encoded images out of builds; only the row groups that hold one are read.

    Args:
        folders: of `depthvlm bench build`.
        wanted: the data hash of a result to the ids of its images. A build of other data is passed over.

    Returns:
        Data hash and id to the bytes of the file, of those that are there.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no build is finished there, or a shard is not what the manifest says.
        ImportError: pyarrow is missing.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise ImportError('Pictures out of a build need pyarrow: pip install "depthvlm[bench]"') from None
    from ..build.shard_writer import BuildError
    from ..build.shards import build_hash, finished_builds, shard_paths

    shards: list[tuple[str, Path]] = []
    try:
        for folder in folders:
            for entry in finished_builds(folder).values():
                shards += [(build_hash(entry), path) for path in shard_paths(folder, entry)]
    except BuildError as error:
        raise ValueError(str(error)) from None
    found: dict[tuple[str, str], bytes] = {}
    for digest, path in shards:
        ids = {name for name in wanted.get(digest, set()) if (digest, name) not in found}
        if not ids:
            continue
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                names = file.read_row_group(group, ["id"])["id"].to_pylist()
                places = [place for place, name in enumerate(names) if name in ids]
                if places:
                    for row in file.read_row_group(group, ["id", "image"]).take(places).to_pylist():
                        found[digest, row["id"]] = row["image"]["bytes"]
    return found


def picture_uri(data: bytes, points: Sequence[PointRow]) -> str:
    """
    A JPEG as a data URI: the image, `PICTURE_WIDTH` wide, with its points: green within 25 %, red beyond, a grey cross
    for a failure.

    Raises:
        OSError: the bytes are no image that Pillow can read.
    """
    from ...processing.images_depthvlm import open_raster

    with open_raster(data) as opened:
        # Small ones are enlarged, or their points would lie over each other.
        size = (PICTURE_WIDTH, max(1, round(opened.height * PICTURE_WIDTH / opened.width)))
        across, down = size[0] / opened.width, size[1] / opened.height
        picture = opened.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(picture)
    places = [((point.place[0] + 0.5) * across - 0.5, (point.place[1] + 0.5) * down - 0.5) for point in points]
    for point, (x, y) in reversed(list(zip(points, places, strict=True))):
        if point.answer is None:
            for shift in (-1, 1):
                draw.line((x - 4, y - 4 * shift, x + 4, y + 4 * shift), fill="white", width=4)
            for shift in (-1, 1):
                draw.line((x - 4, y - 4 * shift, x + 4, y + 4 * shift), fill=_FAILED, width=2)
        else:
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=_RIGHT if point.right else _WRONG, outline="white")
    draw_labels(draw, places, [str(point.number) for point in points], size)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
