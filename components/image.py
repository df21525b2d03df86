"""The image that every step runs in where none is named: who compiles for a cluster names one (`pipelines.compiled`)."""

IMAGE = "cotrain-python:0.1.0"
