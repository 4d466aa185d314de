"""Prompts for text-to-video models whose clips can be judged without a person or a model.

`shapes.py`: one coloured shape does one thing on a plain ground. numpy alone.
"""
