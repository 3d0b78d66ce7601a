"""Hugging Face folders in, Hugging Face folders out, and the proof that both compute the same.

    python -m convert from-hf SRC OUT         a ModernBERT folder or Hub id -> a run at step 0
    python -m convert to-hf CHECKPOINT OUT    a run folder -> a folder that transformers loads
    python -m convert parity A B              do two folders give the same numbers, layer by layer
    python -m convert release CHECKPOINT OUT  a finished run -> a folder for the Hub, with its card
    python -m convert resize-vocab SRC OUT    words of a domain as tokens of a Hugging Face folder

Only safetensors are read and written: no pickle, no remote code.
"""

import os

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it misses PyTorch, which nothing here needs
