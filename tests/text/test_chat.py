"""Markers and contents joined give the rendered conversation, for the template styles that models use."""

from __future__ import annotations

import itertools

import pytest

from stemma.backend.text import ChatTemplate, Tokenizer
from stemma.lang.errors import RequestError

CHATML = """{% for m in messages %}
{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

DEFAULT_SYSTEM = """{% if messages[0].role != 'system' %}
{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}
{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

HEADERS = """{% for m in messages %}
{%- set text = '<|head|>' + m['role'] + '<|/head|>\n\n' + m['content'] | trim + '<|eot|>' %}
{%- if loop.index0 == 0 %}{% set text = bos_token + text %}{% endif %}
{{- text }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}"""

INST = """{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}
{% else %}{% set rest = messages %}{% set system = none %}{% endif %}
{% for m in rest %}
{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate user/assistant') }}{% endif %}
{% if loop.index0 == 0 and system is not none %}{% set text = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m['content'] %}
{% else %}{% set text = m['content'] %}{% endif %}
{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + text + ' [/INST]' }}
{%- elif m['role'] == 'assistant' %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}
{% endfor %}"""

ALTERNATING = """{{ bos_token }}{% for m in messages %}
{%- if (m.role == 'user') != (loop.index0 is even) %}{{ raise_exception('must alternate') }}{% endif %}
{%- if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}
{%- elif m.role == 'assistant' %}{{ m.content + eos_token }}
{%- else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"""

PARTS = """{% for m in messages %}
<{{ m.role }}>{% for part in m.content %}{{ part.text }}{% endfor %}</{{ m.role }}>{% endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}"""

LAST_USER = """{{ bos_token }}{% set users = messages | selectattr('role', 'equalto', 'user') | list %}
{%- for m in messages %}{% if m.role == 'user' %}
{%- if m == users[-1] and messages[0].role == 'system' %}[S]{{ messages[0].content }}[/S]{% endif %}
{{- '[U]' ~ m.content ~ '[/U]' }}
{%- elif m.role == 'assistant' %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"""

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def template(source: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, TOKENS)


def joined(chat: ChatTemplate, messages: list[tuple[str, str]], prompt: bool) -> str:
    text = ""
    roles: tuple[str, ...] = ()
    for role, content in messages:
        begin, end = chat.markers(role, roles)
        text += begin + content + end
        roles += (role,)
    return text + (chat.markers("assistant", roles)[0] if prompt else "")


def conversations(*, system: bool) -> list[list[str]]:
    turns = [["user"], ["user", "assistant"], ["user", "assistant", "user"], ["user", "assistant", "user", "assistant"]]
    return turns + ([["system", *t] for t in turns] if system else [])


NAMED = [{"name": "rag", "template": "x"}, {"name": "default", "template": CHATML}]
ANY_ORDER = [("chatml", CHATML), ("default-system", DEFAULT_SYSTEM), ("headers", HEADERS), ("parts", PARTS)]
FREE = [*conversations(system=True), ["system"], ["user", "user"], ["system", "user", "tool"]]
CASES = [
    *((name, source, roles) for name, source in ANY_ORDER for roles in FREE),
    *(("inst", INST, roles) for roles in conversations(system=True)),
    *(("alternating", ALTERNATING, roles) for roles in conversations(system=False)),
]


@pytest.mark.parametrize(("name", "source", "roles"), CASES, ids=[f"{c[0]}-{'-'.join(c[2])}" for c in CASES])
def test_markers_and_contents_joined_equal_the_rendering(name, source, roles):
    chat = template(source)
    space = " " if name == "inst" else ""  # the model writes it
    contents = [(r, (space if r == "assistant" else "") + f"content {i}") for i, r in enumerate(roles)]
    wrap = (lambda c: [{"type": "text", "text": c}]) if name == "parts" else (lambda c: c)
    messages = [{"role": r, "content": wrap(c)} for r, c in contents]
    assert joined(chat, contents, False) == chat.render(messages, add_generation_prompt=False)
    if roles[-1] != "assistant":
        assert joined(chat, contents, True) == chat.render(messages)


def test_first_message_carries_bos_and_default_system():
    assert template(HEADERS).markers("user")[0] == "<s><|head|>user<|/head|>\n\n"
    assert template(HEADERS).markers("user", ("system",))[0] == "<|head|>user<|/head|>\n\n"
    assert template(DEFAULT_SYSTEM).markers("user")[0].startswith("<|im_start|>system\nYou are helpful.")
    assert template(DEFAULT_SYSTEM).markers("system") == ("<|im_start|>system\n", "<|im_end|>\n")


def test_assistant_begin_is_the_generation_prompt():
    assert template(CHATML).markers("assistant", ("user",)) == ("<|im_start|>assistant\n", "<|im_end|>\n")
    assert template(ALTERNATING).markers("assistant", ("user",)) == ("", "</s>")
    assert template(CHATML).markers("assistant") == ("<|im_start|>assistant\n", "<|im_end|>\n")


def test_system_merged_into_the_first_user_message():
    chat = template(INST)
    assert chat.markers("system") == ("<s>[INST] <<SYS>>\n", "\n<</SYS>>\n\n")
    assert chat.markers("user", ("system",)) == ("", " [/INST]")


@pytest.mark.parametrize("source", [INST, HEADERS, ALTERNATING])
def test_bos_written_by_the_template(source):
    assert template(source).template_adds_bos


@pytest.mark.parametrize("source", [CHATML, DEFAULT_SYSTEM, PARTS])
def test_bos_not_written_by_the_template(source):
    assert not template(source).template_adds_bos


def test_unknown_role_names_it_and_the_supported_ones():
    with pytest.raises(RequestError, match=r"role 'tool' \(.*\); it supports user, assistant$"):
        template(ALTERNATING).markers("tool", ("user", "assistant"))
    with pytest.raises(RequestError, match=r"does not support the role 'wizard'.*system, user, assistant"):
        template(INST).markers("wizard")


def test_refused_order_carries_the_templates_words():
    with pytest.raises(RequestError, match=r"refused the roles \[user, user\]: must alternate"):
        template(ALTERNATING).markers("user", ("user",))
    with pytest.raises(RequestError, match=r"refused the roles \[user, user\]: must alternate"):
        template(ALTERNATING).render([{"role": "user", "content": "a"}] * 2)


def test_a_template_that_moves_messages_falls_back_to_lone_markers():
    chat = template(LAST_USER)
    assert chat.markers("user", ("system", "user", "assistant")) == ("[U]", "[/U]")


def test_no_template_says_what_to_do(save, byte_level_backend):
    path = save(byte_level_backend)
    chat = ChatTemplate.load(path, Tokenizer.load(path))
    assert not chat.exists and not chat.template_adds_bos
    with pytest.raises(RequestError, match=r"has no chat template.*plain text prompts.*chat_template\.jinja"):
        chat.markers("user")
    with pytest.raises(RequestError, match="has no chat template"):
        chat.render([])


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config__json": {"chat_template": CHATML}},
        {"tokenizer_config__json": {"chat_template": NAMED}},
        {"chat_template__jinja": CHATML, "tokenizer_config__json": {"chat_template": "ignored"}},
        {"chat_template__json": {"chat_template": CHATML}},
    ],
)
def test_load_finds_the_template(save, byte_level_backend, files):
    path = save(byte_level_backend, **files)
    chat = ChatTemplate.load(path, Tokenizer.load(path))
    assert chat.markers("user") == ("<|im_start|>user\n", "<|im_end|>\n")


