"""`import depthvlm` makes transformers' Auto classes know DepthVLM, whichever comes first; the command is light."""

import json
from importlib.metadata import version

import pytest
from fresh import python

import depthvlm

ORDERS = [
    "import depthvlm; from transformers import AutoModel",
    "from transformers import AutoModel; import depthvlm",
    "import transformers, depthvlm; from transformers import pipeline",
    # the Auto classes are imported in the middle of these, and Qwen3-VL's modules are of those that we import
    "import depthvlm; from transformers.models.qwen3_vl import modeling_qwen3_vl",
    "import depthvlm; import transformers.modeling_layers",
    # and in the middle of our own
    "from depthvlm.modeling_depthvlm.losses_depthvlm import silog_loss",
    "import sys; sys.argv = ['depthvlm']; import depthvlm.inference",  # in the command
]
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
UNCHANGED = """
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
for name in ("depthvlm", "transformers.models.dpt.modeling_dpt"):
    importlib.reload(importlib.import_module(name))
from transformers import AutoConfig
assert AutoConfig.for_model("depthvlm").model_type == "depthvlm"
"""
# What is slow to import and knows nothing of transformers is imported once; each script then has a process of its own.
FORKED = """
import json, os, sys, traceback
import scipy.optimize, torch._dynamo, torch.distributed.checkpoint, torch.distributed.tensor, torch.export
assert not [name for name in sys.modules if name.split(".")[0] in ("transformers", "depthvlm")]
for script in json.loads(sys.argv[1]):
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            exec(script, {"__name__": "__main__"})
            said = ""
        except BaseException:
            said = traceback.format_exc()[-2000:]
        os.write(writing, (said or "fine").encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        print(json.dumps(pipe.read()))
    os.wait()
"""


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    """The end of each script in a fresh process: "fine", or its traceback."""
    scripts = [*(f"{imports}\n{REGISTERED}" for imports in ORDERS), UNCHANGED]
    done = python("-W", "error::RuntimeWarning", "-c", FORKED, json.dumps(scripts))
    return dict(zip([*ORDERS, UNCHANGED], map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("imports", ORDERS)
def test_auto_classes_are_registered(outcomes, imports):
    assert outcomes[imports] == "fine"


def test_the_import_system_and_transformers_stay_as_they_were(outcomes):
    assert outcomes[UNCHANGED] == "fine"


def test_every_public_name_is_there():
    assert set(depthvlm.__all__) == {*depthvlm._MODULES, "__version__"}
    for name in depthvlm.__all__:
        assert getattr(depthvlm, name) is not None
    assert set(depthvlm.__all__) <= set(dir(depthvlm))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        depthvlm.nothing  # noqa: B018


def test_the_version_is_that_of_the_distribution():
    assert depthvlm.__version__ == version("depthvlm")
