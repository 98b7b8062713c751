"""Puts single sample files of datasets, as public repositories hold them, into those datasets' own download layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

SOURCES = ("ddad", "scannetpp", "sunrgbd", "ibims1", "nyuv2", "kitti", "nuscenes")
"""Those that there are samples of with images and depth."""

_DRIVE = "2011_09_26_drive_0000_sync"  # the samples do not say of which drive they are


def arrange(samples: Path, source: str, out: Path) -> tuple[Path, str]:
    """
    The samples of a source in its official layout: its root, and the split that they are under.

    Args:
        samples: folder with one folder a source.
        source: one of `SOURCES`.
        out: an empty folder, used where files have to be brought into place.
    """
    folder = samples / source
    if source in ("ddad", "nuscenes"):  # they lie in it already; nuScenes' one scene is of its train split
        return folder, "test" if source == "ddad" else "train"
    {"scannetpp": _scannetpp, "sunrgbd": _sunrgbd, "ibims1": _ibims1, "nyuv2": _nyuv2, "kitti": _kitti}[source](
        folder, out
    )
    return out, "test"


def _scannetpp(folder: Path, out: Path) -> None:
    """The lines give fx alone: fy = fx, and the principal point in the middle of 1920x1440 pixels."""
    cameras: dict[str, dict[str, Any]] = {}
    for row in _lines(folder / "examples.jsonl"):
        scene = row["scene_id"]
        stem = Path(row["image"]).stem.removeprefix(f"{scene}_")
        iphone = out / "data" / scene / "iphone"
        _link(folder / "rgb" / row["image"], iphone / "rgb" / f"{stem}.jpg")
        _link(folder / "depth" / row["depth_path"], iphone / "depth" / f"{stem}.png")
        matrix = [[row["original_fx"], 0, 959.5], [0, row["original_fx"], 719.5], [0, 0, 1]]
        cameras.setdefault(scene, {})[stem] = {"intrinsic": matrix}
    for scene, entries in cameras.items():
        _write(out / "data" / scene / "iphone" / "pose_intrinsic_imu.json", json.dumps(entries))
    _write(out / "splits" / "nvs_sem_val.txt", "\n".join(cameras))


def _sunrgbd(folder: Path, out: Path) -> None:
    """The two with intrinsics."""
    places = {
        "2014-12-18_11-31-54_260595134347": "kv2/align_kv2/2014-12-18_11-31-54_260595134347",
        "img_0063": "kv1/b3dodata/img_0063",
    }
    for name, place in places.items():
        _link(folder / name, out / "SUNRGBD" / place)
    split = out / "SUNRGBDtoolbox" / "traintestSUNRGBD" / "allsplit.mat"
    split.parent.mkdir(parents=True)
    cells = np.array([f"/n/fs/sun3d/data/SUNRGBD/{place}" for place in places.values()], dtype=object)
    savemat(split, {"alltest": cells})


def _ibims1(folder: Path, out: Path) -> None:
    """A hundred points an image are its depth map: elsewhere it has none."""
    raw = out / "ibims1_core_raw"
    names = []
    for row in _lines(folder / "ibims1_val.jsonl"):
        name = Path(row["image"]).stem
        names.append(name)
        depth = np.zeros((480, 640), dtype=np.uint16)
        columns, rows = np.transpose(row["pixel_coords"])
        depth[rows, columns] = np.rint(np.array(row["depth"]) * 65535 / 50)
        _link(folder / row["image"], raw / "rgb" / f"{name}.png")
        _picture(depth, raw / "depth" / f"{name}.png")
        for mask in ("mask_invalid", "mask_transp"):
            _picture(np.full((480, 640), 255, dtype=np.uint8), raw / mask / f"{name}.png")
        _write(raw / "calib" / f"{name}.txt", ",".join(map(str, row["intrinsics"][:4])))
    _write(out / "imagelist.txt", "\n".join(names))


def _nyuv2(folder: Path, out: Path) -> None:
    files = json.loads((folder / "nyu_demo" / "test_annotations.json").read_text())["files"]
    images, depths = [], []
    for entry in files:
        with Image.open(folder / "nyu_demo" / "rgb" / Path(entry["rgb"]).name) as image:
            images.append(np.asarray(image.convert("RGB")))
        with Image.open(folder / "nyu_demo" / "depth" / Path(entry["depth"]).name) as image:
            depths.append(np.asarray(image) / entry["depth_scale"])
    out.mkdir(parents=True, exist_ok=True)
    with h5py.File(out / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"] = np.stack(images).transpose(0, 3, 2, 1)
        file["rawDepths"] = (
            np.stack(depths).transpose(0, 2, 1).astype(np.float32)
        )  # the samples have the sensor's holes
        file["#refs#/scene"] = np.array([[ord(letter)] for letter in "sample_0001"], dtype=np.uint16)
        file["scenes"] = np.array([[file["#refs#/scene"].ref] * len(files)], dtype=h5py.ref_dtype)
    savemat(out / "splits.mat", {"testNdxs": [[number] for number in range(1, len(files) + 1)]})


def _kitti(folder: Path, out: Path) -> None:
    for entry in json.loads((folder / "kitti_demo" / "test_annotations.json").read_text())["files"]:
        name = Path(entry["depth"]).name
        _link(folder / "kitti_demo" / "depth" / name, out / f"val/{_DRIVE}/proj_depth/groundtruth/image_02" / name)
        _link(folder / "kitti_demo" / "rgb" / name, out / f"{_DRIVE[:10]}/{_DRIVE}/image_02/data" / name)
        fx, fy, cx, cy = entry["cam_in"]
    _write(out / _DRIVE[:10] / "calib_cam_to_cam.txt", f"P_rect_02: {fx} 0 {cx} 0 0 {fy} {cy} 0 0 0 1 0\n")


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _link(there: Path, here: Path) -> None:
    here.parent.mkdir(parents=True, exist_ok=True)
    here.symlink_to(there.resolve())


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _picture(values: NDArray[Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
