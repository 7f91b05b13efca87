"""Prompts and references: where examples come from, and how they become token ids."""

from specalign.data.examples import Columns, Example
from specalign.data.prompts import Conversing, Prompt, encode_prompts
from specalign.data.sources import load_examples, load_splits

__all__ = ["Columns", "Conversing", "Example", "Prompt", "encode_prompts", "load_examples", "load_splits"]
