"""nano through lenses, from the picture to the files: against the same picture taken by a pinhole."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from command_line import run
from depthvlm.benchmark.synthetic.scenes import render_scene
from PIL import ExifTags, Image
from toy_images import save_picture

import depthvlm
from depthvlm.through_lens import _panorama, _upright

WIDTH, HEIGHT, FOCAL = 320, 240, 260.0
COEFFICIENTS = (-0.3, 0.08, 0.002, -0.003, 0.0)
MATRIX = np.array([[FOCAL, 0, WIDTH / 2 - 0.5], [0, FOCAL, HEIGHT / 2 - 0.5], [0, 0, 1.0]])
XMP = """<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:GPano="http://ns.google.com/photos/1.0/panorama/" GPano:ProjectionType="equirectangular"
GPano:FullPanoWidthPixels="400" GPano:FullPanoHeightPixels="200" GPano:CroppedAreaImageWidthPixels="200"
GPano:CroppedAreaImageHeightPixels="80" GPano:CroppedAreaLeftPixels="50" GPano:CroppedAreaTopPixels="60"/>
</rdf:RDF></x:xmpmeta>"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def lens() -> depthvlm.Lens:
    return depthvlm.Lens(FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2, COEFFICIENTS, "opencv", WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def scene():
    return render_scene(11, kind="room", width=640, height=480, fov=2 * np.degrees(np.arctan(320 / FOCAL)))


@pytest.fixture(scope="module")
def slopes() -> np.ndarray:
    """x / z and y / z of the lens's pixels, by OpenCV."""
    pixels = np.stack(np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT)), axis=-1).astype(float)
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 200, 1e-12)
    found = cv2.undistortPointsIter(pixels.reshape(-1, 1, 2), MATRIX, np.array(COEFFICIENTS), None, None, criteria)
    return found.reshape(HEIGHT, WIDTH, 2)


@pytest.fixture(scope="module")
def distorted(scene, slopes) -> Image.Image:
    """The scene as the lens shows it, made by OpenCV from a larger pinhole picture of the same focal length."""
    at = (slopes * FOCAL + (319.5, 239.5)).astype(np.float32)
    return Image.fromarray(cv2.remap(scene.image, at[..., 0], at[..., 1], cv2.INTER_CUBIC))


class TestDistortedPictures:
    def test_metres_are_those_of_the_undistorted_picture(self, nano, lens, scene, distorted, slopes):
        [through] = nano.predict(distorted, camera=lens)
        [pinhole] = nano.predict(scene.image, focal_length=FOCAL)
        at = (slopes * FOCAL + (319.5, 239.5)).astype(np.float32)
        true = cv2.remap(scene.depth, at[..., 0], at[..., 1], cv2.INTER_NEAREST)
        same = cv2.remap(pinhole.depth, at[..., 0], at[..., 1], cv2.INTER_LINEAR)
        assert np.median(np.abs(through.depth / same - 1)) < 0.05
        assert through.depth.shape == (HEIGHT, WIDTH)
        assert (through.camera, through.depth_type) == (lens, "z_depth")
        # nano itself is right to some 10 % in such a room.
        assert np.median(np.abs(through.depth[true > 0] / true[true > 0] - 1)) < 0.2

    def test_points_lie_on_opencvs_rays(self, nano, lens, distorted, slopes):
        [through] = nano.predict(distorted, camera=lens)
        points = through.points
        np.testing.assert_allclose(points[..., 2], through.depth)
        assert np.abs(points[..., :2] / points[..., 2:] - slopes).max() < 1e-6
        first, second = (20, 30), (200, 150)
        expected = np.linalg.norm(points[first[::-1]] - points[second[::-1]])
        assert through.distance(*((x + 0.5, y + 0.5) for x, y in (first, second))) == pytest.approx(expected, rel=1e-5)

    def test_the_command_with_the_files_of_a_calibration(self, nano, lens, distorted):
        distorted.save("wide.png")
        file = cv2.FileStorage("camera.yaml", cv2.FILE_STORAGE_WRITE)
        for name, value in {"image_width": WIDTH, "image_height": HEIGHT, "camera_matrix": MATRIX}.items():
            file.write(name, value)
        file.write("distortion_coefficients", np.array([COEFFICIENTS]))
        file.release()
        run("predict", "wide.png", "--intrinsics", "camera.yaml", "--device", "cpu", "--formats", "npy,json,png16")
        [expected] = nano.predict(distorted, camera=lens)
        np.testing.assert_allclose(np.load("depthvlm_results/wide_depth.npy"), expected.depth, rtol=1e-4)
        record = json.loads(Path("depthvlm_results/wide.json").read_text())
        assert record["camera"]["lens"] == "opencv"
        assert record["camera"]["distortion"] == [*COEFFICIENTS[:4]]
        assert (record["depth_type"], record["focal_source"]) == ("z_depth", "intrinsics")
        # The JSON of a result is a camera file too, and gives the same camera: there is nothing to do again.
        arguments = ("--intrinsics", "depthvlm_results/wide.json", "--device", "cpu", "--formats", "npy,json,png16")
        assert "Skipped 1 complete" in run("predict", "wide.png", *arguments).output

    def test_pinholes_and_lenses_in_one_call(self, nano, lens, distorted, scene):
        plain = depthvlm.Lens(FOCAL, FOCAL, 320, 240, model="pinhole")
        predictions = nano.predict(
            [distorted, scene.image, scene.image], camera=[lens, plain, None], fov=[None, None, 90]
        )
        [alone] = nano.predict(scene.image, intrinsics=[FOCAL, FOCAL, 320, 240])
        np.testing.assert_allclose(predictions[1].depth, alone.depth, rtol=1e-4)
        assert [one.camera.source for one in predictions] == ["intrinsics", "intrinsics", "fov"]
        with pytest.raises(ValueError, match="`camera` and `fov` both name the camera of image 0"):
            nano.predict([distorted], camera=lens, fov=60)
        with pytest.raises(ValueError, match=r"must be a depthvlm\.Lens or 'equirectangular', got 'fisheye'"):
            nano.predict([distorted], camera="fisheye")

    def test_another_shape_is_refused_and_the_others_go_on(self, nano, lens, distorted):
        errors = {}
        done = list(
            nano.predict_iter([distorted.crop((0, 0, 300, 240)), distorted], camera=lens, on_error=errors.__setitem__)
        )
        assert [index for index, _ in done] == [1]
        assert str(errors[0]).startswith(
            "Image 0: its `intrinsics` are of a picture of 320x240 pixels, and it has 300x240"
        )

    def test_a_reply_comes_from_the_undistorted_picture(self, nano, lens, distorted):
        [through] = nano.predict(distorted, camera=lens, prompt="How far away is the nearest object?", max_new_tokens=4)
        assert through.text
        assert through.depth.shape == (HEIGHT, WIDTH)


