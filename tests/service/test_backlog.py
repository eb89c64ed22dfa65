"""What people said since the weights were made."""

import os

import pytest

from huvidpo.catalog import DEFAULT_MODEL, load_catalog
from preferences.records import RATINGS_FILE, Rating, append
from service.backlog import Backlog


def rating(category: str, time: str) -> Rating:
    facts = {"rater": "ann", "clip": "a.mp4", "sha256": "0" * 64, "prompt": "p", "score": 5.0}
    return Rating(category=category, time=time, **facts)


@pytest.fixture
def backlog(tmp_path):
    return Backlog(tmp_path, load_catalog(), DEFAULT_MODEL)


def test_only_what_is_newer_than_the_weights_counts(backlog, tmp_path):
    for category, time in [("horse", "2001-01-01T00:00:00+00:00"), ("horse", "2999-01-01T00:00:00+00:00")]:
        append(tmp_path / RATINGS_FILE, rating(category, time))
    assert backlog.count() == dict.fromkeys(backlog.catalog.categories, 0) | {"horse": 1}
    assert backlog.count() == {}, "nothing is new, and nothing is read"


def test_a_category_that_the_catalog_does_not_have_makes_no_series(backlog, tmp_path):
    append(tmp_path / RATINGS_FILE, rating("dragons", "2999-01-01T00:00:00+00:00"))
    assert backlog.count() == dict.fromkeys(backlog.catalog.categories, 0)


def test_without_feedback_there_is_none(backlog):
    assert set(backlog.count().values()) == {0}


def test_a_file_that_cannot_be_read_is_said_and_counts_nothing(backlog, tmp_path, caplog):
    (tmp_path / RATINGS_FILE).write_text("{]\n")
    assert backlog.count() == {}
    assert RATINGS_FILE in caplog.text


def test_promotion_ends_the_backlog(backlog, tmp_path, monkeypatch):
    append(tmp_path / RATINGS_FILE, rating("horse", "2020-01-01T00:00:00+00:00"))
    weights = tmp_path / "weights.safetensors"
    weights.touch()
    monkeypatch.setattr("service.backlog.weights_file", lambda path: weights)
    os.utime(weights, (0, 0))
    assert backlog.count()["horse"] == 1
    os.utime(weights, (2e9, 2e9))
    assert backlog.count()["horse"] == 0
