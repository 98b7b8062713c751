"""The position embeddings that nano begins with."""

from pathlib import Path

import init_nano
import torch
from depthvlm.modeling_depthvlm import DepthVLMForConditionalGeneration

# Two places at 1/4 and 3/4 of a side; waves of 1/2 and 8 times pi: sin, sin, cos, cos.
FIRST = [0.38268, 0.0, 0.92388, 1.0]  # of pi / 8 and 2 pi
SECOND = [0.92388, 0.0, 0.38268, 1.0]  # of 3 pi / 8 and 6 pi


def test_positions_are_waves_of_the_row_then_of_the_column() -> None:
    waves = init_nano.position_waves(2, 8)
    expected = [FIRST + FIRST, FIRST + SECOND, SECOND + FIRST, SECOND + SECOND]
    torch.testing.assert_close(waves, torch.tensor(expected), rtol=0, atol=1e-5)


def test_an_untrained_nano_has_them(tmp_path: Path) -> None:
    init_nano.main(tmp_path)
    model = DepthVLMForConditionalGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(model.model.visual.pos_embed.weight.detach(), init_nano.position_waves(16, 128))
