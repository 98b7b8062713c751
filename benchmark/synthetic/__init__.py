"""Synthetic scenes: a renderer with exact depth, and dialogues about them. Imports no other room of the benchmark."""

from .samples import HELD_OUT, draw_scene, held_out_questions, training_rows
from .scenes import MAX_DEPTH, SceneObject, SyntheticScene, render_scene

__all__ = [
    "HELD_OUT",
    "MAX_DEPTH",
    "SceneObject",
    "SyntheticScene",
    "draw_scene",
    "held_out_questions",
    "render_scene",
    "training_rows",
]
