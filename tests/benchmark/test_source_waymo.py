"""Waymo in both native forms: range images and rolling shutters by hand, and what Waymo itself computed."""

import io
import pickle

import numpy as np
import pytest
from depthvlm.benchmark.sources.frames import FrameError, SourceError
from depthvlm.benchmark.sources.projection import RigidTransform
from depthvlm.benchmark.sources.waymo import Waymo, project_shot
from depthvlm.benchmark.sources.waymo_files import SCHEMA, message_classes, read_record, record_moment, record_places
from PIL import Image
from pyarrow import parquet
from toy_source_files import check_frame, jpeg, no_index, refuses, spoils
from waymo_files import SIZE, Camera, Lidar, Moment, frame_record, shift, write_parquet, write_records

SEGMENT = "1024_3580_000_3600_000"

# Three columns look at 120, 0 and -120 degrees, so the middle one straight ahead.
AHEAD = [[0, 20.0, 0]]


def top(ranges=AHEAD, beams=(0.0,), mount=None, pose=(0, 0, 0, 0, 0, 0)) -> Lidar:
    poses = np.broadcast_to(np.array(pose, np.float32), (*np.shape(ranges), 6))
    return Lidar(1, ranges, shift(0, 0, 0) if mount is None else mount, beams, poses=poses)


def write(root, *moments, split="validation", name=f"segment-{SEGMENT}_with_camera_labels"):
    write_records(root / split / f"{name}.tfrecord", [frame_record(moment) for moment in moments])
    return Waymo(root)


def read(source, number=0, camera="FRONT"):
    return source.read(next(r for r in source.index("test") if (r.order, r.camera) == (number, camera)))


AT_SIX = {"pose": shift(6, 0, 0)}
RIGHT = {"name": 3, "mount": shift(0, -1, 0), "readout": 2}


class TestBothForms:
    MOMENTS = (
        Moment(
            [Camera(**AT_SIX), Camera(**RIGHT, **AT_SIX, velocity=(20, 0, 0), times=(5.0, 0.0, 4.9, 5.1))],
            # The top lidar measured when the vehicle was at 5; the front one is given at the frame's pose, at 5.5.
            [
                top([[0, 20.0, 0], [0, 0, 0], [0, 30.0, 0]], (-0.05, 0, 0.05), pose=(0, 0, 0, 5, 0, 0)),
                Lidar(2, AHEAD, limits=(-0.2, 0.2)),
            ],
            pose=shift(5.5, 0, 0),
        ),
        Moment(
            [Camera(), Camera(**RIGHT)],
            [top([[0, 0, 0], *AHEAD, [0, 0, 0]], (-0.05, 0, 0.05), pose=(0, 0, 0, 1, 0, 0))],
            time=1553735853562203,
        ),
    )

    @pytest.fixture
    def sources(self, tmp_path):
        # The order of rows is not that of time in the native files either.
        write_parquet(tmp_path / "v2" / "validation", SEGMENT, list(self.MOMENTS))
        file = tmp_path / "v2" / "validation" / "camera_image" / f"{SEGMENT}.parquet"
        parquet.write_table(parquet.read_table(file)[::-1], file)
        return write(tmp_path / "v1", *self.MOMENTS), Waymo(tmp_path / "v2")

    @pytest.mark.parametrize("form", [0, 1], ids=["records", "components"])
    def test_by_hand(self, form, sources):
        frame = read(sources[form])
        # The upper beam (0.05 rad): 20 cos, 20 sin, seen from 1 m further on; the lower one: 30 m. The front lidar's
        # point is at 25.5, 19.5 m before the camera, in the middle.
        upper, lower = 20 * np.cos(0.05) - 1, 30 * np.cos(0.05) - 1
        rows = [round(32 - 80 * 20 * np.sin(0.05) / upper), round(32 + 80 * 30 * np.sin(0.05) / lower)]
        assert sorted(map(tuple, np.argwhere(frame.depth).tolist())) == sorted([(rows[0], 48), (rows[1], 48), (32, 48)])
        assert frame.depth[rows, 48].tolist() == [round(256 * upper), round(256 * lower)]
        assert frame.depth[32, 48] == 19.5 * 256
        check_frame(frame, jpeg(SIZE), SIZE, SIZE[::-1], (80, 80, 48.5, 32.5))
        # At the second moment the point is at 1 + 20.
        assert read(sources[form], 1).depth[32, 48] == 21 * 256

    def test_the_same_frames(self, sources):
        records, components = ({ref.id: ref for ref in source.index("test")} for source in sources)
        assert list(components) == [
            f"{SEGMENT}/{n:03d}/{camera}" for n in (0, 1) for camera in ("FRONT", "FRONT_RIGHT")
        ]
        # Records do not say which cameras they have until they are read: all five are listed.
        assert set(components) < set(records)
        for name in components:
            first, second = sources[0].read(records[name]), sources[1].read(components[name])
            np.testing.assert_array_equal(first.depth, second.depth)
            assert first.depth.any()
            assert (first.image, first.intrinsics, first.ref) == (second.image, second.intrinsics, second.ref)
        for refs in (records, components):
            assert pickle.loads(pickle.dumps(refs)) == refs

    def test_the_lens(self, tmp_path):
        lens = (80.0, 80.0, 48.5, 32.5, 0.2, 0.0, 0.0, 0.0, 0.0)
        frame = read(write(tmp_path, Moment([Camera(intrinsics=lens, mount=shift(0, 8, 0))], [top()])))
        # 8 m to the right at 20 m: x = 0.4, x (1 + 0.2 * 0.16) = 0.4128: column 48 + 33.02, where a pinhole has 80.
        assert np.argwhere(frame.depth).tolist() == [[32, 81]]
        assert frame.intrinsics == (80, 80, 48.5, 32.5)


