"""Shared by the tests of the soft-Q head inside models."""

import pytest

from inverselm.token_mdp import of_models


@pytest.fixture
def reasons(monkeypatch):
    """Why the dense reference was taken, each time it was."""
    found = []
    monkeypatch.setattr(of_models, "fall_back", lambda reason: found.append(str(reason)))
    return found
