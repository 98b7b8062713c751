"""Synthetic scenes: a renderer with exact depth, and dialogues about them. Imports no other room of the benchmark."""
