"""Camera files of the tools that people have, told apart by content: every number here is written by hand."""

import json
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from depthvlm.camera_files import read_camera, read_cameras

MATRIX = "[[70, 0, 41], [0, 71, 29], [0, 0, 1]]"
NUMBERS = [70, 71, 41, 29]
FROM_ZERO = [70, 71, 41.5, 29.5]  # where a file counts from the centre of the first pixel
SIZE = [80, 60]


def read(folder: Path, name: str, content: str | bytes, image: str | None = None):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_camera(path, image)


class TestOurs:
    @pytest.mark.parametrize(
        ("numbers", "name", "text"),
        [
            (NUMBERS, "k.json", MATRIX),
            (NUMBERS, "k.json", '{"K": [70, 0, 41, 0, 71, 29, 0, 0, 1]}'),
            (NUMBERS, "k.txt", "70 0 41\n0 71 29\n0 0 1"),
            (NUMBERS, "k.txt", "70 0 41 0 71 29 0 0 1"),
            (NUMBERS, "k.csv", "70,0,41\n0,71,29\n0,0,1"),
            (NUMBERS, "k.json", "[70, 71, 41, 29]"),
            (NUMBERS, "k.json", '{"camera": {"fx": 70, "fy": 71, "cx": 41, "cy": 29}}'),
            (NUMBERS, "k.txt", "70 71 41 29"),
            (NUMBERS, "k.dat", "70 71 41 29"),
            ([*NUMBERS, *SIZE], "k.json", '{"fx": 70, "fy": 71, "cx": 41, "cy": 29, "width": 80, "height": 60}'),
            ([*NUMBERS, *SIZE], "k.json", '{"width": 80, "height": 60, "K": ' + MATRIX + "}"),
            ([*NUMBERS, *SIZE], "k.json", "[70, 71, 41, 29, 80, 60]"),
            (
                [*FROM_ZERO, *SIZE],
                "o3d.json",
                '{"width": 80, "height": 60, "intrinsic_matrix": [70,0,0,0,71,0,41,29,1]}',
            ),
        ],
    )
    def test_numbers(self, tmp_path, numbers, name, text):
        lens = read(tmp_path, name, text)
        assert lens.numbers == numbers
        assert lens.is_pinhole

    def test_arrays(self, tmp_path):
        np.save(tmp_path / "k.npy", np.array(json.loads(MATRIX)))
        assert read_camera(tmp_path / "k.npy").numbers == NUMBERS

    def test_the_json_of_a_prediction(self, tmp_path):
        record = {
            "model": "depthvlm-nano",
            "width": 80,
            "height": 60,
            "text": None,
            "camera": {"width": 80, "height": 60},
        }
        record["camera"] |= {"fx": 70, "fy": 71, "cx": 41, "cy": 29}
        assert read(tmp_path, "room.json", json.dumps(record)).numbers == [*NUMBERS, *SIZE]

    @pytest.mark.parametrize(
        ("name", "text", "words"),
        [
            ("k.txt", "1 2 3", r"it holds an array of shape \(3,\)"),
            ("k.txt", "a b c d", "could not convert string to float: 'a'"),
            ("k.txt", "", "the file is empty"),
            ("k.npy", "x", "it is no array of NumPy"),
            ("k.json", '{"fx": 70}', "it lacks 'fy'"),
            ("k.json", "{", "Expecting property name"),
            ("k.json", '{"camera": null}', "it lacks 'fx'"),
            ("k.json", '{"fx": 70, "fy": 71, "cx": 41, "cy": 29, "width": 80}', "it lacks 'height'"),
            (
                "k.json",
                "[[70, 0, 41], [0, 71, 29], [41, 29, 1]]",
                "numbers both in its last row and in its last column",
            ),
            ("k.json", '{"intrinsics": [{"fx": 1}, {"fx": 2}]}', "it lists 2 cameras without the names of pictures"),
            ("k.json", "[[70, 9, 41], [0, 71, 29], [0, 0, 1]]", "without skew"),
            ("pose.txt", "1 0 0 2\n0 1 0 3\n0 0 1 4\n0 0 0 1", "holds a translation: it is a pose, not a camera"),
            ("k.bin", b"\x02\0\0\0\0\0\0\0abc", "neither text, nor an array of NumPy, nor COLMAP's cameras.bin"),
        ],
    )
    def test_what_holds_no_camera_is_refused_with_what_was_found(self, tmp_path, name, text, words):
        with pytest.raises(ValueError, match=rf"{name}: no camera can be read from it \(.*{words}.* Give a 3x3 or 4x4"):
            read(tmp_path, name, text)


