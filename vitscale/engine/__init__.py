"""The DeepSpeed engine around an objective: start, step, sharded state. Nothing outside this package knows DeepSpeed."""

import os

import torch

# DeepSpeed looks for its device when it is imported, and prints about it where it was not told.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
