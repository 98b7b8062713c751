"""The real samples, brought into their datasets' layouts for the report on nano: the numbers that come with them."""

import numpy as np
import pytest
from conftest import REPOSITORY
from depthvlm.benchmark.sources import open_source


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("source", "frames", "metres"),
    [
        ("scannetpp", 12, (0.586, 2.045, 7.652)),
        ("sunrgbd", 2, (0.640, None, 3.783)),
        ("ibims1", 25, (0.631, 2.789, 16.345)),
        ("nyuv2", 3, (0.713, None, 8.266)),
        ("kitti", 3, (5.129, None, None)),  # up to 84.895 m, of which 80 count
    ],
)
def test_numbers_of_the_samples(shared, tmp_path, monkeypatch, source, frames, metres):
    monkeypatch.syspath_prepend(REPOSITORY / "scripts" / "docs")
    from sample_layouts import arrange

    root, split = arrange(shared / "data", source, tmp_path / source)
    reader = open_source(source, root)
    refs = reader.index(split)
    assert len(refs) == frames
    depth = [reader.read(ref).metres(reader.depth_range) for ref in refs]
    every = np.concatenate([one[one > 0] for one in depth])
    found = (every.min(), np.median(every), every.max())
    for value, expected in zip(found, metres, strict=True):
        assert expected is None or value == pytest.approx(expected, abs=1e-3)
