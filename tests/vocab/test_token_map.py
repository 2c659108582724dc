"""A token map answers for every id, and refuses what it cannot answer."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest

from megatron_most.errors import DataError
from megatron_most.vocab import (
    AUDIO,
    OUTSIDE,
    TAG_NAMES,
    TEXT,
    WAVE,
    TokenMap,
    deepseek_token_map,
    tag_id,
    tiny_token_map,
)


def test_tags_are_the_published_numbers() -> None:
    assert (TEXT, AUDIO, WAVE) == (0, 1, 2)
    assert [tag_id(name) for name in TAG_NAMES] == [TEXT, AUDIO, WAVE]


def test_an_unknown_modality_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(DataError, match=r"'image'.*text, audio, wave"):
        tag_id("image")


@pytest.mark.parametrize(
    ("token_id", "tag"),
    [(0, 0), (99999, 0), (100001, 0), (100002, 1), (100501, 1), (100502, 1), (100503, 1), (100504, 2), (100505, 2)],
)
def test_the_borders_of_the_published_ids_have_the_published_tags(token_id: int, tag: int) -> None:
    tokens = deepseek_token_map()
    assert tokens.tag_of(token_id) == tag
    assert tokens.tag_table()[token_id] == tag


@pytest.mark.parametrize("token_id", [-100, -1, 100506, 102399, 102400])
def test_an_id_that_no_token_has_is_refused_though_the_release_would_tag_it_2(token_id: int) -> None:
    with pytest.raises(DataError, match=f"{token_id}: outside the vocabulary"):
        deepseek_token_map().tag_of(token_id)


def test_unused_rows_are_outside_in_the_table() -> None:
    table = deepseek_token_map().tag_table()
    assert len(table) == 102400
    assert set(table[100506:]) == {OUTSIDE}
    assert OUTSIDE not in table[:100506]


def test_units_are_written_and_read_as_in_the_published_samples() -> None:
    tokens = deepseek_token_map()
    assert tokens.units_to_text([7, 90]) == "[Hu7][Hu90]"
    assert tokens.text_to_units("[Hu7][Hu90]") == [7, 90]
    assert tokens.text_to_units("") == []


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("[Hu7] [Hu90]", 5),
        (" [Hu7]", 0),
        ("[Hu7]\n", 5),
        ("[Hu7][Hu500]", 5),  # one past the last unit
        ("[Hu07]", 0),
        ("[Hu-1]", 0),
        ("[Hu٧]", 0),  # a digit elsewhere in Unicode
        ("[Hu1][Hu2", 5),
        ("[hu1]", 0),
        ("[Hu1]hello", 5),
        ("[Hu" + "9" * 5000 + "]", 0),  # beyond what Python turns into an integer
    ],
)
def test_units_text_with_anything_else_in_it_is_refused_by_position(text: str, position: int) -> None:
    with pytest.raises(DataError, match=f"position {position}:"):
        deepseek_token_map().text_to_units(text)


@pytest.mark.parametrize("unit", [-1, 500])
def test_a_unit_the_codec_of_this_map_cannot_make_is_refused(unit: int) -> None:
    with pytest.raises(DataError, match=f"unit {unit}: not in 0..499"):
        deepseek_token_map().id_of_unit(unit)
    with pytest.raises(DataError, match=f"unit {unit}: not in 0..499"):
        deepseek_token_map().units_to_text([3, unit])


def test_marks_of_audio_are_no_units() -> None:
    tokens = deepseek_token_map()
    assert tokens.unit_of_id(tokens.id_of_unit(499)) == 499
    for token_id in (tokens.eos_id, tokens.begin_audio_id, tokens.end_wave_id):
        with pytest.raises(DataError, match=f"token id {token_id}: not a unit"):
            tokens.unit_of_id(token_id)


def test_a_map_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        tiny_token_map().num_units = 3  # type: ignore[misc]


def test_equal_maps_are_the_same_wherever_they_are() -> None:
    deepseek_token_map().require_same(deepseek_token_map(), "checkpoint step_10")


def test_another_map_is_refused_by_place_field_and_both_values() -> None:
    with pytest.raises(DataError, match=r"checkpoint step_10: .*num_units is 1000 there and 500 here"):
        deepseek_token_map().require_same(deepseek_token_map(1000), "checkpoint step_10")
    renamed = replace(tiny_token_map(), end_wave_token="<e>")
    with pytest.raises(DataError, match="end_wave_token is '<e>' there"):
        tiny_token_map().require_same(renamed, "data set train")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_units": "22"}, "num_units = '22': is a str"),
        ({"num_units": True}, "num_units = True: is a bool"),
        ({"bos_id": 38.0}, "bos_id = 38.0: is a float"),
        ({"backbone": 3}, "backbone = 3"),
        ({"vocab_size": 39}, "vocab_size = 39: less than backbone_vocab_size = 40"),
        ({"end_wave_id": 72}, r"end_wave_id = 72: not in 0..71"),
        ({"num_units": 10**12}, "num_units = 1000000000000: .*beyond vocab_size = 72"),
        ({"num_units": 21}, "ids tagged audio are not .* id 61"),
        ({"begin_audio_id": 61}, "ids tagged audio are not"),  # unit 21 has it
        ({"end_audio_id": 62}, "ids tagged audio are not"),
        ({"end_wave_id": 64}, "ids tagged wave are not"),
        ({"begin_wave_id": 65}, "ids tagged wave are not .* id 64"),
        ({"eos_id": 40}, "eos_id = 40: is not tagged text"),
        ({"pad_id": 70}, "pad_id = 70: is not tagged text"),
        ({"tag_ranges": ()}, r"tag_ranges = \(\)"),
        ({"tag_ranges": None}, "tag_ranges = None"),
        ({"tag_ranges": ((0, 39), (40, 63, 1), (64, 65, 2))}, r"tag_ranges = \(0, 39\): not three integers"),
        ({"tag_ranges": ((0, 39, 0), (40, 63, 1), (64, 65, 3))}, "3 is no tag"),
        ({"tag_ranges": ((0, 40, 0), (40, 63, 1), (64, 65, 2))}, r"\(0, 40, 0\): goes beyond backbone_vocab_size = 40"),
        ({"tag_ranges": ((0, 39, 0), (39, 63, 1), (64, 65, 2))}, r"\(39, 63, 1\): overlaps"),
        ({"tag_ranges": ((40, 63, 1), (0, 39, 0), (64, 65, 2))}, r"\(0, 39, 0\): overlaps or goes back"),
        ({"tag_ranges": ((0, 39, 0), (40, 63, 1), (65, 64, 2))}, r"\(65, 64, 2\)"),
        ({"tag_ranges": ((0, 39, 0), (40, 63, 1), (64, 72, 2))}, r"\(64, 72, 2\): goes beyond vocab_size = 72"),
        ({"tag_ranges": ((0, 39, 0), (40, 63, 1), (64, 71, 2))}, "ids tagged wave are not .* id 66"),
        ({"tag_ranges": ((0, 39, 0), (40, 63, 1))}, "ids tagged wave are not .* id 64"),
        ({"end_audio_token": "<｜begin▁of▁audio｜>"}, "begin_audio_token = .*names two tokens"),
        ({"begin_wave_token": ""}, "begin_wave_token = ''"),
        ({"unit_token": "[Hu]"}, r"unit_token = '\[Hu\]'"),
        ({"unit_token": "Hu{}"}, "unit_token"),  # Hu1Hu2 would do, but 1 and 2 of "{}" would not
        ({"unit_token": "[Hu1{}]"}, "unit_token"),
        ({"unit_token": "[{}{}]"}, "unit_token"),
    ],
)
def test_a_map_that_contradicts_itself_is_refused_by_field(change: dict[str, object], named: str) -> None:
    with pytest.raises(DataError, match=f"^token map: .*{named}"):
        replace(tiny_token_map(), **change)  # type: ignore[arg-type]


def test_other_strings_than_the_published_ones_are_data_not_code() -> None:
    tokens: TokenMap = replace(tiny_token_map(), unit_token="<u_{}>", begin_audio_token="<a>", end_audio_token="</a>")
    assert tokens.text_to_units("<u_7><u_21>") == [7, 21]
    assert dict(tokens.new_tokens())[tokens.end_audio_id] == "</a>"
