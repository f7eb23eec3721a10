"""Names, paths, and what `load` says about paths that lead nowhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from implementations.contract import Implementation, as_implementation
from implementations.registry import LOWER_BOUND, REGISTRY, known_names, load

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", REGISTRY)
def test_every_entry_loads(name: str) -> None:
    assert isinstance(load(REGISTRY[name]), Implementation)


def test_known_names_are_the_registry_and_the_lower_bound() -> None:
    assert known_names() == [LOWER_BOUND, *REGISTRY]
    assert LOWER_BOUND not in REGISTRY  # it runs nothing


@pytest.mark.parametrize("path", ["implementations.baseline", ":baseline", "implementations.baseline:", ""])
def test_a_path_of_another_form_is_a_value_error(path: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(path))):
        load(path)


def test_a_module_that_does_not_exist_is_an_import_error() -> None:
    with pytest.raises(ImportError, match="no_such_module"):
        load("implementations.no_such_module:anything")


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_here"):
        load("implementations.baseline:nothing_here")


def test_an_object_that_is_no_implementation_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="str"):
        load("implementations.cce:NO_SORT")


def test_a_bare_function_supports_everything() -> None:
    adapted = load("implementations.baseline:eager_loss")
    assert adapted.build() is load("implementations.baseline:baseline").build()
    assert adapted.supports(None, "cpu") is None  # type: ignore[arg-type]
    assert as_implementation(adapted) is adapted


def test_adapters_import_no_library() -> None:
    """A missing library must be a row's result, so no module may need one to be imported."""
    script = (
        "import sys\n"
        "from implementations.registry import REGISTRY, load\n"
        "libraries = {'triton', 'liger_kernel', 'cut_cross_entropy', 'torchtune', 'torchao'}\n"
        "[load(path) for path in REGISTRY.values()]\n"
        "print(sorted(libraries & set(sys.modules)))"
    )
    finished = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"