ROS = """
image_width: 80
image_height: 60
camera_name: head
camera_matrix: {{rows: 3, cols: 3, data: [70., 0., 41., 0., 71., 29., 0., 0., 1.]}}
distortion_model: {model}
distortion_coefficients: {{rows: 1, cols: {count}, data: {values}}}
projection_matrix: {{rows: 3, cols: 4, data: [60, 0, 41, 0, 0, 61, 29, 0, 0, 0, 1, 0]}}
"""


class TestRos:
    @pytest.mark.parametrize(
        ("model", "values", "lens", "kept"),
        [
            ("plumb_bob", [-0.2, 0.05, 0.001, -0.002, 0.01], "opencv", (-0.2, 0.05, 0.001, -0.002, 0.01)),
            ("plumb_bob", [0.0] * 5, "opencv", (0.0,) * 5),
            ("rational_polynomial", [1, 2, 3e-3, 4e-3, 5, 6, 7, 8], "opencv", (1, 2, 3e-3, 4e-3, 5, 6, 7, 8)),
            ("equidistant", [0.1, -0.02, 0.003, 0.0], "fisheye", (0.1, -0.02, 0.003, 0.0)),
            ("equidistant", [0.0] * 4, "fisheye", (0.0,) * 4),
        ],
    )
    def test_models(self, tmp_path, model, values, lens, kept):
        read_lens = read(tmp_path, "head.yaml", ROS.format(model=model, count=len(values), values=values))
        assert read_lens.numbers == [*FROM_ZERO, *SIZE]
        assert (read_lens.model, read_lens.distortion) == (lens, kept)
        assert read_lens.is_pinhole == (not any(values) and lens == "opencv")

    def test_messages_of_ros_1_and_2(self, tmp_path):
        for names in ("DK", "dk"):
            text = f"""header:\n  frame_id: "c"\nheight: 60\nwidth: 80\ndistortion_model: "plumb_bob"
{names[0]}: [-0.2, 0.0, 0.0, 0.0, 0.0]\n{names[1]}: [70.0, 0.0, 41.0, 0.0, 71.0, 29.0, 0.0, 0.0, 1.0]"""
            lens = read(tmp_path, "info.txt", text)
            assert lens.numbers == [*FROM_ZERO, *SIZE]
            assert lens.distortion == (-0.2, 0, 0, 0)

    def test_other_models_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match="its lens model is 'double_sphere', which is not read; known are none, "):
            read(tmp_path, "head.yaml", ROS.format(model="double_sphere", count=2, values=[0.1, 0.2]))


class TestOpenCV:
    @pytest.mark.parametrize("name", ["cv.yaml", "cv.json"])
    def test_what_opencv_writes(self, tmp_path, name):
        file = cv2.FileStorage(str(tmp_path / name), cv2.FILE_STORAGE_WRITE)
        for key, value in {
            "image_width": 80,
            "image_height": 60,
            "camera_matrix": np.array(json.loads(MATRIX), float),
        }.items():
            file.write(key, value)
        file.write("distortion_coefficients", np.array([[-0.2, 1e-5, 0, 0, 0.01]]))
        file.release()
        lens = read_camera(tmp_path / name)
        assert lens.numbers == [*FROM_ZERO, *SIZE]
        assert (lens.model, lens.distortion) == ("opencv", (-0.2, 1e-5, 0, 0, 0.01))

    def test_four_coefficients_are_of_two_models(self, tmp_path):
        file = {"camera_matrix": json.loads(MATRIX), "distortion_coefficients": [[0.1], [0.2], [0.01], [0.02]]}
        with pytest.raises(ValueError, match="may be OpenCV's k1, k2, p1, p2 or a fisheye's k1 to k4: add"):
            read(tmp_path, "k.json", json.dumps(file))
        for model in ("fisheye", "opencv"):
            assert read(tmp_path, "k.json", json.dumps(file | {"distortion_model": model})).model == model
        assert read(tmp_path, "k.json", json.dumps(file | {"fisheye_model": 1})).model == "fisheye"


