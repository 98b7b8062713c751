"""An empty folder of tasks, which lmms-eval requires of a package named in LMMS_EVAL_PLUGINS."""
