"""Every object is valid, to the letter, on old and new Kubernetes."""

import functools
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest

from tests.support.chart import CASES, CUSTOM, render

VERSIONS = ("1.25", "1.29", "1.34", "1.37")

# Cases with something that older versions lack, and the first version that has it: exactly what the README says.
NEEDS = {"dra": "1.34", "air-gapped": "1.34", "everything of mine": "1.29"}


@pytest.fixture(autouse=True, scope="module")
def schemas_are_read_once() -> Iterator[None]:
    """The package reads two megabytes of JSON for each object."""
    with pytest.MonkeyPatch.context() as patch:
        utils = kubernetes_validate.utils
        patch.setattr(utils, "schema_contents", functools.cache(utils.schema_contents))
        patch.setattr(utils, "all_versions", functools.cache(utils.all_versions))
        yield


def problems(case: str, version: str) -> list[str]:
    found = []
    for item in render(CASES[case]).objects:
        try:
            kubernetes_validate.validate(item, version, strict=True)
        except kubernetes_validate.SchemaNotFoundError as error:
            if item["kind"] not in CUSTOM:
                found.append(error.message)
        except kubernetes_validate.ValidationError as error:
            found.append(f"{item['kind']}: {'.'.join(map(str, error.path))}: {error.message[:200]}")
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", CASES)
def test_valid(case: str, version: str) -> None:
    if _number(version) < _number(NEEDS.get(case, version)):
        assert problems(case, version), "it is said to need a newer version"
    else:
        assert problems(case, version) == []


def _number(version: str) -> tuple[Any, ...]:
    return tuple(map(int, version.split(".")))


def test_a_wrong_field_is_seen() -> None:
    """The validator is strict: a misspelt field is an error, not a note."""
    deployment = render({}).workload
    deployment["spec"]["template"]["spec"]["enableServiceLink"] = False
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, "1.34", strict=True)
