"""A Megatron-Core we do not know is refused by name before anything starts, and so is none at all."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest

from megatron_most.errors import UpstreamError
from megatron_most.upstream import core_version, find_facts, versions


@pytest.mark.parametrize(("found", "known"), [("0.16.1", (0, 16)), ("0.19.2", (0, 19)), ("0.18.0rc3", (0, 18))])
def test_versions_in_the_range_are_read(found: str, known: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "version", lambda _: found)
    assert core_version() == known


@pytest.mark.parametrize("found", ["0.15.3", "0.20.0", "1.0.0"])
def test_versions_outside_are_refused_with_both_numbers(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "version", lambda _: found)
    with pytest.raises(UpstreamError, match=rf"{found}.*>=0.16,<0.20"):
        core_version()


def test_a_missing_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> str:
        raise PackageNotFoundError

    monkeypatch.setattr(versions, "version", missing)
    with pytest.raises(UpstreamError, match="not installed"):
        core_version()


def test_the_installed_one_is_known() -> None:
    assert find_facts(1, "cpu").core_version == core_version()
