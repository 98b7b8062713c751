"""ScanNet++: iPhone frames with the depth of the phone's lidar."""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterable
from pathlib import Path

from .files import downloaded_scenes, expect_folders, pinhole, read_depth_png, read_image, read_split_list
from .frames import Frame, FrameError, FrameRef, Intrinsics, Source
from .projection import from_opencv

_FRAME = re.compile(r"frame_(\d+)\.jpg")
_TOOLKIT = "The dataset's toolkit extracts the images and the depth: python -m iphone.prepare_iphone_data."


class ScanNetPP(Source):
    """ScanNet++ as downloaded, with the iPhone streams extracted by the official toolkit.

    The toolkit is `iphone/prepare_iphone_data.py` of github.com/scannetpp/scannetpp:

        splits/nvs_sem_train.txt, nvs_sem_val.txt
        data/<scene>/iphone/rgb/frame_000000.jpg        1920x1440
        data/<scene>/iphone/depth/frame_000000.png      256x192, uint16 millimetres, 0 where there is none
        data/<scene>/iphone/pose_intrinsic_imu.json     "frame_000000": {"intrinsic": 3x3 of the 1920x1440 image, ...}

    `train` is nvs_sem_train, `test` is nvs_sem_val (the official test scenes withhold their depth). The frames are
    those that were extracted to `rgb/`, at any frame rate.
    """

    name = "scannetpp"
    title = "ScanNet++"
    depth_range = (0.001, 10.0)
    licence = "ScanNet++ terms of use, research only"
    homepage = "https://scannetpp.mlsg.cit.tum.de/scannetpp/"

    def __init__(self, root: str | Path):
        super().__init__(root)
        expect_folders(self, "data", "splits")

    def _frames(self, split: str) -> Iterable[FrameRef]:
        official = "nvs_sem_train" if split == "train" else "nvs_sem_val"
        scenes = read_split_list(self, self.root / "splits" / f"{official}.txt")
        scenes = downloaded_scenes(self, scenes, lambda scene: self._iphone(scene) / "rgb", _TOOLKIT)
        return [
            FrameRef(f"{scene}/{path.stem}", scene=scene, order=int(match.group(1)))
            for scene in scenes
            for path in (self._iphone(scene) / "rgb").iterdir()
            if (match := _FRAME.fullmatch(path.name))
        ]

    def read(self, ref: FrameRef) -> Frame:
        """Read one frame, see [`Source.read`]."""
        folder, stem = self._iphone(ref.scene), ref.id.rpartition("/")[2]
        image, image_size = read_image(folder / "rgb" / f"{stem}.jpg")
        depth = read_depth_png(folder / "depth" / f"{stem}.png")
        intrinsics = _intrinsics(folder / "pose_intrinsic_imu.json", stem)
        return Frame(ref, image, image_size, depth, 1000.0, intrinsics)

    def _iphone(self, scene: str) -> Path:
        return self.root / "data" / scene / "iphone"


def _intrinsics(path: Path, stem: str) -> Intrinsics:
    """Return the intrinsics of one frame, without parsing the thousands of others in the file."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            start = text.find(f'"{stem}"'.encode())
            if start < 0:
                raise FrameError(f"{path}: has no entry {stem!r}.")
            end = text.find(b'"frame_', start + 1)
            entry = text[start : len(text) if end < 0 else end].decode()
        value, _ = json.JSONDecoder().raw_decode(entry, entry.index("{"))
        return from_opencv(pinhole(value["intrinsic"], path))
    except FileNotFoundError:
        raise FrameError(f"{path}: no such file.") from None
    except (KeyError, TypeError):
        raise FrameError(f'{path}: the entry {stem!r} has no "intrinsic".') from None
    except (OSError, ValueError) as error:
        raise FrameError(f"{path}: the entry {stem!r} cannot be read, the file may be truncated: {error}.") from error
