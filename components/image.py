"""The image that every step runs in."""

import os

IMAGE = os.environ.get("COTRAIN_IMAGE", "cotrain-python:0.1.0")
