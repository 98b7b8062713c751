"""Found by lmms-eval through LMMS_EVAL_PLUGINS=depthvlm.benchmark.lmms, which knows simple models only."""

AVAILABLE_MODELS = {"depthvlm": "DepthVLM"}  # module here, and class in it
