"""Lenses against OpenCV's own functions, and depth brought back from views against a scene whose metres are known."""

import math

import cv2
import numpy as np
import pytest
from depthvlm.benchmark.synthetic.raycast import Camera as RenderedCamera
from depthvlm.benchmark.synthetic.raycast import Quad, Sphere, trace
from PIL import Image

from depthvlm.geometry import back_project
from depthvlm.lens import Lens, pixel_centres
from depthvlm.lens_views import cut_view, lens_views, merge_views

BARREL = Lens(300, 301, 322, 238, (-0.25, 0.06, 0.001, -0.002, 0.01), "opencv", 640, 480)
RATIONAL = Lens(250, 250, 320, 240, (0.1, 0.06, 0.001, -0.002, 0.01, 0.2, 0.05, 0.01), "opencv", 640, 480)
FISHEYE = Lens(300, 299, 320, 240, (0.05, -0.01, 0.003, -0.001), "fisheye", 640, 480)
WIDE = Lens(120, 120, 200, 200, (0.02, -0.003, 0.0003, 0.0), "fisheye", 400, 400)  # 190 degrees across
PANORAMA = Lens.panorama(800, 400)
LENSES = {"barrel": BARREL, "rational": RATIONAL, "fisheye": FISHEYE, "wide": WIDE, "panorama": PANORAMA}


def matrix(lens: Lens) -> np.ndarray:
    """OpenCV's matrix, which counts from the centre of the first pixel."""
    return np.array([[lens.fx, 0, lens.cx - 0.5], [0, lens.fy, lens.cy - 0.5], [0, 0, 1.0]])


def centres(lens: Lens) -> np.ndarray:
    return pixel_centres(lens.width, range(lens.height))


class TestAgainstOpenCV:
    @pytest.mark.parametrize("lens", [BARREL, RATIONAL])
    def test_distortion(self, lens):
        points = np.random.default_rng(0).uniform((-2, -1.5, 2), (2, 1.5, 4), (500, 3))
        seen, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), matrix(lens), np.array(lens.distortion))
        np.testing.assert_allclose(lens.project(points), seen[:, 0] + 0.5, atol=1e-9)
        # Its own inverse, with more iterations than its default of 5.
        pixels = np.random.default_rng(1).uniform((0, 0), (lens.width, lens.height), (500, 2))
        criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 200, 1e-12)
        args = (pixels[:, None] - 0.5, matrix(lens), np.array(lens.distortion))
        slopes = cv2.undistortPointsIter(*args, None, None, criteria)[:, 0]
        rays = lens.rays(pixels)
        np.testing.assert_allclose(rays[:, :2] / rays[:, 2:], slopes, atol=1e-8)

    @pytest.mark.parametrize("lens", [FISHEYE, WIDE])
    def test_fisheye(self, lens):
        slopes = np.random.default_rng(0).uniform(-2, 2, (500, 1, 2))
        seen = cv2.fisheye.distortPoints(slopes, matrix(lens), np.array(lens.distortion))[:, 0]
        points = np.concatenate([slopes[:, 0], np.ones((500, 1))], axis=1)
        np.testing.assert_allclose(lens.project(points * 3), seen + 0.5, atol=1e-9)
        np.testing.assert_allclose(
            lens.rays(seen + 0.5), points / np.linalg.norm(points, axis=1, keepdims=True), atol=1e-9
        )

    def test_pictures(self):
        noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
        image = Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC)
        [view] = lens_views(BARREL)
        ours = np.asarray(cut_view(image, BARREL, view)).astype(float)
        camera = view.camera
        new = np.array([[camera.fx, 0, camera.cx - 0.5], [0, camera.fy, camera.cy - 0.5], [0, 0, 1.0]])
        maps = cv2.initUndistortRectifyMap(
            matrix(BARREL), np.array(BARREL.distortion), None, new, (camera.width, camera.height), cv2.CV_32FC1
        )
        theirs = cv2.remap(np.asarray(image), *maps, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE).astype(float)
        # OpenCV rounds positions to 1/32 of a pixel.
        assert np.abs(ours - theirs).mean() < 0.5
        assert np.abs(ours - theirs).max() <= 8

    def test_what_the_lens_does_not_see_is_nan(self):
        folding = Lens(300, 300, 320, 240, (-0.4, 0.0, 0.0, 0.0), "opencv", 640, 480)
        turn = math.sqrt(1 / 1.2)  # d/dr (r - 0.4 r^3) = 0
        assert np.isfinite(folding.project((0.99 * turn, 0, 1))).all()
        assert np.isnan(folding.project((1.01 * turn, 0, 1))).all()
        radius = 300 * (turn - 0.4 * turn**3)
        assert np.isfinite(folding.rays((320 + radius - 1, 240))).all()
        assert np.isnan(folding.rays((320 + radius + 1, 240))).all()
        assert np.isnan(BARREL.project((0, 0, -1))).all()
        assert np.isfinite(WIDE.project((1, 0, -0.05))).all()


