"""Millions of images on a Ray cluster: sources, the plan of shards, the stages of the run, what is written.

It imports the predictor and the writers of single images, and not the command, the benchmark or the trainer.
"""
