"""openai-python's own tests against a tfoai server: `python -m tests.clients.openai_python SOURCE`; `make test-openai-python`.

SOURCE is the unpacked source distribution of openai-python. Its tests are made for a mock that answers anything; those that no
server of this kind can pass are listed here with the reason. Any other failure is an error, and so is a listed test that passes
or fails in another way.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tests.support.process import serving
from tests.support.tiny import byte_tokenizer, save_tiny

# What tfoai has routes for, below tests/api_resources.
FILES = (
    "chat",
    "responses",
    "test_completions.py",
    "test_decisions.py",
    "test_embeddings.py",
    "test_models.py",
    "test_responses.py",
)

_ANY = r"(method|raw_response|streaming_response)_"
_NOT_FOUND, _NOT_ALLOWED, _TYPES = "Error code: 404", "Error code: 405", "APIResponseValidationError"
_RESPONSES = r"api_resources/test_responses::Test(Async)?Responses::test_"


@dataclass(frozen=True)
class Listed:
    """Tests that can not pass: their names (file::class::test[variant], fully matched), how each fails, and why."""

    names: str
    failure: str
    reason: str


CAN_NOT_PASS = (
    Listed(
        rf"chat/test_completions::Test(Async)?Completions::test_{_ANY}(retrieve|update|delete)\[.*\]",
        _NOT_FOUND,
        "OpenAI keeps chat completions for its customers to look at; tfoai keeps none (`store` is refused)",
    ),
    Listed(
        rf"chat/test_completions::Test(Async)?Completions::test_{_ANY}list(_with_all_params)?\[.*\]",
        _NOT_ALLOWED,
        "the list of the chat completions that OpenAI keeps",
    ),
    Listed(
        rf"completions/test_messages::Test(Async)?Messages::test_{_ANY}list(_with_all_params)?\[.*\]",
        _NOT_FOUND,
        "the messages of the chat completions that OpenAI keeps",
    ),
    Listed(
        rf"api_resources/test_models::Test(Async)?Models::test_{_ANY}delete\[.*\]",
        _NOT_ALLOWED,
        "deletes fine-tuned models; what tfoai serves is decided by its configuration",
    ),
    Listed(
        rf"api_resources/test_embeddings::Test(Async)?Embeddings::test_{_ANY}create\[(strict|aiohttp)\]",
        _TYPES,
        "the client asks for base64 by itself, and then its strict types want numbers",
    ),
    Listed(
        rf"{_RESPONSES}{_ANY}create_overload_[12]\[.*\]",
        "Missing required parameter: 'model'",
        "a response to nothing, from no model: OpenAI too needs a hosted prompt or conversation for that",
    ),
    Listed(
        rf"{_RESPONSES}method_create_with_all_params_overload_[12]\[.*\]",
        "`prompt` is not supported",
        "asks for a prompt template that OpenAI keeps, and for one of its conversations",
    ),
    Listed(
        rf"{_RESPONSES}{_ANY}(retrieve_overload_1|delete|cancel)\[.*\]",
        _NOT_FOUND,
        "the response of that id is only in the mock; ours are stored by tests/api/test_responses_client.py",
    ),
    Listed(
        rf"{_RESPONSES}{_ANY}retrieve_(with_all_params_overload_1|(with_all_params_)?overload_2)\[.*\]",
        "a stored response is not sent in events",
        "OpenAI sends the events of responses that are made in the background, which it hosts",
    ),
    Listed(
        rf"{_RESPONSES}{_ANY}compact\[.*\]",
        "Missing required parameter: 'input'",
        "compacts nothing",
    ),
    Listed(
        rf"{_RESPONSES}{_ANY}compact_with_all_params\[.*\]",
        "Previous response with id 'resp_123' not found",
        "compacts what a response that is only in the mock begins",
    ),
    Listed(
        rf"responses/test_input_items::Test(Async)?InputItems::test_{_ANY}list\[.*\]",
        _NOT_FOUND,
        "the items of a response that is only in the mock",
    ),
    Listed(
        rf"responses/test_input_items::Test(Async)?InputItems::test_{_ANY}list_with_all_params\[.*\]",
        "is not supported here",
        "asks for the results of a hosted file search",
    ),
    Listed(
        rf"responses/test_input_tokens::Test(Async)?InputTokens::test_{_ANY}count\[.*\]",
        "Missing required parameter: 'model'",
        "the tokens of nothing, for no model",
    ),
    Listed(
        rf"responses/test_input_tokens::Test(Async)?InputTokens::test_{_ANY}count_with_all_params\[.*\]",
        "Previous response with id 'resp_123' not found",
        "continues a response that is only in the mock",
    ),
)


@dataclass(frozen=True)
class Result:
    """One test: its name as in Listed, "passed", "failed" or "skipped", and the error of a failed one."""

    name: str
    kind: str
    error: str = ""

    @property
    def listed(self) -> Listed | None:
        return next((one for one in CAN_NOT_PASS if re.fullmatch(one.names, self.name)), None)

    @property
    def wrong(self) -> str | None:
        """What is wrong with it, in a line."""
        if self.kind == "skipped":
            return f"skipped: {self.name}"
        if self.listed is None:
            return None if self.kind == "passed" else f"failed: {self.name}: {self.error[:200]}"
        if self.kind == "passed":
            return f"passed, take it off the list: {self.name}"
        return None if re.search(self.listed.failure, self.error) else f"failed in another way: {self.name}: {self.error[:200]}"


def results_of(report: Path) -> Iterator[Result]:
    """Yield each test of a JUnit report."""
    for case in ElementTree.parse(report).iter("testcase"):  # pytest's own file
        *_, folder, file, class_name = case.attrib["classname"].split(".")
        name = f"{folder}/{file}::{class_name}::{case.attrib['name']}"
        found = {child.tag: child.attrib.get("message", "") for child in case}
        kind = "failed" if found.keys() & {"failure", "error"} else "skipped" if "skipped" in found else "passed"
        yield Result(name, kind, found.get("failure", found.get("error", "")))


def judge(found: list[Result]) -> list[str]:
    """Return what is wrong, one line each: failures, passes of listed tests, and lines of the list that match nothing."""
    stale = [f"matches no test: {one.names}" for one in CAN_NOT_PASS if all(result.listed is not one for result in found)]
    return [result.wrong for result in found if result.wrong] + stale


def run(source: Path, directory: Path) -> list[Result]:
    """Run their tests against a server of ours; return their results."""
    embedder = save_tiny("qwen3", directory / "embedder", tokenizer=byte_tokenizer(append_eos=True))
    config = {
        "COMPATIBILITY": "lenient",  # they send every parameter there is
        "MODELS": {
            "tfoai-demo": {"NAME": "tfoai-demo", "TYPE": "CausalLM", "MODEL_DEVICE": "cpu"},
            "embedder": {"NAME": str(embedder), "TYPE": "Embedding", "MODEL_DEVICE": "cpu"},
        },
        "ALIASES": {
            **dict.fromkeys(("gpt-3.5-turbo-instruct", "gpt-6-astra", "model"), "tfoai-demo"),
            "text-embedding-3-small": "embedder",
        },
    }
    report = directory / "report.xml"
    with serving(config, directory) as server:
        server.wait_until_ready()
        subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "--tb=no", "--no-summary", "-p", "no:cacheprovider"),
                f"--junitxml={report}",
                *(f"tests/api_resources/{name}" for name in FILES),
            ],
            cwd=source,
            env={**os.environ, "TEST_API_BASE_URL": f"{server.url}/v1"},
            check=False,  # some fail; which ones is judged by name
        )
        assert server.stop() == 0, server.log
    return list(results_of(report))


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        found = run(Path(sys.argv[1]), Path(directory))
    wrong = judge(found)
    counts = Counter(result.listed.reason for result in found if result.listed)
    print(f"\n{len(found)} tests: {sum(result.kind == 'passed' for result in found)} passed, {counts.total()} can not pass:")
    for reason, count in counts.items():
        print(f"{count:5}  {reason}")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
