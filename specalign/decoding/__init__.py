"""The speculative decoding engine: speaks token ids, knows no tokenizer.

from specalign.decoding import ModelDrafter, generate
result = generate(target, ModelDrafter(drafter), prompt_ids, gamma=4, max_new_tokens=64)
result.token_ids[0]
"""

from specalign.decoding.copying import WITHOUT_MODEL, PromptLookup, SuffixLookup
from specalign.decoding.draft_length import DraftCosts
from specalign.decoding.drafters import Drafter, ModelDrafter
from specalign.decoding.eagle import EagleDrafter
from specalign.decoding.generate import generate, stream
from specalign.decoding.head_stepper import HeadStepper, make_head_stepper
from specalign.decoding.hybrid import Hybrid, with_corpora
from specalign.decoding.options import Options
from specalign.decoding.parallel import ParallelDrafter, drafter_of
from specalign.decoding.records import Generation, Step
from specalign.decoding.stepper import Shapes, Stepper, make_stepper
from specalign.decoding.suffix_index import SuffixIndex
from specalign.decoding.verification import RULES
from specalign.models.mask_token import Masks

__all__ = [
    "RULES",
    "WITHOUT_MODEL",
    "DraftCosts",
    "Drafter",
    "EagleDrafter",
    "Generation",
    "HeadStepper",
    "Hybrid",
    "Masks",
    "ModelDrafter",
    "Options",
    "ParallelDrafter",
    "PromptLookup",
    "Shapes",
    "Step",
    "Stepper",
    "SuffixIndex",
    "SuffixLookup",
    "drafter_of",
    "generate",
    "make_head_stepper",
    "make_stepper",
    "stream",
    "with_corpora",
]
