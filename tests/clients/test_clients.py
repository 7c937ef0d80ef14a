"""Real clients against a real server with the demo model: `make test-clients`. It is tiny: structure counts, not wisdom."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from anthropic import Anthropic, AsyncAnthropic, beta_tool
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, ConfigDict, Field

from tests.support.process import serving
from tests.support.tiny import byte_tokenizer, save_tiny

pytestmark = pytest.mark.clients

# Or it fetches prices from the internet when it is imported.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

MODEL = "tfoai-demo"
KEY = "none needed"
QUESTION, ANSWER = "What is tfoai?", "tfoai is a server"
WEATHER = "What is the weather in Paris?"
ASK: Any = [{"role": "user", "content": QUESTION}]
ASK_WEATHER: Any = [{"role": "user", "content": WEATHER}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
NODE = Path(__file__).parent / "node"


class Visit(BaseModel):
    """What the model is held to: nothing that it would say by itself."""

    model_config = ConfigDict(extra="forbid")  # or the schema lets it write for ever
    city: Literal["Paris", "Rome"]
    days: int = Field(ge=0, le=9)


def get_weather(city: str) -> str:
    """Get the weather in a city"""
    return f"sunny in {city}"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("server")
    embedder = save_tiny("qwen3", directory / "embedder", tokenizer=byte_tokenizer(append_eos=True))
    models = {
        MODEL: {"NAME": MODEL, "TYPE": "CausalLM", "MODEL_DEVICE": "cpu"},
        "embedder": {"NAME": str(embedder), "TYPE": "Embedding", "MODEL_DEVICE": "cpu"},
    }
    with serving({"MODELS": models}, directory) as server:
        server.wait_until_ready()
        yield server.url
        assert server.stop() == 0, server.log


@pytest.fixture(scope="module")
def base_url(url: str) -> str:
    return f"{url}/v1"


class TestOpenai:
    @pytest.fixture
    def client(self, base_url: str) -> Iterator[OpenAI]:
        with OpenAI(base_url=base_url, api_key=KEY, max_retries=0) as client:
            yield client

    def test_chat(self, client: OpenAI) -> None:
        answer = client.chat.completions.create(model=MODEL, messages=ASK)
        assert answer.choices[0].message.content is not None and answer.choices[0].message.content.startswith(ANSWER)

    def test_stream_helper(self, client: OpenAI) -> None:
        with client.chat.completions.stream(model=MODEL, messages=ASK) as stream:
            text = "".join(event.delta for event in stream if event.type == "content.delta")
            final = stream.get_final_completion()
        assert text.startswith(ANSWER) and text == final.choices[0].message.content

    def test_parse(self, client: OpenAI) -> None:
        answer = client.chat.completions.parse(model=MODEL, messages=ASK, response_format=Visit)
        assert isinstance(answer.choices[0].message.parsed, Visit)
        with client.chat.completions.stream(model=MODEL, messages=ASK, response_format=Visit) as stream:
            assert isinstance(stream.get_final_completion().choices[0].message.parsed, Visit)

    @pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "get_weather"}}])
    def test_tools(self, client: OpenAI, choice: Any) -> None:
        answer = client.chat.completions.create(model=MODEL, messages=ASK_WEATHER, tools=[TOOL], tool_choice=choice)
        (call,) = answer.choices[0].message.tool_calls or ()
        assert call.type == "function" and call.function.name == "get_weather"
        assert json.loads(call.function.arguments) == {"city": "Paris"}

    async def test_async(self, base_url: str) -> None:
        async with AsyncOpenAI(base_url=base_url, api_key=KEY, max_retries=0) as client:
            stream = await client.chat.completions.create(model=MODEL, messages=ASK, stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            whole = await client.chat.completions.create(model=MODEL, messages=ASK)
        assert text.startswith(ANSWER) and text == whole.choices[0].message.content

    def test_embeddings(self, client: OpenAI) -> None:
        decoded = client.embeddings.create(model="embedder", input=["a", "b"]).data
        numbers = client.embeddings.create(model="embedder", input=["a", "b"], encoding_format="float").data
        for one, other in zip(decoded, numbers, strict=True):
            assert one.embedding == pytest.approx(other.embedding, abs=1e-6)


class TestAnthropic:
    @pytest.fixture
    def client(self, url: str) -> Iterator[Anthropic]:
        with Anthropic(base_url=url, api_key=KEY, max_retries=0) as client:
            yield client

    def test_messages(self, client: Anthropic) -> None:
        message = client.messages.create(model=MODEL, max_tokens=50, messages=ASK)
        assert message.content[0].type == "text" and message.content[0].text.startswith(ANSWER)
        assert message.stop_reason == "end_turn" and message._request_id
        count = client.messages.count_tokens(model=MODEL, messages=ASK)
        assert count.input_tokens == message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)

    def test_stream_helper(self, client: Anthropic) -> None:
        with client.messages.stream(model=MODEL, max_tokens=50, messages=ASK) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        assert text.startswith(ANSWER) and final.content[0].type == "text" and final.content[0].text == text

    def test_parse(self, client: Anthropic) -> None:
        class Place(BaseModel):
            """Bounds of numbers are none of what the client sends."""

            city: Literal["Paris", "Rome"]

        message = client.messages.parse(model=MODEL, max_tokens=50, messages=ASK, output_format=Place)
        assert isinstance(message.parsed_output, Place)

    @pytest.mark.parametrize("choice", [{"type": "auto"}, {"type": "any"}, {"type": "tool", "name": "get_weather"}])
    def test_tools(self, client: Anthropic, choice: Any) -> None:
        """An agent's loop: the model asks, the tool answers, the model says something about it."""
        function = TOOL["function"]
        tool: Any = {"name": function["name"], "description": function["description"], "input_schema": function["parameters"]}
        asked = client.messages.create(model=MODEL, max_tokens=50, messages=ASK_WEATHER, tools=[tool], tool_choice=choice)
        use = asked.content[-1]
        assert use.type == "tool_use" and (use.name, use.input) == ("get_weather", {"city": "Paris"})
        assert asked.stop_reason == "tool_use"
        result: Any = {"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}
        messages = [*ASK_WEATHER, asked.to_param(), {"role": "user", "content": [result]}]
        told = client.messages.create(model=MODEL, max_tokens=50, messages=messages, tools=[tool])
        assert told.stop_reason == "end_turn" and told.content[0].type == "text" and told.content[0].text

    def test_tool_runner(self, client: Anthropic) -> None:
        """It asks for a conversation that the server keeps, is told that there are none, and goes on without."""
        cities: list[str] = []

        @beta_tool
        def get_weather(city: str) -> str:
            """Get the weather in a city"""
            cities.append(city)
            return "sunny"

        final = client.beta.messages.tool_runner(
            model=MODEL, max_tokens=50, messages=ASK_WEATHER, tools=[get_weather]
        ).until_done()
        assert cities == ["Paris"] and final.stop_reason == "end_turn"

    async def test_async(self, url: str) -> None:
        async with AsyncAnthropic(base_url=url, api_key=KEY, max_retries=0) as client:
            async with client.messages.stream(model=MODEL, max_tokens=50, messages=ASK) as stream:
                text = "".join([piece async for piece in stream.text_stream])
            whole = await client.messages.create(model=MODEL, max_tokens=50, messages=ASK)
        assert whole.content[0].type == "text" and text == whole.content[0].text


class TestLangchain:
    @pytest.fixture
    def chat(self, base_url: str) -> Any:
        openai = pytest.importorskip("langchain_openai", reason="make test-clients")
        return openai.ChatOpenAI(model=MODEL, base_url=base_url, api_key=KEY, max_retries=0)

    def test_chat(self, chat: Any) -> None:
        answer = chat.invoke(QUESTION)
        assert answer.content.startswith(ANSWER) and answer.usage_metadata["output_tokens"] > 0
        assert "".join(chunk.content for chunk in chat.stream(QUESTION)) == answer.content

    def test_tools(self, chat: Any) -> None:
        from langchain_core.tools import tool

        for choice in (None, "any", "get_weather"):
            answer = chat.bind_tools([tool(get_weather)], tool_choice=choice).invoke(WEATHER)
            assert [(call["name"], call["args"]) for call in answer.tool_calls] == [("get_weather", {"city": "Paris"})]

    @pytest.mark.parametrize("method", ["json_schema", "function_calling"])
    def test_structured_output(self, chat: Any, method: str) -> None:
        assert isinstance(chat.with_structured_output(Visit, method=method).invoke(QUESTION), Visit)

    def test_embeddings(self, base_url: str) -> None:
        openai = pytest.importorskip("langchain_openai", reason="make test-clients")
        embedder = openai.OpenAIEmbeddings(
            model="embedder", base_url=base_url, api_key=KEY, max_retries=0, check_embedding_ctx_length=False
        )
        one, two = embedder.embed_documents(["a", "b"])
        assert len(one) == len(two) and embedder.embed_query("a") == pytest.approx(one, abs=1e-6) != pytest.approx(
            two, abs=1e-6
        )


class TestLitellm:
    @pytest.fixture
    def ask(self, base_url: str) -> Any:
        litellm = pytest.importorskip("litellm", reason="make test-clients")

        def ask(messages: Any = ASK, **more: Any) -> Any:
            return litellm.completion(
                model=f"openai/{MODEL}", api_base=base_url, api_key=KEY, messages=messages, max_retries=0, **more
            )

        return ask

    def test_chat(self, ask: Any) -> None:
        text = ask().choices[0].message.content
        assert text.startswith(ANSWER)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in ask(stream=True)) == text

    def test_tools(self, ask: Any) -> None:
        (call,) = ask(ASK_WEATHER, tools=[TOOL]).choices[0].message.tool_calls
        assert call.function.name == "get_weather" and json.loads(call.function.arguments) == {"city": "Paris"}

    def test_structured_output(self, ask: Any) -> None:
        Visit.model_validate_json(ask(response_format=Visit).choices[0].message.content)

    def test_embeddings(self, base_url: str) -> None:
        litellm = pytest.importorskip("litellm", reason="make test-clients")
        answer = litellm.embedding(model="openai/embedder", api_base=base_url, api_key=KEY, input=["a", "b"])
        assert len(answer.data) == 2 and len(answer.data[0]["embedding"]) == len(answer.data[1]["embedding"]) > 0

    def test_errors(self, ask: Any) -> None:
        litellm = pytest.importorskip("litellm", reason="make test-clients")
        with pytest.raises(litellm.ContextWindowExceededError):
            ask([{"role": "user", "content": "many words " * 3000}])


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_instructor(base_url: str, mode: str) -> None:
    instructor = pytest.importorskip("instructor", reason="make test-clients")
    with OpenAI(base_url=base_url, api_key=KEY, max_retries=0) as openai:
        client = instructor.from_openai(openai, mode=instructor.Mode[mode])
        answer = client.chat.completions.create(model=MODEL, messages=ASK, response_model=Visit, max_retries=1)
    assert isinstance(answer, Visit)


