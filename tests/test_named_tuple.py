"""Our named tuples are those of typing, only defined faster."""

from __future__ import annotations

import pickle
import typing

import pytest

from overlayfs_demo.named_tuple import NamedTuple


class Typed(typing.NamedTuple):
    """A pair."""

    left: int
    right: str | None = None

    @property
    def both(self) -> tuple[int, str | None]:
        """The parts."""
        return self.left, self.right

    @classmethod
    def of(cls, text: str) -> Typed:
        """Return the pair of a number and its text."""
        return cls(int(text), text)


class Ours(NamedTuple):
    """A pair."""

    left: int
    right: str | None = None

    @property
    def both(self) -> tuple[int, str | None]:
        """The parts."""
        return self.left, self.right

    @classmethod
    def of(cls, text: str) -> Ours:
        """Return the pair of a number and its text."""
        return cls(int(text), text)


class Empty(NamedTuple):
    """Nothing."""


def test_values_are_the_same() -> None:
    assert tuple(Ours(1)) == tuple(Typed(1)) == (1, None)
    assert tuple(Ours.of("2")) == tuple(Typed.of("2"))
    assert Ours(1, right="x").both == Typed(1, right="x").both
    assert tuple(Ours(1)._replace(left=2)) == (2, None)
    assert repr(Ours(1)) == repr(Typed(1)).replace("Typed", "Ours")
    assert Empty() == ()


@pytest.mark.parametrize("name", ["_fields", "_field_defaults", "__match_args__", "__doc__", "__module__", "__bases__"])
def test_classes_say_the_same(name: str) -> None:
    assert getattr(Ours, name) == getattr(Typed, name)


def test_a_value_survives_pickling() -> None:
    assert pickle.loads(pickle.dumps(Ours(1, "x"))) == Ours(1, "x")


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(TypeError, match="left"):
        Ours()  # type: ignore[call-arg]
