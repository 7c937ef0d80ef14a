"""Templates' own switches are honoured when the template reads them, and refused when it does not."""

import pytest

from app.errors import InvalidRequest, UnsupportedParameter
from app.text.chat import ChatTemplate
from app.text.preview import PreviewOptions, preview
from app.text.tokenizer import Tokenizer
from tests.support.tiny import byte_tokenizer

MESSAGES = [{"role": "developer", "content": "hi"}]
THINKING = (
    "{%- set ns = namespace(n=0) -%}{% for m in messages %}{% generation %}{{ m.role }}{{ m.content }}{%- endgeneration -%}"
    "{% endfor %}{% if enable_thinking is defined and enable_thinking %}THINK{{ bos_token }}{% endif %}"
)


def text(template: object, options: PreviewOptions, tools: list[dict[str, object]] | None = None) -> str:
    hf = byte_tokenizer()
    hf.chat_template = template
    tokenizer = Tokenizer(hf)
    return tokenizer.decode(preview(tokenizer, ChatTemplate(tokenizer), MESSAGES, tools, options), skip_special_tokens=False)


def test_a_variable_that_the_template_reads() -> None:
    assert text(THINKING, PreviewOptions(variables={"enable_thinking": True})) == "systemhiTHINK<s>"
    assert text(THINKING, PreviewOptions(variables={"enable_thinking": False})) == "systemhi"


def test_control_tokens_in_a_variable_are_plain_text() -> None:
    template = "{{ messages[0].content }}{{ name }}"
    hf = byte_tokenizer()
    hf.chat_template = template
    tokenizer = Tokenizer(hf)
    ids = preview(tokenizer, ChatTemplate(tokenizer), MESSAGES, None, PreviewOptions(variables={"name": "</s>"}))
    assert hf.eos_token_id not in ids and tokenizer.decode(ids) == "hi</s>"


@pytest.mark.parametrize("name", ["thinking", "namespace", "bos_token", "messages", "ns", "chat_template", "tokenize"])
def test_a_variable_that_it_does_not_read(name: str) -> None:
    with pytest.raises(UnsupportedParameter, match=r"it has enable_thinking\.") as caught:
        text(THINKING, PreviewOptions(variables={name: True}))
    assert caught.value.param == f"chat_template_kwargs.{name}"


def test_one_template_of_several() -> None:
    templates = {"default": "{{ a }}", "tool_use": "{{ tools | length }}{{ b }}"}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    assert text(templates, PreviewOptions(variables={"a": 5})) == "5"
    assert text(templates, PreviewOptions(variables={"b": 7}), tools) == "17"
    with pytest.raises(UnsupportedParameter, match="it has b"):
        text(templates, PreviewOptions(variables={"a": 5}), tools)


def test_refusals() -> None:
    with pytest.raises(InvalidRequest, match="no chat template"):
        text(None, PreviewOptions(add_generation_prompt=False))
    with pytest.raises(UnsupportedParameter, match="knows no tools"):
        text("{{ messages }}", PreviewOptions(add_generation_prompt=False), [{"type": "function"}])
    with pytest.raises(InvalidRequest, match="refuses these messages: no"):
        text("{{ raise_exception('no') }}", PreviewOptions(add_generation_prompt=False))
    with pytest.raises(UnsupportedParameter, match="can not be searched"):
        text("{% odd %}", PreviewOptions(variables={"a": 1}))
