"""What decides how a clip becomes features: checked where it is made, sent whole to other processes."""

from __future__ import annotations

import ast
import inspect
import pickle
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

import avel
from avel.errors import AvelError
from avel.features import recipe as module
from avel.features.recipe import Recipe, Streams


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"segment_seconds": 0}, r"segments of 0\.0 s\n  expected: 0\.05 to 60 seconds"),
        ({"segment_seconds": float("nan")}, "segments of nan s"),
        ({"segment_seconds": "long"}, "segment_seconds 'long'\n  expected: a value of type float"),
        ({"framing": "tenths"}, "framing 'tenths'\n  expected: time or ave"),
        ({"framing": "ave", "segment_seconds": 0.5}, "segments of 0.5 s with framing 'ave'"),
        ({"missing_audio": "zeros"}, "missing_audio 'zeros'\n  expected: error or mark"),
        ({"clip_seconds_limit": 0}, "limits of 0 s and 2 GiB for a clip"),
        ({"clip_memory_limit": float("nan")}, "limits of 300 s and nan GiB"),
        ({"streams": "first"}, "streams 'first'"),
        ({"streams": Streams("one")}, "streams Streams"),  # type: ignore[arg-type]
        ({"visual": None}, "visual None"),
        ({"visual_options": "precision bfloat16"}, "visual_options 'precision bfloat16'"),
    ],
)
def test_what_is_no_recipe_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(AvelError, match=words):
        Recipe(**wrong)


def test_numbers_of_numpy_and_plain_pairs_of_streams_will_do() -> None:
    recipe = Recipe(segment_seconds=np.float32(0.5), streams=(1, None))  # type: ignore[arg-type]
    assert (recipe.segment_seconds, recipe.streams) == (0.5, Streams(video=1))
    assert isinstance(recipe.streams, Streams)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"visual": "banana"}, "no visual extractor is called 'banana'"),
        ({"audio_options": {"loud": 1}}, "the audio extractor 'classical' has no option 'loud'"),
        ({"device": "banana"}, "banana"),
    ],
)
def test_extractors_are_looked_for_when_they_are_built(wrong: dict[str, Any], words: str) -> None:
    recipe = Recipe(**wrong)
    with pytest.raises(AvelError, match=words):
        recipe.build()


def test_another_process_builds_the_same() -> None:
    built = Recipe(visual_options={"frames_per_segment": 4}, framing="ave", device="auto").build()
    assert built.recipe.visual_options == {"version": 1, "frames_per_segment": 4} and built.recipe.device == "cpu"
    sent = pickle.loads(pickle.dumps(built.recipe))
    assert sent == built.recipe and sent.build().settings == built.settings


def test_every_field_has_a_sentence_for_the_help() -> None:
    body = ast.parse(inspect.getsource(module.Recipe)).body[0]
    assert isinstance(body, ast.ClassDef)
    told = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            assert isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant), field.target.id
            told[field.target.id] = text.value.value
    assert list(told) == [field.name for field in fields(Recipe)]
    assert all(sentence.rstrip().endswith(".") for sentence in told.values())


def test_the_public_name() -> None:
    assert avel.Recipe is Recipe and avel.Streams is Streams
