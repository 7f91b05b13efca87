"""The speculative decoding engine: speaks token ids, knows no tokenizer.

from specalign.decoding import ModelDrafter, generate
result = generate(target, ModelDrafter(drafter), prompt_ids, gamma=4, max_new_tokens=64)
result.token_ids[0]
"""

from specalign.decoding.draft_length import Adaptive
from specalign.decoding.drafters import Drafter, ModelDrafter, PromptLookup
from specalign.decoding.generate import generate, stream
from specalign.decoding.records import Generation, Step
from specalign.decoding.stepper import Shapes, Stepper, make_stepper
from specalign.decoding.verification import RULES

__all__ = [
    "RULES",
    "Adaptive",
    "Drafter",
    "Generation",
    "ModelDrafter",
    "PromptLookup",
    "Shapes",
    "Step",
    "Stepper",
    "generate",
    "make_stepper",
    "stream",
]