def test_bos_text_of_the_tokenizer_config_reaches_the_template(save, byte_level_backend):
    path = save(byte_level_backend, tokenizer_config__json={"chat_template": HEADERS, "bos_token": "<s>"})
    tok = Tokenizer.load(path)
    begin, _ = ChatTemplate.load(path, tok).markers("user")
    assert tok.encode_pieces([(begin, True)], start=True)[0] == tok.bos_id


def test_template_helpers():
    chat = template(
        "{{ messages | tojson }} {{ strftime_now('%Y') | length }} {% generation %}{{ x }}{% endgeneration %}"
        "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    )
    rendered = chat.render([{"role": "user", "content": "<é>"}], x="X")
    assert rendered == '[{"role": "user", "content": "<é>"}] 4 X01'


def test_tools_and_keyword_arguments_reach_the_template():
    chat = ChatTemplate({"default": "no", "tool_use": "{{ tools[0].name }}{{ mode }}"}, {})
    assert chat.render([], tools=[{"name": "t"}], mode="!") == "t!"


@pytest.mark.parametrize(
    "source", ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ missing.attribute.deep }}"]
)
def test_templates_run_in_a_sandbox_and_fail_as_request_errors(source):
    with pytest.raises(RequestError, match="chat template"):
        template(source).render([])


def test_syntax_error_names_the_line():
    with pytest.raises(RequestError, match="syntax error in line 2"):
        template("\n{% if %}")


def test_markers_are_cached():
    chat = template(CHATML)
    assert chat.markers("user", ("user",)) is chat.markers("user", ("user",))


def test_long_conversations_stay_consistent():
    chat = template(CHATML)
    roles = [r for r, _ in zip(itertools.cycle(["user", "assistant"]), range(25), strict=False)]
    messages = [(r, f"⟦{i}⟧ text") for i, r in enumerate(roles)]
    assert joined(chat, messages, True) == chat.render([{"role": r, "content": c} for r, c in messages])
