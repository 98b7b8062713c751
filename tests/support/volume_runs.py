"""Runs of `depthvlm.volume` without a cluster: the stages called one after the other, as Ray Data calls them."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from toy_images import noise

from depthvlm.volume.run import Request, Run
from depthvlm.volume.stages import Job, Predict, encode, prepare, write

CAMERA = {"focal_length": None, "fov": 60.0, "intrinsics": None}


def write_pictures(folder: Path, count: int, *, scale: int = 1) -> list[Path]:
    """Write pictures of three sizes as JPEG."""
    folder.mkdir(parents=True)
    paths = [folder / f"{seed:03d}.jpg" for seed in range(count)]
    for seed, path in enumerate(paths):
        height, width = [(96, 64), (64, 96), (80, 80)][seed % 3]
        Image.fromarray(noise(height * scale, width * scale, seed=seed)).save(path, quality=95)
    return paths


def request(sources: list, out: object, **options: object) -> Request:
    """A request for nano on the CPU, one image at a time, eight a shard."""
    fixed = {"model": "depthvlm-nano", "camera": CAMERA, "device": "cpu", "batch_size": 1, "shard_rows": 8}
    return Request([str(one) for one in sources], str(out), **(fixed | options))


def batches(rows: list[dict]) -> list[dict]:
    """Rows as Ray Data hands them over with `batch_size=1`."""
    return [{name: [value] for name, value in row.items()} for row in rows]


def write_all(run: Run) -> None:
    """Do every missing shard in this process."""
    job: Job = run.job
    predict = Predict(job)
    plan = pq.read_table(run.out.fs.open(run.out.path(".depthvlm/plan.parquet"))).to_pylist()
    for shard in sorted({chunk["shard"] for chunk in plan} - set(run.done.records)):
        rows = []
        for chunk in batches([one for one in plan if one["shard"] == shard]):
            for prepared in prepare(chunk, job):
                for predicted in predict(prepared):
                    rows += [{name: value[0] for name, value in row.items()} for row in encode(predicted, job)]
        rows.reverse()  # they arrive in any order
        run.done.add(json.loads(write(pa.Table.from_pylist(rows), job).column("record")[0].as_py()))
    run.save()


def depth_rows(out: Path) -> dict[str, dict]:
    """The rows of all shards by the images' ids."""
    tables = [pq.read_table(path) for path in sorted((out / "data").glob("*.parquet"))]
    return {row["id"]: row for row in pa.concat_tables(tables).to_pylist()}


def pixels(row: dict) -> np.ndarray:
    """The 16-bit values of a row's depth."""
    return np.asarray(Image.open(io.BytesIO(row["depth"]["bytes"]))).astype(np.uint16)
