"""Schemathesis on our own OpenAPI document: `python -m tests.clients.api_fuzz`; `make test-api-fuzz`.

Every operation gets the edges of its schemas and drawn cases, valid and wrong ones. No answer may be a 5xx, or have a status, a
media type or a body other than the document says; at the end nothing may be left in work.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx

from tests.clients.fuzz_hooks import EMBEDDER, MODEL
from tests.support.process import ROOT, serving
from tests.support.tiny import byte_tokenizer, save_tiny

MIN_CASES = 10_000
CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")


def run(directory: Path, max_examples: int) -> int:
    """Return the number of cases; exit with what Schemathesis found, if it found something."""
    embedder = save_tiny("qwen3", directory / "embedder", tokenizer=byte_tokenizer(append_eos=True))
    models = {
        MODEL: {"NAME": MODEL, "TYPE": "CausalLM", "MODEL_DEVICE": "cpu"},
        EMBEDDER: {"NAME": str(embedder), "TYPE": "Embedding", "MODEL_DEVICE": "cpu"},
    }
    with serving({"MODELS": models}, directory) as server:
        server.wait_until_ready()
        done = subprocess.run(
            [
                *(str(Path(sys.executable).with_name("st")), "run", f"{server.url}/openapi.json", "--no-color"),
                *("--phases", "examples,coverage,fuzzing", "--max-examples", str(max_examples), "--checks", ",".join(CHECKS)),
                *("--generation-deterministic", "--continue-on-failure", "--warnings", "off", "--request-timeout", "60"),
            ],
            cwd=directory,  # it would read and write files where it runs
            env={**os.environ, "SCHEMATHESIS_HOOKS": "tests.clients.fuzz_hooks", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        print(done.stdout)
        if done.returncode:
            sys.exit(done.returncode)
        load = httpx.get(f"{server.url}/load").json()
        assert all(model["admitted"] == model["running"] == 0 for model in load["models"].values()), load
        assert server.stop() == 0, server.log
    found = re.search(r"([\d,]+) generated", done.stdout)
    return int(found[1].replace(",", "")) if found else 0


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        cases = run(Path(directory), max_examples=1000)
    if cases < MIN_CASES:
        sys.exit(f"{cases} cases; at least {MIN_CASES} are wanted")


if __name__ == "__main__":
    main()
