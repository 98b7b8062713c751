"""Depth models and VLMs that the benchmark scores, by name. May import `depthvlm` outside the benchmark alone."""

from __future__ import annotations

from .availability import can_run
from .interface import PredictorError, System
from .registry import PREFIXES, SYSTEMS, find_system, make_predictor

__all__ = ["PREFIXES", "SYSTEMS", "PredictorError", "System", "can_run", "find_system", "make_predictor"]