class TestPanorama:
    def test_directions(self):
        directions = {(400, 200): (0, 0, 1), (600, 200): (1, 0, 0), (200, 200): (-1, 0, 0), (400, 400): (0, 1, 0)}
        for position, direction in directions.items():
            np.testing.assert_allclose(PANORAMA.rays(position), direction, atol=1e-12)
        np.testing.assert_allclose(PANORAMA.project((0, 0, -2)), (0, 200), atol=1e-9)
        np.testing.assert_allclose(PANORAMA.project((3, 0, 3)), (500, 200), atol=1e-9)
        with pytest.raises(ValueError, match="twice as wide as high, and this picture has 800x600 pixels"):
            Lens.panorama(800, 600)

    def test_its_views_have_no_seam(self):
        """A picture whose colour is the direction shows the direction of each pixel in every view."""
        rays = PANORAMA.rays(centres(PANORAMA))
        image = Image.fromarray(np.round(rays * 127 + 128).astype(np.uint8))
        for view in lens_views(PANORAMA):
            x, y = np.moveaxis(pixel_centres(view.camera.width, range(view.camera.height)), -1, 0)
            local = np.stack([x - view.camera.cx, y - view.camera.cy, np.full_like(x, view.camera.fx)], axis=-1)
            expected = local / np.linalg.norm(local, axis=-1, keepdims=True) @ view.rotation.T
            assert np.abs((np.asarray(cut_view(image, PANORAMA, view)) - 128.0) / 127 - expected).max() < 0.02


LOW, HIGH = np.array([-3.0, -1.5, -4.0]), np.array([3.3, 1.2, 5.0])
BALL, RADIUS = np.array([0.6, 0.2, 2.2]), 0.5


def room() -> tuple[list[Quad], list[Sphere]]:
    """A room around the camera, seen from inside, with a ball."""
    quads = []
    for axis in range(3):
        first, second = np.eye(3)[(axis + 1) % 3], np.eye(3)[(axis + 2) % 3]
        sides = HIGH - LOW
        width, height = float(sides @ first), float(sides @ second)
        quads.append(Quad(LOW, first, second, width, height, None))  # faces along the axis
        corner = LOW + np.eye(3)[axis] * sides[axis]
        quads.append(Quad(corner, second, first, height, width, None))
    return quads, [Sphere(BALL, RADIUS, None)]


def distances(rays: np.ndarray) -> np.ndarray:
    """Distance from the origin to the room or the ball, along unit rays: the formulas of a box and of a sphere."""
    with np.errstate(divide="ignore"):
        walls = np.min(np.where(rays > 0, HIGH / rays, LOW / rays), axis=-1)
    along = rays @ BALL
    inside = along**2 - (BALL @ BALL - RADIUS**2)
    ball = along - np.sqrt(np.where(inside > 0, inside, np.nan))
    return np.where((inside > 0) & (along > 0), ball, walls)


class TestDepthOfViews:
    @pytest.mark.parametrize(
        ("name", "views", "depth_type"),
        [
            ("barrel", 1, "z_depth"),
            ("rational", 7, "z_depth"),
            ("fisheye", 7, "z_depth"),
            ("wide", 7, "ray_distance"),
            ("panorama", 8, "ray_distance"),
        ],
    )
    def test_points_are_right_when_the_depth_of_each_view_is(self, name, views, depth_type):
        lens = LENSES[name]
        cut = lens_views(lens)
        assert (len(cut), lens.depth_type) == (views, depth_type)
        depths = []
        for view in cut:
            pose = np.eye(4)
            pose[:3, :3] = view.rotation
            camera = RenderedCamera(view.camera.width, view.camera.height, view.camera.fx, pose)
            depths.append(1 / trace(*room(), camera, 100.0).inverse_depth)
        rays = lens.rays(centres(lens))
        points = back_project(merge_views(lens, cut, depths), lens).points
        assert np.isfinite(points).all()
        distance = np.linalg.norm(points, axis=-1)
        assert np.abs(points / distance[..., None] - rays).max() < 1e-6
        true = distances(rays)
        error = np.linalg.norm(points - rays * true[..., None], axis=-1) / true
        assert np.quantile(error, 0.98) < 1e-4
        # The rest: edges of the room, within a pixel, and the outline of the ball.
        ball = np.linalg.norm(rays * true[..., None] - BALL, axis=-1) < RADIUS * 1.001
        assert error[ball][np.argsort(error[ball])[: int(0.9 * ball.sum())]].max() < 1e-3
        edge = true < 0.98 * cv2.dilate(true, np.ones((5, 5)))
        edge |= cv2.erode(true, np.ones((5, 5))) < 0.98 * true
        assert error[~edge].max() < 1e-2


class TestTheLensItself:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"model": "orthographic"}, "The lens model 'orthographic' is not one of pinhole, opencv, fisheye"),
            ({"distortion": (0.1, 0.2)}, "'opencv' takes 0 or 4 or 5 or 8 distortion coefficients, got 2"),
            ({"distortion": (0.1,) * 5, "model": "fisheye"}, "'fisheye' takes 0 or 4 distortion coefficients, got 5"),
            ({"distortion": (math.nan, 0, 0, 0)}, "must be finite"),
            ({"width": 640}, "a width and a height, or neither"),
            ({"fx": -1.0}, "positive focal lengths"),
        ],
    )
    def test_what_is_no_lens_is_refused(self, arguments, words):
        with pytest.raises(ValueError, match=words):
            Lens(**{"fx": 1.0, "fy": 1.0, "cx": 0.0, "cy": 0.0} | arguments)

    def test_scaled(self):
        half = BARREL.scaled_to(320, 240)
        np.testing.assert_allclose(half.rays((100, 50)), BARREL.rays((200, 100)), atol=1e-12)
        assert Lens(**BARREL.to_dict()) == BARREL
