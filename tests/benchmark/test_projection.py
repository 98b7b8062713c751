"""Rigid transforms, ego poses, lenses and depth maps, on numbers worked out by hand."""

import math

import numpy as np
import pytest
from depthvlm.benchmark.sources.projection import EgoPoses, PinholeCamera, RigidTransform, depth_map, lidar_depth_map

QUARTER = math.sqrt(0.5)
LEFT_TURN = (QUARTER, 0, 0, QUARTER)  # 90 degrees about z: x becomes y


class TestRigidTransform:
    def test_quarter_turn_and_shift(self):
        turn = RigidTransform.from_quaternion(LEFT_TURN, (10, 20, 30))
        np.testing.assert_allclose(turn.apply([[1, 0, 0], [0, 2, 3]]), [[10, 21, 30], [8, 20, 33]], atol=1e-12)
        turn = RigidTransform.from_quaternion((0.3, -0.5, 0.7, 0.1), (1, 2, 3))
        points = np.arange(12.0).reshape(4, 3)
        np.testing.assert_allclose(turn.inverse().apply(turn.apply(points)), points, atol=1e-12)

    def test_the_right_one_comes_first(self):
        turn = RigidTransform.from_quaternion([3 * part for part in LEFT_TURN], (0, 0, 0))  # of any length
        np.testing.assert_allclose(turn.rotation, [[0, -1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-12)
        step = RigidTransform(np.eye(3), np.array([1.0, 0, 0]))
        np.testing.assert_allclose((turn @ step).apply([[0, 0, 0]]), [[0, 1, 0]], atol=1e-12)
        np.testing.assert_allclose((step @ turn).apply([[0, 0, 0]]), [[1, 0, 0]], atol=1e-12)

    def test_matrices_of_12_and_16_numbers(self):
        rows = [0, -1, 0, 5, 1, 0, 0, 6, 0, 0, 1, 7]
        for numbers in (rows, [*rows, 0, 0, 0, 1], np.reshape(rows, (3, 4))):
            np.testing.assert_allclose(RigidTransform.from_matrix(numbers).apply([[1, 0, 0]]), [[5, 7, 7]])
        mirror, none = np.diag([1, 1, -1, 1]), np.full((3, 4), np.nan)
        for matrix in (2 * np.eye(4), mirror, np.zeros(16), np.eye(4)[:2], none):
            with pytest.raises(ValueError, match=r"not a rotation|12 or 16 numbers"):
                RigidTransform.from_matrix(matrix)


class TestEgoPoses:
    START = 315_966_265_259_836_001  # nanoseconds: above 2**53, where float64 has every 64th

    def poses(self) -> EgoPoses:
        times = [self.START + 100, self.START]
        return EgoPoses(times, [LEFT_TURN, (1, 0, 0, 0)], [(8, 4, 0), (0, 0, 0)])

    @pytest.mark.parametrize(("after", "degrees", "place"), [(0, 0, 0), (25, 22.5, 2), (50, 45, 4), (100, 90, 8)])
    def test_between_two(self, after, degrees, place):
        pose = self.poses().at(self.START + after)
        angle = math.radians(degrees)
        np.testing.assert_allclose(pose.rotation[:2, 0], [math.cos(angle), math.sin(angle)], atol=1e-12)
        np.testing.assert_allclose(pose.translation, [place, place / 2, 0], atol=1e-12)

    def test_a_nanosecond_apart_and_the_short_way_round(self):
        poses = EgoPoses([self.START, self.START + 1], [(1, 0, 0, 0), LEFT_TURN], [(0, 0, 0), (1, 0, 0)])
        assert [poses.at(self.START + after).translation[0] for after in (0, 1)] == [0, 1]
        # The same rotation has two quaternions; between q and -q nothing turns.
        poses = EgoPoses([0, 2], [LEFT_TURN, [-part for part in LEFT_TURN]], np.zeros((2, 3)))
        np.testing.assert_allclose(poses.at(1).rotation[:, 0], [0, 1, 0], atol=1e-12)

    def test_outside_and_arrays_that_do_not_fit(self):
        for after in (-1, 101):
            with pytest.raises(ValueError, match=f"no pose at {self.START + after}"):
                self.poses().at(self.START + after)
        for times, poses, places in (([0, 1], 2, 3), ([], 0, 0)):
            with pytest.raises(ValueError, match=f"{len(times)} times"):
                EgoPoses(times, np.ones((poses, 4)), np.ones((places, 3)))


class TestPinholeCamera:
    CAMERA = PinholeCamera(100.0, 200.0, 50.0, 40.0, 101, 81)

    def test_by_hand(self):
        found = self.CAMERA.project(np.array([[1, -0.5, 2], [0, 0, 7], [1, 1, -1], [1, 1, 0]]))
        nan = [np.nan, np.nan]
        np.testing.assert_allclose(found, [[100, 50, *nan], [-10, 40, *nan], [2, 7, *nan]])
        # 130.125 and 0.1 as float16, which is not computed in; 0.0999755859375 / 130.125 * 100 is 0.0768305...
        columns, _, depth = self.CAMERA.project(np.array([[0.1, 0, 130.125]], np.float16))
        assert columns[0] == pytest.approx(50 + 9.99755859375 / 130.125, abs=1e-12)
        assert depth[0] == 130.125

    def test_lens_by_hand(self):
        # x = 0.5, y = 0.25: r2 = 0.3125, radial = 1 + 0.03125 + 0.0009765625 + 0.000030517578125
        camera = PinholeCamera(1000, 1000, 0, 0, 2000, 2000, (0.1, 0.01, 0.001, 0.002, 0.001))
        found = np.ravel(camera.project(np.array([[1.0, 0.5, 2.0]])))
        expected = 516.1285400390625 + 0.25 + 1.625, 258.06427001953125 + 0.4375 + 0.5, 2.0
        np.testing.assert_allclose(found, expected, atol=1e-9)

    def test_a_lens_does_not_fold(self):
        # r (1 - r2 / 3) rises up to r = 1 and falls beyond: what is at 1.2 would land at 0.624, inside of the image.
        camera = PinholeCamera(100, 100, 0, 0, 100, 100, (-1 / 3, 0, 0, 0, 0))
        assert camera.largest_radius_squared == pytest.approx(1)
        found = camera.project(np.array([[0.9, 0, 1], [1.2, 0, 1]]))
        np.testing.assert_allclose(found, [[65.7, np.nan], [0, np.nan], [1, 1]])
        for lens in ((0.1, 0.1, 0, 0, 0.1), (0, 0, 0.1, 0.1, 0)):  # that only widens
            assert PinholeCamera(1, 1, 0, 0, 1, 1, lens).largest_radius_squared == np.inf


class TestDepthMap:
    def test_the_nearest_stays(self):
        for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
            metres = np.array([5.0, 2.0, 9.0])[order]
            assert depth_map(np.full(3, 1.2), np.full(3, 0.9), metres, (3, 2)).tolist() == [[0, 0, 0], [0, 512, 0]]

    def test_borders_of_pixels(self):
        # The centre of the first pixel is at 0: it reaches from -0.5 up to 0.5, and the last of three up to 2.5.
        columns = np.array([-0.5, 0.49, 0.5, 2.49, -0.51, 2.5, np.nan, 0])
        rows = np.array([0, 1, 0, 1, 0, 0, 0, 1.5])
        metres = np.arange(1.0, 9)
        assert (depth_map(columns, rows, metres, (3, 2)) / 256).tolist() == [[1, 3, 0], [2, 0, 4]]

    def test_rounding_and_the_ends_of_the_scale(self):
        # 0.00195 m is 0.4992 units and stays out, 0.00196 m is 0.50176; 255.998 m is 65535.488, 255.9981 m 65535.51.
        metres = np.array([0.00195, 0.00196, 10.001, 10.002, 255.998, 255.9981, 300])
        row = depth_map(np.arange(7.0), np.zeros(7), metres, (7, 1))[0]
        assert row.tolist() == [0, 1, 2560, 2561, 65535, 0, 0]
        assert row.dtype == np.uint16
        assert depth_map(np.zeros(1), np.zeros(1), np.array([1.5]), (1, 1), scale=1000).tolist() == [[1500]]
        assert not depth_map(np.zeros(0), np.zeros(0), np.zeros(0), (4, 3)).any()

    def test_from_another_frame(self):
        # A lidar that looks along x with z up, half a metre above the camera: 10 m ahead, 1 m to the left.
        rotation = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])
        to_camera = RigidTransform(rotation, np.array([0.0, -0.5, 0.0]))
        depth = lidar_depth_map(np.array([[10, 1, 0]], np.float32), to_camera, PinholeCamera(20, 20, 4, 3, 9, 7))
        assert np.argwhere(depth).tolist() == [[2, 2]]
        assert depth[2, 2] == 2560
