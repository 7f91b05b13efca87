"""Named prompts: what is asked about a document.

Imports nothing heavy, because a config is resolved with it: the text itself stands in the written config.
"""

from __future__ import annotations

from specalign.errors import UserError

PLACE = "{document}"
PROMPTS = {
    "document": "{document}",
    "docstring": "Summarize this documentation in one sentence.\n\n{document}",
    "function": "Write the body of this Python function. Answer with code only.\n\n{document}",
    "article": "Summarize the following article in a few sentences.\n\n{document}",
    "one_sentence": "Summarize the following article in one sentence.\n\n{document}",
    "solve": "Solve this problem step by step. Give the final answer after ####.\n\n{document}",
    "to_german": "Translate the following text into German.\n\n{document}",
    "summarize": "summarize: {document}",
    "translate": "translate English to German: {document}",
    "tldr": "{document}\n\nTL;DR:",
    "question": "Question: {document}\nAnswer:",
}
"""First messages to a chat model, then T5's own task prefixes, then texts that a base model goes on with."""

OF_SOURCE = {
    "builtin:docstrings": "docstring",
    "builtin:functions": "function",
    "cnn_dailymail": "article",
    "xsum": "one_sentence",
    "gsm8k": "solve",
    "wmt": "to_german",
}
"""What is asked where the config names no prompt; elsewhere the document is the whole message."""


def prompt_text(prompt: str, source: str) -> str:
    """The text with ``{document}`` in it that ``prompt`` stands for: itself, a named one, or the source's own.

    Raises UserError for a text without its place that is no name either.
    """
    if PLACE in prompt:
        return prompt
    name = prompt or OF_SOURCE.get(source, "document")
    if name not in PROMPTS:
        raise UserError(
            f"the prompt has no {PLACE}: {prompt!r}; put it there, or name one of: {', '.join(PROMPTS)}"
        )
    return PROMPTS[name]