class TestPydanticAi:
    @pytest.fixture
    def model(self, base_url: str) -> Any:
        pytest.importorskip("pydantic_ai", reason="make test-clients")
        from pydantic_ai.models.openai import OpenAIChatModel
        from pydantic_ai.providers.openai import OpenAIProvider

        return OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=base_url, api_key=KEY))

    async def test_chat(self, model: Any) -> None:
        from pydantic_ai import Agent

        assert (await Agent(model).run(QUESTION)).output.startswith(ANSWER)
        async with Agent(model).run_stream(QUESTION) as stream:
            assert (await stream.get_output()).startswith(ANSWER)

    async def test_tools(self, model: Any) -> None:
        from pydantic_ai import Agent

        asked: list[str] = []

        def get_weather(city: str) -> str:
            """Get the weather in a city"""
            asked.append(city)
            return "sunny"

        result = await Agent(model, tools=[get_weather]).run(WEATHER)
        assert asked == ["Paris"] and result.output

    @pytest.mark.parametrize("way", ["ToolOutput", "NativeOutput"])
    async def test_structured_output(self, model: Any, way: str) -> None:
        import pydantic_ai

        result = await pydantic_ai.Agent(model, output_type=getattr(pydantic_ai, way)(Visit)).run(QUESTION)
        assert isinstance(result.output, Visit)


def test_node(url: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """openai and the AI SDK; the checks themselves are in node/check.mjs."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("needs Node.js and npm")
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "check.mjs"):
        shutil.copy(NODE / name, folder)
    subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=folder, check=True)
    done = subprocess.run(
        ["node", "check.mjs"], cwd=folder, env={**os.environ, "TFOAI_URL": url}, capture_output=True, text=True, check=False
    )
    checks = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert len(checks) == (NODE / "check.mjs").read_text().count("async () => {\n")
    assert {check["name"]: check["error"] for check in checks if "error" in check} == {}