REALSENSE = {"width": 80, "height": 60, "ppx": 41, "ppy": 29, "fx": 70, "fy": 71}


class TestRealSense:
    @pytest.mark.parametrize(
        ("model", "coefficients", "lens"),
        [
            ("distortion.none", [0, 0, 0, 0, 0], "pinhole"),
            ("distortion.inverse_brown_conrady", [0, 0, 0, 0, 0], "opencv"),
            ("Brown Conrady", [0.1, 0, 0, 0, 0.2], "opencv"),
            ("Kannala Brandt4", [0.1, 0.2, 0.3, 0.4, 0], "fisheye"),
            (5, [0.1, 0.2, 0.3, 0.4, 0], "fisheye"),
        ],
    )
    def test_json(self, tmp_path, model, coefficients, lens):
        found = read(tmp_path, "rs.json", json.dumps(REALSENSE | {"model": model, "coeffs": coefficients}))
        assert found.numbers == [*FROM_ZERO, *SIZE]
        assert found.model == lens
        assert found.is_pinhole == (not any(coefficients))

    def test_the_tools_lines(self, tmp_path):
        block = """ Intrinsic of "Color" / 80x60 / {RGB8}
  Width:      \t80\n  Height:     \t60\n  PPX:        \t41\n  PPY:        \t29\n  Fx:         \t70
  Fy:         \t71\n  Distortion: \tBrown Conrady\n  Coeffs:     \t0.1  \t0  \t0  \t0  \t0.2\n"""
        assert read(tmp_path, "rs.txt", block).numbers == [*FROM_ZERO, *SIZE]
        assert read(tmp_path, "rs.txt", block).distortion == (0.1, 0, 0, 0, 0.2)
        with pytest.raises(ValueError, match="it lists the cameras of 2 streams: keep the one of your picture's"):
            read(tmp_path, "rs.txt", block + block)

    def test_its_variants_are_said(self, tmp_path):
        with pytest.warns(UserWarning, match="'inverse_brown_conrady' is read as OpenCV's"):
            read(
                tmp_path,
                "rs.json",
                json.dumps(REALSENSE | {"model": "distortion.inverse_brown_conrady", "coeffs": [0.1, 0, 0, 0, 0]}),
            )


class TestPhones:
    def test_record3d_and_arkit_write_columns(self, tmp_path):
        record = {"K": [70, 0, 0, 0, 71, 0, 41, 29, 1], "w": 80, "h": 60, "dw": 20, "dh": 15, "fps": 60, "poses": []}
        assert read(tmp_path, "metadata", json.dumps(record)).numbers == [*NUMBERS, *SIZE]
        columns = {"intrinsics": [[70, 0, 0], [0, 71, 0], [41, 29, 1]], "cameraPoseARFrame": [1.0] * 16}
        assert read(tmp_path, "frame.json", json.dumps(columns)).numbers == NUMBERS
        rows = {"intrinsics": [70, 0, 41, 0, 71, 29, 0, 0, 1]}
        assert read(tmp_path, "frame.json", json.dumps(rows)).numbers == NUMBERS


COLMAP_CAMERAS = """# Camera list with one line of data per camera:
#   CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]
# Number of cameras: 8
1 SIMPLE_PINHOLE 80 60 70 41 29
2 PINHOLE 80 60 70 71 41 29
3 SIMPLE_RADIAL 80 60 70 41 29 0.1
4 RADIAL 80 60 70 41 29 0.1 0.2
5 OPENCV 80 60 70 71 41 29 0.1 0.2 0.01 0.02
6 OPENCV_FISHEYE 80 60 70 71 41 29 0.1 0.2 0.3 0.4
7 FULL_OPENCV 80 60 70 71 41 29 0.1 0.2 0.01 0.02 0.3 0.4 0.5 0.6
"""


