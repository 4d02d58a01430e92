"""Whoever reads a room is led through all of it."""

from __future__ import annotations

import importlib
import pkgutil

import pytest


@pytest.mark.parametrize("room", ["head", "export", "serve"])
def test_the_reading_order_of_a_room_names_each_of_its_modules(room: str) -> None:
    package = importlib.import_module(f"xfeat.{room}")
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert {name for name in modules if f"``{name}``" not in str(package.__doc__)} == set()
