"""`import depthvlm` makes transformers' Auto classes know DepthVLM, whichever comes first; by itself it is light."""

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
import sys
assert not any(type(finder).__name__ == "_AutoClassesFinder" for finder in sys.meta_path)
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
        "from depthvlm.modeling_depthvlm.silog import silog_loss",
        "import depthvlm.inference",
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


def test_import_alone_is_light_and_leaves_the_import_system_as_it_was_for_others():
    code = """
import sys, depthvlm
assert not {"torch", "transformers", "numpy"} & set(sys.modules)
import importlib.util
spec = importlib.util.find_spec("transformers")
assert type(spec.loader).__name__ == "SourceFileLoader" and spec.loader.get_source("transformers")
assert importlib.util.find_spec("depthvlm.no_such_module") is None
try:
    import transformers.no_such_module
except ModuleNotFoundError:
    pass
depthvlm.Prediction  # needs no model code
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_registration_that_fails_warns_and_leaves_transformers_usable():
    code = """
import sys, warnings, depthvlm
sys.modules["depthvlm.modeling_depthvlm"] = None  # as if it could not be imported
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from transformers import AutoConfig
assert AutoConfig.for_model("qwen3_vl").model_type == "qwen3_vl"
assert any("could not register" in str(warning.message) for warning in caught)
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