class TestBadFiles:
    def test_roots_and_splits(self, tmp_path):
        no_index(r"expected the folder training/ or validation/ .*segment-\*\.tfrecord", Waymo, tmp_path)
        (tmp_path / "training").mkdir()
        no_index("the test split needs .*validation", Waymo, tmp_path)
        no_index("'train' has no frames", Waymo, tmp_path, "train")

    def test_record_files(self, tmp_path):
        source = write(tmp_path, GOOD, GOOD)
        file = tmp_path / "validation" / f"segment-{SEGMENT}_with_camera_labels.tfrecord"
        file.write_bytes(file.read_bytes()[:-500])
        assert read(source, 0).depth.any()
        with pytest.raises(FrameError, match=r"tfrecord, record 1: truncated"):
            read(source, 1)
        damaged = r"tfrecord is damaged, or no TFRecord file"
        steps = [(file.name, content, damaged) for content in (b"", b"\x89PNG\r\n" * 30, b"\0" * 40, b"123")]
        spoils(lambda: source.index("test"), file.parent, *steps, error=SourceError)

    @pytest.mark.parametrize(
        ("moment", "words"),
        [
            (Moment([Camera(image=jpeg(SIZE)[:-30])], [top()]), "the image is truncated"),
            (Moment([Camera(image=b"no picture")], [top()]), "record 0, FRONT: not an image that Pillow can read"),
            (Moment([Camera(size=(90, 64))], [top()]), "96x64 pixels, but its calibration says 90x64"),
            (Moment([Camera()], []), "no lidar returns"),
            (Moment([Camera(2)], [top()]), "no image or no calibration of the camera FRONT"),
            (Moment([Camera(intrinsics=(1.0, 2.0))], [top()]), "a camera calibration of 2 numbers, not 9"),
            (Moment([Camera(mount=2 * np.eye(4))], [top()]), "not a rotation"),
            (Moment([Camera()], [top(beams=(0.0, 0.1))]), "1 rows with 2 beams"),
        ],
    )
    def test_frames(self, tmp_path, moment, words):
        refuses(write(tmp_path, moment), words)

    def test_damage_inside_a_record(self, tmp_path):
        record = bytearray(frame_record(GOOD))
        record[-150:-100] = bytes(50)
        write_records(tmp_path / "validation" / "a.tfrecord", [bytes(record)])
        refuses(Waymo(tmp_path), r"a\.tfrecord, record 0: truncated, or not what was expected")

    def test_components(self, tmp_path):
        folder, file = tmp_path / "validation", f"{SEGMENT}.parquet"
        write_parquet(folder, SEGMENT, [GOOD])
        source = Waymo(tmp_path)
        for name in ("lidar", "vehicle_pose", "lidar_calibration"):
            whole_file = (folder / name / file).read_bytes()
            cut, gone = f"segment {SEGMENT} at 1553735853462203: truncated", f"{name}/{file}"
            spoils(lambda: read(source), folder / name, (file, 0.5, cut), (file, None, gone))
            (folder / name / file).write_bytes(whole_file)
        assert read(source).depth.any()
        (folder / "lidar_pose").rename(folder / "lidar_hkp")
        no_index("expected the component lidar_pose/ in .*validation", Waymo, tmp_path)
        (folder / "lidar_hkp").rename(folder / "lidar_pose")
        (folder / "camera_image" / file).write_bytes(b"PAR1")
        no_index(r"camera_image.*parquet is damaged", Waymo, tmp_path)


GOOD = Moment([Camera()], [top()])


