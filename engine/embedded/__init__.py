"""The embedded model: stdlib-4m, a trained 4.2 M-parameter Llama checkpoint shipped as package data.

Only locates files; nothing is loaded here. The code that made it is in `training/`.
"""

from __future__ import annotations

from pathlib import Path

NAME = "stdlib-4m"
CHECKPOINT = Path(__file__).parent / NAME
HELD_OUT_TEXT = CHECKPOINT / "valid.txt"
QUESTIONS = CHECKPOINT / "qa.jsonl"
HELD_OUT_NAMES = CHECKPOINT / "valid_names.json"
