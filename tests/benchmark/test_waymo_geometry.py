"""Waymo's range images and rolling shutters by hand and by its own numbers."""

import numpy as np
import pytest
from depthvlm.benchmark.sources.projection import RigidTransform, even_beams, sweep_points
from depthvlm.benchmark.sources.waymo import project_shot
from depthvlm.benchmark.sources.waymo_files import WaymoCamera, WaymoShot
from waymo_files import shift

IDENTITY = RigidTransform.from_matrix(np.eye(4))


def points(ranges, beams, mount=None, poses=None, pose=None) -> np.ndarray:
    mount, pose = (IDENTITY if one is None else RigidTransform.from_matrix(one) for one in (mount, pose))
    return sweep_points(np.array(ranges, np.float32), np.array(beams), mount, pose, poses)


def turned_mount() -> np.ndarray:
    mount = shift(1, 0, 2)
    mount[:2, :2] = [[0, -1], [1, 0]]
    return mount


def pixel_poses(roll, pitch, yaw, *place) -> np.ndarray:
    poses = np.zeros((1, 3, 6), np.float32)
    poses[0, 1] = [roll, pitch, yaw, *place]
    return poses


HALF, QUARTER, MIDDLE = np.sqrt(0.5), np.pi / 2, ([[0, 5, 0]], [0.0])


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        # Columns go clockwise from behind: four of them are 135, 45, -45, -135 degrees.
        (points([[1, 2, 3, 0]], [0.0]), [[-HALF, HALF, 0], [2 * HALF, 2 * HALF, 0], [3 * HALF, -3 * HALF, 0]]),
        # The first row is the highest beam.
        (points([[0, 2, 0], [0, 2, -1]], [-np.pi / 6, np.pi / 3]), [[1, 0, np.sqrt(3)], [np.sqrt(3), 0, -1]]),
        # A lidar that is mounted turned by 90 degrees, 2 m up: its middle column still looks along the vehicle's x.
        (points(*MIDDLE, turned_mount()), [[6, 0, 2]]),
        # Poses of pixels are roll, pitch, yaw, x, y, z. Yaw alone:
        (points(*MIDDLE, poses=pixel_poses(0, 0, QUARTER, 100, 200, 3), pose=shift(9, 9, 9)), [[100, 205, 3]]),
        # Rz(90) Ry(90) Rx(90) takes x to -z: of (5, 2, 0), Rx -> (5, 0, 2), Ry -> (2, 0, -5), Rz -> (0, 2, -5).
        (points(*MIDDLE, shift(0, 2, 0), pixel_poses(*[QUARTER] * 3, 100, 200, 3)), [[100, 202, -2]]),
        (points(*MIDDLE, pose=shift(7, 8, 9)), [[12, 8, 9]]),  # without poses of pixels
        (even_beams(-1.0, 1.0, 4), [-0.75, -0.25, 0.25, 0.75]),
    ],
)
def test_range_images(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="1 rows with 2 beams"):
        points([[1, 2]], [0.0, 0.1])
    with pytest.raises(ValueError, match=r"poses \(1, 3, 6\)"):
        points([[1, 2]], [0.0], poses=np.zeros((1, 3, 6), np.float32))


class TestCameraModel:
    """The numbers in the tests of Waymo's own camera model (waymo-open-dataset, wdl_limited/camera)."""

    INTRINSICS = (2055.55614936, 2055.55614936, 939.657469886, 641.072182194, 0.032316008498, -0.321412482553)
    INTRINSICS += (0.000793258395371, -0.000625749354133, 0.0)
    MOUNT = (
        *(0.999892684989, -0.00599320840002, 0.0133678704017, 1.53891424471),
        *(0.00604223652133, 0.999975156055, -0.0036302411765, -0.0236339408393),
        *(-0.0133457814992, 0.00371062343188, 0.999904056092, 2.11527057298),
    )
    POSE = (
        *(-0.913574384152, -0.406212760482, -0.0193141875914, -4069.03497872),
        *(0.406637479491, -0.913082565675, -0.0304333457449, 11526.3118079),
        *(-0.00527303457417, -0.0356569976572, 0.999350175676, 86.504),
    )

    def project(self, point, readout):
        camera = WaymoCamera(self.INTRINSICS, RigidTransform.from_matrix(self.MOUNT), 1920, 1280, readout)
        shot = WaymoShot(
            image=b"",
            world_from_vehicle=RigidTransform.from_matrix(self.POSE),
            velocity=np.array([-3.3991382122, 1.50920391083, -0.0169006548822]),
            spin=np.array([0.00158374733292, 0.00212493073195, -0.0270753838122]),
            pose_time=1553640277.26,
            shutter=0.000424383993959,
            trigger_time=1553640277.23,
            readout_done_time=1553640277.28,
        )
        columns, rows, depth = project_shot(np.array([point]), camera, shot)
        return [(column + 0.5, row + 0.5, metres) for column, row, metres in zip(columns, rows, depth, strict=True)]

    def test_global_shutter(self):
        (found,) = self.project((-4091.97180, 11527.48092, 84.46586), 5)
        assert found == pytest.approx((100, 1000, 20), abs=1e-3)

    def test_rolling_shutter(self):
        (found,) = self.project((-4091.88016, 11527.42299, 84.46667), 2)
        assert found == pytest.approx((100, 1000, 20), abs=0.01)
        # Waymo's test gives this one its velocity of (1, 2, 0.1) m/s, and the time -0.0272851 s at which it is seen.
        moved = np.array([-4091.88016, 11527.42299, 84.46667]) - 0.0272851 * np.array([1, 2, 0.1])
        (found,) = self.project(moved, 2)
        assert found[:2] == pytest.approx((94.114, 1000), abs=0.1)
        assert found[2] == pytest.approx(20.00349, abs=1e-3)

    def test_behind_the_camera(self):
        assert self.project((-4091.97180 + 200, 11527.48092, 84.46586), 2) == []

    @pytest.mark.parametrize(("readout", "seconds"), [(1, 0.25), (2, 0.75), (3, 0.75), (4, 0.25), (0, 0.5), (5, 0.5)])
    def test_directions_of_readout(self, readout, seconds):
        # The vehicle drives 1 m/s ahead and passes its pose at 0.5 s; the image is read from 0 to 1 s. A far point is
        # seen at three quarters of the width and a quarter of the height, 1000 m away then, at that part of a second.
        camera = WaymoCamera((100, 100, 50, 50, 0, 0, 0, 0, 0), IDENTITY, 100, 100, readout)
        shot = WaymoShot(b"", IDENTITY, np.array([1.0, 0, 0]), np.zeros(3), 10.5, 0.0, 10.0, 11.0)
        _, _, depth = project_shot(np.array([[1000.0, -250, 250]]), camera, shot)
        assert depth[0] == pytest.approx(1000.5 - seconds, abs=1e-3)
