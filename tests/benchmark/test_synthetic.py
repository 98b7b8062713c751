"""Synthetic scenes: depth against hand calculations and a plain ray caster, sizes in metres, determinism, errors."""

import dataclasses
from itertools import product

import numpy as np
import pytest
from depthvlm.benchmark.synthetic import textures
from depthvlm.benchmark.synthetic.raycast import Camera, Quad, Sphere, trace
from depthvlm.benchmark.synthetic.scenes import MAX_DEPTH, MIN_VISIBLE, SyntheticScene, render_scene
from depthvlm.benchmark.synthetic.world import COLORS, SIZES, World
from scipy.spatial.transform import Rotation

RIGHT, DOWN, FORWARD = np.eye(3)
GREY = textures.plain((0.5, 0.5, 0.5))


def camera(width=64, height=48, focal_length=50.0, pose=None):
    return Camera(width, height, focal_length, np.eye(4) if pose is None else pose)


def tilted_pose(yaw=0.3, pitch=0.2, roll=-0.1):
    """A pose that looks to the right and down, 1.6 m above the ground."""
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("YXZ", [yaw, -pitch, roll]).as_matrix()
    pose[:3, 3] = (0.2, -1.6, -0.1)
    return pose


def rays(width, height, focal_length):
    """Rays (H, W, 3) in the camera frame with z = 1, through the pixel centres."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    x, y = (columns + 0.5 - width / 2) / focal_length, (rows + 0.5 - height / 2) / focal_length
    return np.stack([x, y, np.ones_like(x)], axis=-1)


def world_points(scene: SyntheticScene):
    height, width = scene.depth.shape
    points = rays(width, height, scene.focal_length) * scene.depth[..., None]
    return points @ scene.camera_to_world[:3, :3].T + scene.camera_to_world[:3, 3]


def depth_of(hits):
    return np.where(hits.surface < 0, 0, 1 / hits.inverse_depth)


def traced(*quads, view=None):
    """Depth of flat pieces in a level camera."""
    return depth_of(trace(list(quads), [], view or camera(), MAX_DEPTH))


def wall(corner, width, height, across=RIGHT, **options):
    return Quad(np.array(corner, float), across, -DOWN, width, height, GREY, **options)


@pytest.fixture(scope="module", params=["room", "street"])
def scenes(request):
    return [render_scene(seed, kind=request.param, width=64, height=48) for seed in range(40)]


def test_depth_of_planes_by_hand():
    # The wall spans x in [-1, 1], y in [-1, 1] at z = 2: with f = 50 that is columns 32 -+ 25 and all 48 rows.
    depth = traced(wall((-1, 1, 2), 2, 2))
    assert np.unique(depth[:, 7:57]) == pytest.approx(2.0, rel=1e-6)
    assert not depth[:, :7].any()
    assert not depth[:, 57:].any()
    # Seen from one side, and up to the maximum.
    assert not traced(wall((1, 1, 2), 2, 2, -RIGHT), wall((-10, 10, 81), 20, 20)).any()
    # The row whose centre is y = 12.5 / 50 below the axis sees the ground 1.6 m below at z = 1.6 / 0.25 = 6.4 m.
    depth = traced(Quad(np.array([-50.0, 1.6, -50.0]), RIGHT, FORWARD, 100, 100, GREY))
    assert depth[36] == pytest.approx(np.full(64, 6.4), rel=1e-6)
    assert not depth[:24].any()
    # A wall 1 m to the left that reaches behind the camera: z = 1 / |x|, up to 4 m high above the ground.
    depth = traced(wall((-1, 2, -50), 100, 4, FORWARD))
    assert depth[24, :31] == pytest.approx(50 / (32 - np.arange(31) - 0.5), rel=1e-5)


def test_sphere_against_the_quadratic_formula():
    pose, center, radius = tilted_pose(), np.array([0.9, -0.12, 2.4]), 0.12
    floor = Quad(np.zeros(3), RIGHT, FORWARD, 1, 1, GREY)
    hits = trace([floor], [Sphere(center, radius, None)], camera(320, 240, 250.0, pose), MAX_DEPTH)
    direction = rays(320, 240, 250.0) @ pose[:3, :3].T
    offset = pose[:3, 3] - center
    a, b, c = (direction**2).sum(-1), 2 * direction @ offset, offset @ offset - radius**2
    discriminant = b**2 - 4 * a * c
    seen = hits.surface == 1
    assert seen.sum() > 200
    np.testing.assert_array_equal(seen, discriminant > 0)
    expected = (-b - np.sqrt(np.maximum(discriminant, 0))) / (2 * a)
    np.testing.assert_allclose(depth_of(hits)[seen], expected[seen], rtol=1e-6)


def test_every_visible_point_of_a_box_lies_on_its_faces():
    pose, size, middle = tilted_pose(), np.array([0.6, 0.5, 0.8]), np.array([0.7, -0.25, 2.5])
    turn = Rotation.from_euler("Y", 0.5)
    world = World(np.random.default_rng(0), 60.0)
    world.add_box((0.7, 2.5), tuple(size), 0.5, GREY)
    hits = trace(world.quads, [], camera(256, 192, 200.0, pose), MAX_DEPTH)
    seen = hits.surface >= 0
    points = (pose[:3, 3] + rays(256, 192, 200.0) @ pose[:3, :3].T * depth_of(hits)[..., None])[seen]
    relative = np.abs(turn.inv().apply(points - middle)) / (size / 2)
    np.testing.assert_allclose(relative.max(1), 1, atol=1e-3)
    assert len(np.unique(hits.surface[seen])) == 3  # two sides and the top

    # The silhouette is that of the eight corners: all of them project into the seen pixels' bounds.
    corners = turn.apply(np.array(list(product((-0.5, 0.5), repeat=3))) * size) + middle
    in_camera = (corners - pose[:3, 3]) @ pose[:3, :3]
    columns = in_camera[:, 0] / in_camera[:, 2] * 200 + 128
    assert np.flatnonzero(seen.any(0))[[0, -1]] == pytest.approx([columns.min(), columns.max() - 1], abs=1)


def test_a_decal_replaces_its_wall_at_the_same_depth_and_hides_behind_what_is_nearer():
    back, decal, post = wall((-4, 4, 3), 8, 8), wall((-1, 1, 3), 2, 2, decal=True), wall((0, 4, 2), 0.2, 8)
    for order in ([back, decal, post], [post, back, decal]):
        hits = trace(order, [], camera(), MAX_DEPTH)
        shown = [order[index] for index in hits.surface[24, [5, 25, 34]]]
        assert [id(quad) for quad in shown] == [id(back), id(decal), id(post)]
        np.testing.assert_allclose(depth_of(hits)[24, [5, 25, 34]], [3, 3, 2], rtol=1e-6)


def test_stripes_average_over_the_pixel():
    x = np.array([0.05, 0.3, 0.1, 7.0], np.float32)
    extent = np.array([0.02, 0.02, 0.02, 50.0], np.float32)
    # Inside a stripe, outside, half over its edge, and the mean of many periods.
    covered = textures.stripe(x, extent, period=0.5, width=0.1)
    np.testing.assert_allclose(covered, [1, 0, 0.5, 0.2], atol=2e-3)


def test_tiles_are_half_a_metre():
    s = np.arange(0.25, 4, 0.5, dtype=np.float32)
    tiny, zero = np.full_like(s, 1e-3), np.full_like(s, 0.25)
    colors = textures.tiles((0.2, 0.2, 0.2), (0, 0, 0), (0.8, 0.8, 0.8))(s, zero, tiny, tiny)
    assert ((colors[0] > 0.5) == (np.arange(8) % 2 == 0)).all()  # a checker: every tile differs from the next
    joints = textures.tiles((0.5, 0.5, 0.5), (0, 0, 0))(s + np.float32(0.25), zero, tiny, tiny)
    assert joints.max() < 1e-3


def test_types_and_shapes(scenes):
    for scene in scenes:
        assert (scene.image.shape, scene.image.dtype) == ((48, 64, 3), np.uint8)
        assert (scene.depth.shape, scene.depth.dtype) == ((48, 64), np.float32)
        f = scene.focal_length
        np.testing.assert_array_equal(scene.intrinsics, [[f, 0, 32], [0, f, 24], [0, 0, 1]])
        assert scene.intrinsics.dtype == np.float64
        assert 45 <= np.degrees(2 * np.arctan(32 / f)) <= 80
        assert scene.image.std() > 5
    assert render_scene(3, width=100, height=50, fov=90).focal_length == pytest.approx(50)


def test_the_ground_is_at_zero_and_the_camera_at_eye_height(scenes):
    ground = 0
    for scene in scenes:
        assert scene.camera_to_world[1, 3] == pytest.approx(-1.6, rel=0.03)
        rotation = scene.camera_to_world[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        y = world_points(scene)[..., 1]
        assert y[scene.depth > 0].max() < 1e-3  # y points down: nothing lies below the ground
        ground += (np.abs(y) < 1e-3).mean() / len(scenes)
    assert ground > 0.12


def test_depth_range_and_sky(scenes):
    for scene in scenes:
        seen = scene.depth > 0
        assert scene.depth[seen].min() > 0.6
        assert scene.depth.max() <= (MAX_DEPTH if scene.kind == "street" else 15)
        if scene.kind == "room":
            assert seen.all()
            assert -world_points(scene)[..., 1].min() < 3.4 + 1e-3  # no higher than rooms are
            continue
        # What sees nothing would meet the ground beyond the maximal depth, or never.
        y = (rays(64, 48, scene.focal_length) @ scene.camera_to_world[1, :3])[~seen]
        assert (y * MAX_DEPTH < -scene.camera_to_world[1, 3] * 1.001).all()
    if scenes[0].kind == "street":
        assert 0.02 < np.mean([(scene.depth == 0).mean() for scene in scenes]) < 0.4


def test_listed_objects(scenes):
    for scene in scenes:
        assert scene.segments.shape == scene.depth.shape
        assert scene.segments.max(initial=-1) < len(scene.objects)
        for index, item in enumerate(scene.objects):
            column, row = item.pixel
            assert item.depth == scene.depth[row, column] > 0
            assert scene.segments[row, column] == index
            assert (scene.segments == index).sum() == item.visible >= MIN_VISIBLE * scene.depth.size
            assert item.size == SIZES[item.name]
            assert item.color in COLORS
            # No object reaches higher than its size above the ground, unless it stands or hangs on something.
            if item.name in ("car", "table", "cabinet", "gym ball", "box", "door", "pole"):
                assert -1e-3 <= -world_points(scene)[row, column, 1] <= item.size[1] + 1e-3
    assert 2 < np.mean([len(scene.objects) for scene in scenes]) < 10


def test_an_object_looks_like_its_color():
    palette = np.array(list(COLORS.values()))
    palette /= np.linalg.norm(palette, axis=1, keepdims=True)
    every = [render_scene(seed, kind="street", width=128, height=96) for seed in range(120)]
    # Poles are of one colour: the palette's nearest hue is the one named.
    poles = [
        (item.color, scene.image[item.pixel[::-1]]) for scene in every for item in scene.objects if item.name == "pole"
    ]
    scored = [list(COLORS)[int(np.argmax(palette @ pixel))] == color for color, pixel in poles]
    assert len(scored) > 30
    assert np.mean(scored) > 0.9


def test_a_constant_is_no_good_prediction(scenes):
    depth = np.concatenate([scene.depth[scene.depth > 0] for scene in scenes])
    log = np.sort(np.log(depth))
    guesses = np.linspace(log[0], log[-1], 200)
    within = np.searchsorted(log, guesses + np.log(1.25)) - np.searchsorted(log, guesses - np.log(1.25))
    assert within.max() / log.size < 0.45


def test_same_arguments_same_bytes_and_other_seeds_differ():
    for seed in (0, 1, 2**40):
        first, second = render_scene(seed, width=96, height=64), render_scene(seed, width=96, height=64)
        for name in ("image", "depth", "intrinsics", "camera_to_world"):
            assert getattr(first, name).tobytes() == getattr(second, name).tobytes()
        assert first.objects == second.objects
        other = render_scene(seed + 1, kind=first.kind, width=96, height=64)
        assert not np.array_equal(first.depth, other.depth)
        assert not np.array_equal(first.image, other.image)


def test_the_seed_chooses_the_kind_and_naming_it_changes_nothing():
    chosen = [render_scene(seed, width=32, height=24) for seed in range(40)]
    assert 10 < sum(scene.kind == "room" for scene in chosen) < 30
    for scene in chosen[:6]:
        named = render_scene(scene.seed, kind=scene.kind, width=32, height=24)
        assert named.image.tobytes() == scene.image.tobytes()
    with pytest.raises(dataclasses.FrozenInstanceError):
        chosen[0].seed = 1


@pytest.mark.parametrize("kind", ["room", "street"])
def test_the_scene_does_not_depend_on_the_resolution(kind):
    # At three times the size, the centre of every third pixel is the centre of a pixel of the small image.
    for seed in range(6):
        small = render_scene(seed, kind=kind, width=64, height=48)
        large = render_scene(seed, kind=kind, width=192, height=144)
        assert large.focal_length == pytest.approx(3 * small.focal_length)
        same = np.isclose(small.depth, large.depth[1::3, 1::3], rtol=1e-4)
        assert same.mean() > 0.999  # a pixel exactly on an edge may fall to either side
        assert {item.name for item in small.objects} & {item.name for item in large.objects}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, r"seed must be an integer >= 0, got -1"),
        ({"seed": 1.5}, r"seed must be an integer >= 0, got 1\.5"),
        ({"kind": "garden"}, r"kind must be one of \('room', 'street'\) or None, got 'garden'"),
        ({"width": 8}, r"width must be an integer of at least 16 pixels, got 8"),
        ({"height": 64.0}, r"height must be an integer of at least 16 pixels, got 64\.0"),
        ({"fov": 180}, r"fov must be a horizontal field of view in degrees in \[20, 120\], got 180"),
        ({"fov": float("nan")}, r"fov must be .* got nan"),
    ],
)
def test_errors_say_what_was_given(arguments, message):
    with pytest.raises(ValueError, match=message):
        render_scene(**{"seed": 0} | arguments)


class TestCameraPath:
    @pytest.mark.parametrize("kind", ["room", "street"])
    def test_a_moved_camera_sees_the_same_points(self, kind):
        """Points of one view, projected into the other, lie at its depth; a pose of no motion changes no byte."""
        step = np.eye(4)
        step[:3, :3], step[:3, 3] = Rotation.from_euler("YX", [0.05, 0.02]).as_matrix(), (0.1, 0.02, 0.2)
        size = {"kind": kind, "width": 256, "height": 192}
        one, other = render_scene(7, **size), render_scene(7, **size, motion=step)
        np.testing.assert_allclose(other.camera_to_world, one.camera_to_world @ step)
        points = world_points(one)[one.depth > 0]
        x, y, z = other.camera_to_world[:3, :3].T @ (points - other.camera_to_world[:3, 3]).T
        column, row = np.floor(x / z * one.focal_length + 128), np.floor(y / z * one.focal_length + 96)
        seen = (z > 0) & (column >= 0) & (column < 256) & (row >= 0) & (row < 192)
        ratio = other.depth[row[seen].astype(int), column[seen].astype(int)] / z[seen]
        assert np.median(np.abs(ratio - 1)) < 0.01
        assert np.mean(np.abs(ratio - 1) < 0.05) > 0.85
        still = render_scene(7, **size, motion=np.eye(4))
        assert still.image.tobytes() == one.image.tobytes()

    def test_each_frame_has_its_own_noise(self):
        one, other = (render_scene(7, width=64, height=48, frame=frame) for frame in (0, 1))
        np.testing.assert_array_equal(one.depth, other.depth)
        difference = one.image.astype(int) - other.image
        assert 0.5 < difference.std() < 10
        assert abs(difference.mean()) < 0.5
