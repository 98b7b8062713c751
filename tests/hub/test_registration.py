"""`import depthvlm` makes transformers' Auto classes know DepthVLM, whichever comes first; the command is light."""

import subprocess
import sys
from importlib.metadata import version

import pytest

import depthvlm

REGISTERED = """
from transformers import AutoConfig, AutoModel, AutoModelForDepthEstimation, AutoModelForImageTextToText
from transformers import AutoImageProcessor, AutoProcessor
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
config_class = type(AutoConfig.for_model("depthvlm"))
for auto in (AutoModel, AutoModelForImageTextToText, AutoModelForDepthEstimation):
    assert config_class in auto._model_mapping, auto
assert config_class in PROCESSOR_MAPPING and config_class in IMAGE_PROCESSOR_MAPPING
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import depthvlm; from transformers import AutoModel",
        "from transformers import AutoModel; import depthvlm",
        "import transformers, depthvlm; from transformers import pipeline",
        # the Auto classes are imported in the middle of these, and Qwen3-VL's modules are of those that we import
        "import depthvlm; from transformers.models.qwen3_vl import modeling_qwen3_vl",
        "import depthvlm; import transformers.modeling_layers",
        # and in the middle of our own
        "from depthvlm.modeling_depthvlm.losses_depthvlm import silog_loss",
        "import sys; sys.argv = ['depthvlm']; import depthvlm.inference",  # in the command
    ],
)
def test_auto_classes_are_registered(imports):
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", imports + "\n" + REGISTERED],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_import_system_and_transformers_stay_as_they_were():
    code = """
import sys, threading, importlib
finders, hooks = list(sys.meta_path), list(sys.path_hooks)
import depthvlm
assert [f for f in sys.meta_path if f not in finders and type(f).__module__.startswith("depthvlm")] == []
assert sys.path_hooks == hooks
failed = []
def run(name):
    try:
        importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    except BaseException as error:
        failed.append((name, repr(error)))
threads = [threading.Thread(target=run, args=(name,)) for name in ("llama", "bert", "vit", "dpt", "qwen3", "qwen2_vl")]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert not failed, failed
for name in ("depthvlm", "depthvlm._registration", "transformers.models.dpt.modeling_dpt"):
    importlib.reload(importlib.import_module(name))
from transformers import AutoConfig
assert AutoConfig.for_model("depthvlm").model_type == "depthvlm"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there():
    assert set(depthvlm.__all__) == {*depthvlm._MODULES, "__version__"}
    for name in depthvlm.__all__:
        assert getattr(depthvlm, name) is not None
    assert set(depthvlm.__all__) <= set(dir(depthvlm))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        depthvlm.nothing  # noqa: B018


def test_the_version_is_that_of_the_distribution():
    assert depthvlm.__version__ == version("depthvlm")