COLMAP_LENSES = {
    1: ("pinhole", 70, ()),
    2: ("pinhole", 71, ()),
    3: ("opencv", 70, (0.1, 0, 0, 0)),
    4: ("opencv", 70, (0.1, 0.2, 0, 0)),
    5: ("opencv", 71, (0.1, 0.2, 0.01, 0.02)),
    6: ("fisheye", 71, (0.1, 0.2, 0.3, 0.4)),
    7: ("opencv", 71, (0.1, 0.2, 0.01, 0.02, 0.3, 0.4, 0.5, 0.6)),
}


class TestColmap:
    def check(self, folder: Path, path: Path):
        images = [folder / f"photos/{number}.jpg" for number in COLMAP_LENSES]
        for lens, (model, fy, distortion) in zip(read_cameras(path, images), COLMAP_LENSES.values(), strict=True):
            assert lens.numbers == [70, fy, 41, 29, *SIZE]
            assert (lens.model, lens.distortion) == (model, distortion)

    def test_text(self, tmp_path):
        model = tmp_path / "sparse"
        model.mkdir()
        (model / "cameras.txt").write_text(COLMAP_CAMERAS)
        with pytest.raises(ValueError, match="it holds 7 cameras, and there is no images file of COLMAP beside it"):
            read_camera(model)
        names = [f"{9 - n} 1 0 0 0 0 0 0 {n} photos/{n}.jpg\n{'' if n % 2 else '1.5 2.5 -1'}\n" for n in COLMAP_LENSES]
        (model / "images.txt").write_text("# Image list\n" + "".join(names))
        self.check(tmp_path, model)
        self.check(tmp_path, model / "cameras.txt")
        with pytest.raises(ValueError, match=r"it names 7 pictures, and 8\.jpg is not among them"):
            read_cameras(model, [Path("8.jpg")])

    def test_binary(self, tmp_path):
        numbers = {"SIMPLE_PINHOLE": 0, "PINHOLE": 1, "SIMPLE_RADIAL": 2, "RADIAL": 3, "OPENCV": 4, "OPENCV_FISHEYE": 5}
        numbers["FULL_OPENCV"] = 6
        cameras, images = struct.pack("<Q", 7), struct.pack("<Q", 7)
        for line in COLMAP_CAMERAS.splitlines()[3:]:
            number, model, width, height, *parameters = line.split()
            cameras += struct.pack("<IiQQ", int(number), numbers[model], int(width), int(height))
            cameras += np.array(parameters, dtype="<f8").tobytes()
            images += struct.pack("<I7dI", 9, *[0.0] * 7, int(number)) + f"photos/{number}.jpg\0".encode()
            images += struct.pack("<QddQ", 1, 1.5, 2.5, 2**64 - 1)
        (tmp_path / "cameras.bin").write_bytes(cameras)
        (tmp_path / "images.bin").write_bytes(images)
        self.check(tmp_path, tmp_path)

    def test_other_models_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match="the model of its camera 3 is FOV, which is not read"):
            read(tmp_path, "cameras.txt", "3 FOV 80 60 70 71 41 29 0.5")
        with pytest.raises(ValueError, match="its camera 3 has 3 parameters; PINHOLE has 4"):
            read(tmp_path, "cameras.txt", "3 PINHOLE 80 60 70 41 29")


NERFSTUDIO = {"fl_x": 70, "fl_y": 71, "cx": 41, "cy": 29, "w": 80, "h": 60}


FRAMES = {"frames": [{"file_path": "./images/a.png", "transform_matrix": np.eye(4).tolist()}]}