@pytest.mark.real_data
class TestSample:
    """One frame without its lidar; its labels were projected by Waymo's own camera model."""

    @pytest.fixture
    def file(self, shared):
        return shared / "data" / "waymo" / "pvps_data_one_frame.tfrecord"

    @pytest.fixture
    def frame(self, file):
        (place,) = record_places(file)
        return read_record(file, *place)

    @pytest.fixture
    def labels(self, frame):
        box = {"x": 1, "y": 2, "z": 3, "width": 4, "length": 5, "height": 6, "heading": 7}
        more = {
            "Frame": f"{SCHEMA['Frame']} laser_labels=6:Label* projected_lidar_labels=9:CameraLabels*",
            "CameraLabels": "name=1:int32 labels=2:Label*",
            "Label": "box=1:Box id=4:string",
            "Box": " ".join(f"{name}={number}:double" for name, number in box.items()),
        }
        return message_classes(SCHEMA | more)["Frame"].FromString(frame.SerializeToString())

    def boxes(self, labels) -> dict[str, list[float]]:
        """Of each laser label: centre x, y, z, width, length, height, heading, in the vehicle's frame."""
        names = ("x", "y", "z", "width", "length", "height", "heading")
        return {label.id: [getattr(label.box, name) for name in names] for label in labels.laser_labels}

    def test_images_and_calibration(self, frame):
        cameras, shots = record_moment(frame).cameras, record_moment(frame).shots
        assert sorted(cameras) == sorted(shots) == [1, 2, 3, 4, 5]
        assert cameras[1].intrinsics[0] == pytest.approx(2044.5, abs=0.05)
        for number, shot in shots.items():
            size = (1920, 1280 if number <= 3 else 886)
            assert (cameras[number].width, cameras[number].height) == size
            with Image.open(io.BytesIO(shot.image)) as image:
                image.load()
                assert image.size == size

    def test_box_centres_in_view(self, frame, labels):
        # 75 boxes, 12 of whose centres fall in FRONT at 8.0 to 67.4 m. The bare polynomial of the lens would fold five
        # more into the image, from beyond 50 degrees.
        boxes = np.array(list(self.boxes(labels).values()))[:, :3]
        assert len(boxes) == 75
        pose = RigidTransform.from_matrix(frame.pose.transform)
        moment = record_moment(frame)
        columns, rows, depth = project_shot(pose.apply(boxes), moment.cameras[1], moment.shots[1])
        seen = (columns >= -0.5) & (columns < 1919.5) & (rows >= -0.5) & (rows < 1279.5)
        assert np.count_nonzero(seen) == 12
        assert (depth[seen].min(), depth[seen].max()) == pytest.approx((8.0, 67.4), abs=0.06)

    def test_labels_that_waymo_projected(self, frame, labels):
        boxes, moment = self.boxes(labels), record_moment(frame)
        cameras, shots = moment.cameras, moment.shots
        pose = RigidTransform.from_matrix(frame.pose.transform)
        corners = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
        errors = []
        for camera in labels.projected_lidar_labels:
            number = camera.name
            width, height = cameras[number].width, cameras[number].height
            for label in camera.labels:
                x, y, z, wide, long, high, heading = boxes[label.id.rsplit("_FRONT")[0].rsplit("_SIDE")[0]]
                turn = np.array(
                    [[np.cos(heading), -np.sin(heading), 0], [np.sin(heading), np.cos(heading), 0], [0, 0, 1]]
                )
                points = pose.apply(corners * [long, wide, high] @ turn.T + [x, y, z])
                columns, rows, _ = project_shot(points, cameras[number], shots[number])
                rectangle = [label.box.x, label.box.y, label.box.length, label.box.width]
                left, upper = rectangle[0] - rectangle[2] / 2, rectangle[1] - rectangle[3] / 2
                right, lower = rectangle[0] + rectangle[2] / 2, rectangle[1] + rectangle[3] / 2
                # A rectangle at the border was cut off there.
                if left > 1 and upper > 1 and right < width - 1 and lower < height - 1:
                    found = [columns.min(), rows.min(), columns.max(), rows.max()]
                    errors.append(np.array(found) + 0.5 - [left, upper, right, lower])
        assert len(errors) >= 40
        # Without the lens they differ by up to 7.8 pixels.
        assert np.abs(errors).max() < 0.25

    def test_a_copy_without_lidar(self, file, tmp_path):
        (tmp_path / "validation").mkdir()
        (tmp_path / "validation" / f"segment-{SEGMENT}_with_camera_labels.tfrecord").symlink_to(file)
        source = Waymo(tmp_path)
        cameras = "FRONT FRONT_LEFT FRONT_RIGHT SIDE_LEFT SIDE_RIGHT"
        assert [ref.camera for ref in source.index("test")] == cameras.split()
        with pytest.raises(FrameError, match="no lidar returns: this copy of the data has its lidar left out"):
            read(source)
