"""No tasks of our own: lmms-eval demands that a package named in LMMS_EVAL_PLUGINS has this folder."""