class TestPanoramas:
    def test_files_and_record(self, nano):
        half = render_scene(5, width=256, height=256).image
        Image.fromarray(np.concatenate([half, half[:, ::-1]], axis=1)).save("pano.png")
        run("predict", "pano.png", "--panorama", "--device", "cpu", "--formats", "npy,json,png16,ply,glb,color")
        depth = np.load("depthvlm_results/pano_depth.npy")
        assert depth.shape == (256, 512)
        assert np.isfinite(depth).all()
        record = json.loads(Path("depthvlm_results/pano.json").read_text())
        assert (record["depth_type"], record["camera"]["lens"]) == ("ray_distance", "equirectangular")
        assert record["camera"]["fx"] == pytest.approx(512 / (2 * np.pi))
        assert "distance along the ray" in Image.open("depthvlm_results/pano_depth.png").info["depth_unit"]
        assert np.median(np.abs(depth[:, 0] / depth[:, -1] - 1)) < 0.02  # the borders are neighbours, of one colour

    def test_points_and_texture(self, nano):
        [prediction] = nano.predict(render_scene(5, width=512, height=256).image, camera="equirectangular")
        np.testing.assert_allclose(np.linalg.norm(prediction.points, axis=-1), prediction.depth, rtol=1e-5)
        np.testing.assert_allclose(
            prediction.points[128, 384], prediction.at(384.5, 128.5) * np.array([1, 0, 0]), atol=0.1
        )
        # Two positions opposite each other are as far apart as both distances together.
        ahead, behind = (256, 128), (0, 128)
        both = prediction.at(*ahead) + prediction.at(*behind)
        assert prediction.distance(ahead, behind) == pytest.approx(both)
        mesh = prediction.to_mesh()
        found = prediction.camera.project(mesh.vertices)
        colours = np.asarray(prediction.image)[found[:, 1].astype(int), found[:, 0].astype(int)]
        assert np.mean(colours == mesh.visual.vertex_colors[:, :3]) > 0.99

    def test_a_prompt_and_a_clip_are_refused(self, nano):
        picture = Image.fromarray(np.zeros((64, 128, 3), np.uint8))
        with pytest.raises(ValueError, match=r"is cut into 8 views\. Ask about a part of it"):
            nano.predict(picture, camera="equirectangular", prompt="What is it?")
        with pytest.raises(ValueError, match="twice as wide as high"):
            nano.predict(picture.crop((0, 0, 64, 64)), camera="equirectangular")
        Path("clip.mp4").write_bytes(b"x")
        assert "A clip needs a pinhole camera" in run("predict", "clip.mp4", "--panorama", code=2).stderr
        both = run("predict", "clip.mp4", "--panorama", "--fov", "60", code=2)
        assert "--fov and --panorama both name the camera" in both.stderr

    def test_a_part_of_the_sphere_by_its_own_data(self):
        exif = Image.Exif()
        exif[ExifTags.Base.XMLPacket] = XMP.encode()
        lens = _panorama(exif, 400, 160)  # the cropped area of 200 x 80, at twice its size
        assert (lens.fx, lens.fy) == pytest.approx((800 / (2 * np.pi), 400 / np.pi))
        assert (lens.cx, lens.cy) == pytest.approx((2 * (200 - 50), 2 * (100 - 60)))


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_lens_is_turned_with_its_picture(lens, orientation):
    image = save_picture("photo.jpg")
    stored = Image.open(image).resize((WIDTH, HEIGHT))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored.save("turned.jpg", exif=exif)
    picture, upright = _upright("turned.jpg", lens, "turned.jpg", 10**9)
    assert picture.size == (upright.width, upright.height) == (HEIGHT, WIDTH)
    # The pixels' x and y, turned as the picture is, tell where each upright pixel was stored.
    x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    turn = {5: lambda a: a.T, 6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).T, 8: lambda a: np.rot90(a)}[
        orientation
    ]
    was = np.stack([turn(x)[70, 100], turn(y)[70, 100]]) + 0.5
    before, after = lens.rays(was), upright.rays((100.5, 70.5))
    axes = {5: (1, 0, 1, 1), 6: (1, 0, -1, 1), 7: (1, 0, -1, -1), 8: (1, 0, 1, -1)}[orientation]
    expected = (axes[2] * before[axes[0]], axes[3] * before[axes[1]], before[2])
    np.testing.assert_allclose(after, expected, atol=1e-9)
