"""TRL's own command, as it is, on a DepthVLM checkpoint."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_checkpoint import save_toy_checkpoint
from toy_training import toy_dataset, toy_row

from depthvlm import DepthVLMForConditionalGeneration

# The package is hidden: the checkpoint's own code is all there is.
RUN = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "depthvlm":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
from trl.scripts.sft import main, make_parser
main(*make_parser().parse_args_and_config(fail_with_unknown_args=False))
"""


@pytest.mark.slow
def test_trl_sft_trains_the_text_and_leaves_the_head(tmp_path: Path) -> None:
    checkpoint = save_toy_checkpoint(tmp_path / "toy")
    data = toy_dataset([toy_row(i) for i in range(4)]).remove_columns(["depth", "depth_scale", "focal_length"])
    (tmp_path / "data").mkdir()
    data.to_parquet(tmp_path / "data" / "train.parquet")
    out = tmp_path / "out"
    options = {
        "model_name_or_path": checkpoint,
        "dataset_name": tmp_path / "data",
        "output_dir": out,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "max_length": 4096,
        "report_to": "none",
        "bf16": False,
        "save_strategy": "no",
        "dtype": "float32",
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    result = subprocess.run(
        [sys.executable, "-c", RUN, *arguments, "--trust_remote_code", "--use_cpu"],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")},
    )
    assert result.returncode == 0, result.stderr[-4000:]
    before, after = load_file(checkpoint / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    head = [name for name in before if name.startswith("depth_head.")]
    assert head
    assert all(torch.equal(before[name], after[name]) for name in head)
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    model = DepthVLMForConditionalGeneration.from_pretrained(out, dtype=torch.float32).eval()
    grid = torch.tensor([[1, 4, 4]])
    ids = torch.tensor([[model.config.vision_start_token_id] + 4 * [model.config.image_token_id]])
    depth = model.predict_depth(
        input_ids=ids,
        pixel_values=torch.randn(16, 1536),
        image_grid_thw=grid,
        mm_token_type_ids=(ids == model.config.image_token_id).int(),
    )
    assert depth[0].shape == (64, 64)
    assert (depth[0] > 0).all()