class TestNerfstudio:
    def test_one_camera(self, tmp_path):
        plain = read(tmp_path, "transforms.json", json.dumps(NERFSTUDIO | FRAMES))
        assert plain.numbers == [*NUMBERS, *SIZE]
        opencv = NERFSTUDIO | {"camera_model": "OPENCV", "k1": 0.1, "k2": 0.2, "p1": 0.01, "p2": 0.02, "k4": 0.0}
        lens = read(tmp_path, "transforms.json", json.dumps(opencv))
        assert (lens.model, lens.distortion) == ("opencv", (0.1, 0.2, 0.01, 0.02))
        fisheye = NERFSTUDIO | {"camera_model": "OPENCV_FISHEYE", "k1": 0.1, "k2": 0.2, "k3": 0.3, "k4": 0.4}
        lens = read(tmp_path, "transforms.json", json.dumps(fisheye))
        assert (lens.model, lens.distortion) == ("fisheye", (0.1, 0.2, 0.3, 0.4))
        with pytest.raises(ValueError, match=r"its k4 = 0\.4 without k5 and k6 is a fisheye's"):
            read(tmp_path, "transforms.json", json.dumps(fisheye | {"camera_model": "OPENCV"}))

    def test_a_panorama(self, tmp_path):
        sphere = {"camera_model": "EQUIRECTANGULAR", "w": 200, "h": 100}
        lens = read(tmp_path, "transforms.json", json.dumps(sphere))
        assert (lens.model, lens.cx, lens.cy) == ("equirectangular", 100, 50)
        assert (lens.fx, lens.fy) == pytest.approx((200 / (2 * np.pi), 100 / np.pi))

    def test_one_for_each_frame(self, tmp_path):
        frames = [
            {"file_path": f"images/{name}/1.png"} | NERFSTUDIO | {"fl_x": fx} for name, fx in (("a", 70), ("b", 90))
        ]
        (tmp_path / "transforms.json").write_text(json.dumps({"frames": frames}))
        images = [tmp_path / "images/b/1.png", tmp_path / "images/a/1.png"]
        assert [lens.fx for lens in read_cameras(tmp_path / "transforms.json", images)] == [90, 70]
        with pytest.raises(ValueError, match="it holds a camera for each of 2 pictures"):
            read_camera(tmp_path / "transforms.json")
        with pytest.raises(ValueError, match=r"it names 2 pictures 1\.png with different cameras"):
            read_camera(tmp_path / "transforms.json", "elsewhere/1.png")


PROJECTION = "7.0e+01 0.0e+00 4.1e+01 4.4e+01 0.0e+00 7.1e+01 2.9e+01 2.1e-01 0.0e+00 0.0e+00 1.0e+00 2.7e-03"


class TestDatasets:
    def test_kitti_objects_and_odometry(self, tmp_path):
        other = PROJECTION.replace("7.0e+01", "9.0e+01")
        text = f"P0: {other}\nP1: {other}\nP2: {PROJECTION}\nP3: {other}\nR0_rect: 1 0 0 0 1 0 0 0 1\n"
        assert read(tmp_path, "calib.txt", text).numbers == FROM_ZERO
        assert read(tmp_path, "calib.txt", text, "training/image_3/000001.png").fx == 90
        assert read(tmp_path, "calib.txt", text, "training/image_2/000001.png").fx == 70

    def test_kitti_raw(self, tmp_path):
        text = f"""calib_time: 09-Jan-2012 13:57:47\ncorner_dist: 9.950000e-02\nS_02: 1.392000e+03 5.120000e+02
K_02: 9.5e+02 0 6.9e+02 0 9.5e+02 2.4e+02 0 0 1\nD_02: -3.6e-01 2.0e-01 5.5e-04 2.2e-04 -5.9e-02
S_rect_02: 8.0e+01 6.0e+01\nP_rect_02: {PROJECTION}\nS_rect_03: 8.0e+01 6.0e+01
P_rect_03: {PROJECTION.replace("7.0e+01", "9.0e+01")}\n"""
        assert read(tmp_path, "calib_cam_to_cam.txt", text).numbers == [*FROM_ZERO, *SIZE]
        assert read(tmp_path, "calib_cam_to_cam.txt", text, "drive/image_03/data/0000000001.png").fx == 90
        with pytest.raises(ValueError, match="it has no P_rect_00 or P0, the camera of image_00"):
            read(tmp_path, "calib_cam_to_cam.txt", text, "drive/image_00/data/0000000001.png")

    def test_scannet(self, tmp_path):
        text = "70 0 41 0\n0 71 29 0\n0 0 1 0\n0 0 0 1\n"
        assert read(tmp_path, "intrinsic_color.txt", text).numbers == FROM_ZERO
