"""The simple model that lmms-eval finds through LMMS_EVAL_PLUGINS=depthvlm.benchmark.lmms."""

AVAILABLE_MODELS = {"depthvlm": "DepthVLM"}  # module here, and class in it
