"""Chat templates in the formats that the families publish, and a tokenizer that reads any text."""

from __future__ import annotations

from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SMOLLM2 = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN25 = (
    "{%- set system = messages[0]['content'] if messages[0]['role'] == 'system' else 'You are Qwen.' %}"
    "{{- '<|im_start|>system\n' + system }}"
    "{%- if tools %}{{- '\n\n# Tools\n<tools>' }}{%- for t in tools %}{{- '\n' }}{{- t | tojson }}{%- endfor %}"
    "{{- '\n</tools>' }}{%- endif %}{{- '<|im_end|>\n' }}"
    "{%- for m in messages %}"
    "{%- if m['role'] == 'tool' %}{{- '<|im_start|>user\n<tool_response>\n' + m['content'] }}"
    "{{- '\n</tool_response><|im_end|>\n' }}"
    "{%- elif m['role'] != 'system' or not loop.first %}{{- '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{%- for c in m['tool_calls'] or [] %}{{- '\n<tool_call>\n' }}"
    "{{- {'name': c['function']['name'], 'arguments': c['function']['arguments']} | tojson }}"
    "{{- '\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
QWEN3 = (
    "{%- set ns = namespace(last=-1) %}"
    "{%- for m in messages %}{%- if m['role'] == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{{- '<|im_start|>' + m['role'] + '\n' }}"
    "{%- set content = m['content'] %}"
    "{%- if m['role'] == 'assistant' %}{%- set thought = '' %}{%- if '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{%- if loop.index0 > ns.last %}{{- '<think>\n' + thought + '\n</think>\n\n' }}{%- endif %}{%- endif %}"
    "{{- content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)
GEMMA3 = (
    "{{ bos_token }}{%- set first = '' %}{%- set rest = messages %}"
    "{%- if messages[0]['role'] == 'system' %}{%- set first = messages[0]['content'] + '\n\n' %}"
    "{%- set rest = messages[1:] %}{%- endif %}"
    "{%- for m in rest %}{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}"
    "{{ (first if loop.first else '') + (m['content'] | trim) }}{{ '<end_of_turn>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{%- endif %}"
)
LLAMA3 = (
    "{% for m in messages %}{% set text = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
    " + (m['content'] | trim) + '<|eot_id|>' %}{% if loop.first %}{% set text = bos_token + text %}{% endif %}"
    "{{ text }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{%- set system = '' %}{%- set rest = messages %}"
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] + '\n\n' %}"
    "{%- set rest = messages[1:] %}{%- endif %}{{- bos_token }}"
    "{%- for m in rest %}{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('After the optional system message, conversation roles must alternate') }}{%- endif %}"
    "{%- if m['role'] == 'user' %}{{- '[INST] ' + (system if loop.first else '') + m['content'] + '[/INST]' }}"
    "{%- else %}{{- ' ' + (m['content'] | trim) + eos_token }}{%- endif %}{%- endfor %}"
)
SPECIAL = {
    "smollm2": (SMOLLM2, "<|im_end|>"),
    "qwen2.5": (QWEN25, "<|im_end|>"),
    "gemma3": (GEMMA3, "<end_of_turn>"),
    "llama3": (LLAMA3, "<|eot_id|>"),
    "mistral": (MISTRAL, "</s>"),
    "none": (None, "</s>"),
}
"""Family -> its template, and the token that ends an answer."""
TOKENS = (
    *("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|start_header_id|>"),
    *("<|end_header_id|>", "<|eot_id|>", "[INST]", "[/INST]"),
)


@cache
def tokenizer_of(template: str | None) -> Any:
    """Bytes, two newlines as one token, and the special tokens of all families."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    newline = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("\n")[0][0]
    vocabulary = {byte: id_ for id_, byte in enumerate([*alphabet, 2 * newline])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[(newline, newline)]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=list(TOKENS[2:]),
    )
    tokenizer.chat_template = template
    return tokenizer
