"""Chat templates that behave like those of well-known models, in as few words as it takes."""

QWEN3_LIKE = (
    "{%- set ns = namespace(last=0) %}{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}"
    "{%- endif %}{%- endfor %}{%- for m in messages %}{%- set content = m.content if m.content is string else '' %}"
    "{{- '<|im_start|>' + m.role + '\\n' }}{%- if m.role == 'assistant' and loop.index0 > ns.last %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{{- content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""Renders content that is no string as nothing; an empty thought before the last answer, none before earlier ones."""

TURNS = (
    "{{ bos_token }}{% for m in messages %}{{ '<turn>' + m.role + '\\n' + m.content | trim + '<end>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>assistant\\n' }}{% endif %}"
)
"""Like Gemma's: turns end in a token that is not the tokenizer's eos."""

NO_SYSTEM_ROLE = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TURNS
DROPS_SYSTEM = TURNS.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")

INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
"""Like Mistral's: no generation prompt, answers end in eos; the system turn is dropped."""

SYSTEM_IN_LAST_USER_TURN = (
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '[INST]' }}{% if m == (messages | selectattr('role', 'equalto', 'user') | list | last) %}"
    "{{ system + ' ' if system }}{% endif %}{{ m.content + '[/INST]' }}{% elif m.role == 'assistant' %}"
    "{{ m.content + eos_token }}{% endif %}{% endfor %}"
)

THINKS_FIRST = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)
"""Like DeepSeek-R1's: asks with an opened thought that it does not write for given answers."""

ENDS_TWICE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}"
    "{{ '<|assistant|>\\n' if add_generation_prompt else eos_token }}"
)
"""Like Phi-3's: an end after each turn, and eos after the last."""

ENDS_DIFFER = (
    "{% for m in messages %}{{ '<|start|>' + m.role + '<|message|>' + m.content }}"
    "{{ '<|return|>' if loop.last and m.role == 'assistant' else '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
"""Like gpt-oss's: the last answer ends in another token than those before it."""

NO_END = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

SKIPS_NUMBERS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if not m.content[0] in '0123456789' %}{{ m.content }}"
    "{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Writes answers, but not those that begin with a digit."""

HEADERS = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' }}"
    "{{ m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
"""Like Llama-3.1's: the role stands between header tokens, turns end in a token of their own."""
