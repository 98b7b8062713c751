"""Evaluation: protocols, metrics, and the runner that scores a system on a set. May import build and systems."""
