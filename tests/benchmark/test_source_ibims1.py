"""iBims-1's raw archive in its own layout, with its masks; real images with dense maps made of their points."""

import json

import numpy as np
import pytest
from depthvlm.benchmark.sources.ibims1 import IBims1
from PIL import Image
from toy_source_files import (
    check_frame,
    frame_of,
    link,
    no_index,
    refuses,
    spoils,
    write_depth,
    write_image,
    write_text,
)


def write_mask(path, rows: list[list[int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("1", (len(rows[0]), len(rows)))
    for y, row in enumerate(rows):
        for x, value in enumerate(row):
            picture.putpixel((x, y), 255 * value)
    picture.save(path)


def write_sample(folder, name: str) -> None:
    write_image(folder / f"rgb/{name}.png", (4, 2))
    write_depth(folder / f"depth/{name}.png", [[0, 13107, 26214, 65535], [1, 2, 1311, 32768]])
    write_mask(folder / f"mask_invalid/{name}.png", [[1, 1, 0, 1], [1, 1, 1, 1]])
    write_mask(folder / f"mask_transp/{name}.png", [[1, 1, 1, 1], [1, 0, 1, 1]])
    write_text(folder / f"calib/{name}.txt", "559.62,558.14,361.87,241.99\n")


@pytest.fixture
def root(tmp_path):
    for name in ("corridor_01", "corridor_05", "office_03"):
        write_sample(tmp_path / "ibims1_core_raw", name)
    write_text(tmp_path / "imagelist.txt", "corridor_05\r\ncorridor_01\r\noffice_03\r\n")
    return tmp_path


def test_index(root):
    refs = IBims1(root).index("test")
    expected = [("corridor_01", "corridor", 1), ("corridor_05", "corridor", 5), ("office_03", "office", 3)]
    assert [(ref.id, ref.scene, ref.order) for ref in refs] == expected
    # The archive itself may be the root.
    (root / "imagelist.txt").rename(root / "ibims1_core_raw/imagelist.txt")
    for folder in (root, root / "ibims1_core_raw"):
        assert frame_of(IBims1(folder), 2).ref.id == "office_03"


def test_a_frame_and_its_masks(root):
    """13107 is a fifth of 65535, so 10 m."""
    source = IBims1(root)
    frame = frame_of(source)
    image = (root / "ibims1_core_raw/rgb/corridor_01.png").read_bytes()
    check_frame(frame, image, (4, 2), (2, 4), (559.62, 558.14, 362.37, 242.49))
    assert frame.depth.tolist() == [[0, 13107, 26214, 65535], [1, 2, 1311, 32768]]
    assert frame.mask.tolist() == [[True, True, False, True], [True, False, True, True]]
    metres = [[0, 10, 0, 50], [50 / 65535, 0, 1311 * 50 / 65535, 32768 * 50 / 65535]]
    np.testing.assert_allclose(frame.metres(), metres, rtol=1e-6)
    assert np.count_nonzero(frame.metres(source.depth_range)) == 2, "50 m, 25.0004 m and 0.8 mm are out of range"


def test_roots_and_lists(root):
    no_index("has the splits test, not 'train'", IBims1, root, "train")
    no_index(r"expected the folder rgb/ in .*ibims1_core_mat\.zip is not read", IBims1, root / "ibims1_core_raw/rgb")
    (root / "imagelist.txt").write_text("\n")
    no_index(r"imagelist\.txt is empty", IBims1, root)
    (root / "imagelist.txt").unlink()
    no_index(r"imagelist\.txt is not in .*beside ibims1_core_raw\.zip", IBims1, root)


def test_files_of_a_frame(root):
    folder, transparent = root / "ibims1_core_raw", "mask_transp/corridor_01.png"
    write_mask(folder / transparent, [[1, 1], [1, 1]])
    refuses(IBims1(root), rf"{transparent}.*mask of \(2, 2\), but the depth map is \(4, 2\)")
    source = IBims1(root)
    ref = source.index("test")[0]
    spoils(
        lambda: source.read(ref),
        folder,
        (transparent, b"", f"{transparent}: the file is empty"),
        ("mask_invalid/corridor_01.png", None, "mask_invalid/corridor_01.png: no such file"),
        ("depth/corridor_01.png", 0.5, "depth/corridor_01.png.*truncated"),
        ("rgb/corridor_01.png", None, "rgb/corridor_01.png: no such file"),
    )
    write_sample(folder, "corridor_01")
    spoils(lambda: source.read(ref), folder, ("calib/corridor_01.txt", "559.62,558.14", "calib/corridor_01.txt"))


@pytest.mark.real_data
def test_real_images_and_points(shared, tmp_path):
    """25 images with 100 points each: 0.631 / 2.789 / 16.345 m, fx from 550.4 to 626.2."""
    rows = [json.loads(line) for line in (shared / "data/ibims1/ibims1_val.jsonl").read_text().splitlines()]
    folder = tmp_path / "ibims1_core_raw"
    for row in rows:
        name = row["image"].removeprefix("rgb/").removesuffix(".png")
        columns, lines = np.transpose(row["pixel_coords"])
        raw = np.zeros((480, 640))
        raw[lines, columns] = np.round(np.array(row["depth"]) * 65535 / 50)
        link(shared / "data/ibims1" / row["image"], folder / f"rgb/{name}.png")
        write_depth(folder / f"depth/{name}.png", raw)
        for mask in ("mask_invalid", "mask_transp"):
            (folder / mask).mkdir(exist_ok=True)
            Image.new("1", (640, 480), 1).save(folder / mask / f"{name}.png")
        write_text(folder / f"calib/{name}.txt", ",".join(str(number) for number in row["intrinsics"][:4]))
    write_text(tmp_path / "imagelist.txt", "\n".join(sorted(path.stem for path in (folder / "rgb").iterdir())))

    source = IBims1(tmp_path)
    frames = {frame.ref.id: frame for frame in map(source.read, source.index("test"))}
    assert len(frames) == 25
    metres = []
    for row in rows:
        frame = frames[row["image"].removeprefix("rgb/").removesuffix(".png")]
        check_frame(frame, (shared / "data/ibims1" / row["image"]).read_bytes(), (640, 480), (480, 640))
        fx, fy, cx, cy = row["intrinsics"][:4]
        assert frame.intrinsics == (fx, fy, cx + 0.5, cy + 0.5)
        columns, lines = np.transpose(row["pixel_coords"])
        metres.append(frame.metres(source.depth_range)[lines, columns])
        np.testing.assert_allclose(metres[-1], row["depth"], atol=0.5 * 50 / 65535 + 1e-6)
    every = np.concatenate(metres)
    assert (every.min(), np.median(every), every.max()) == pytest.approx((0.631, 2.789, 16.345), abs=1e-3)
    focal_lengths = [frame.intrinsics[0] for frame in frames.values()]
    assert (min(focal_lengths), max(focal_lengths)) == pytest.approx((550.4, 626.2), abs=0.05)
