"""What holds for every vocabulary that can be grown, not only for the backbones we know."""

from __future__ import annotations

import copy
import json
from collections import Counter
from dataclasses import fields

from hypothesis import given
from hypothesis import strategies as st

from megatron_most.vocab import AUDIO, OUTSIDE, TEXT, WAVE, TokenMap, grow


@st.composite
def sizes(draw: st.DrawFn) -> dict[str, object]:
    base = draw(st.integers(1, 300))
    free_from = draw(st.none() | st.integers(1, base))
    text_id = st.integers(0, (free_from or base) - 1)
    return {
        "backbone": draw(st.sampled_from(["deepseek", "llama", "other"])),
        "base_vocab_size": base,
        "free_from": free_from,
        "bos": draw(text_id),
        "eos": draw(text_id),
        "pad": draw(text_id),
        "num_units": draw(st.integers(1, 300)),
        "multiple": draw(st.sampled_from([1, 2, 3, 8, 64, 128])),
    }


def grown(size: dict[str, object]) -> TokenMap:
    return grow(**size)  # type: ignore[arg-type]


@given(sizes())
def test_every_id_in_use_has_one_tag_and_table_and_lookup_agree(size: dict[str, object]) -> None:
    tokens = grown(size)
    table = tokens.tag_table()
    assert len(table) == tokens.vocab_size
    holders = Counter(i for first, last, _ in tokens.tag_ranges for i in range(first, last + 1))
    assert set(holders.values()) == {1}
    assert {i for i, tag in enumerate(table) if tag != OUTSIDE} == set(holders)
    assert all(tokens.tag_of(i) == table[i] for i in holders)
    assert Counter(table)[TEXT] == tokens.text_size
    assert Counter(table)[AUDIO] == tokens.num_units + 2
    assert Counter(table)[WAVE] == 2
    assert tokens.used_size == max(holders) + 1


@given(sizes())
def test_new_tokens_never_take_a_text_id_and_take_spare_rows_only_when_all_fit(size: dict[str, object]) -> None:
    tokens = grown(size)
    base, free_from = tokens.backbone_vocab_size, size["free_from"] or size["base_vocab_size"]
    assert isinstance(free_from, int)
    new_ids = [token_id for token_id, _ in tokens.new_tokens()]
    fits = free_from + tokens.num_units + 4 <= base
    assert new_ids[0] == (free_from if fits else base)
    assert new_ids == list(range(new_ids[0], new_ids[0] + tokens.num_units + 4))
    assert (new_ids[-1] < base) == fits
    assert all(table_tag == TEXT for table_tag in tokens.tag_table()[:free_from])
    assert len({name for _, name in tokens.new_tokens()}) == len(new_ids)


@given(sizes())
def test_rows_are_the_least_multiple_that_holds_backbone_and_new_tokens(size: dict[str, object]) -> None:
    tokens = grown(size)
    multiple = size["multiple"]
    assert isinstance(multiple, int)
    needed = max(tokens.backbone_vocab_size, tokens.used_size)
    assert tokens.vocab_size % multiple == 0
    assert needed <= tokens.vocab_size < needed + multiple


@given(sizes())
def test_a_map_comes_back_from_json_equal_with_the_same_hash(size: dict[str, object]) -> None:
    tokens = grown(size)
    back = TokenMap.from_dict(json.loads(json.dumps(tokens.to_dict())))
    assert back == tokens
    assert back.hash == tokens.hash


@given(sizes(), st.sampled_from(fields(TokenMap)))
def test_a_change_of_any_field_changes_the_hash(size: dict[str, object], field: object) -> None:
    tokens = grown(size)
    changed = copy.copy(tokens)
    name: str = field.name  # type: ignore[attr-defined]
    old = getattr(tokens, name)
    new = old[:-1] if name == "tag_ranges" else old + ("x" if isinstance(old, str) else 1)
    object.__setattr__(changed, name, new)  # past the checks: the hash alone is on trial
    assert changed.hash != tokens.hash


@given(sizes(), sizes())
def test_two_maps_have_one_hash_only_when_they_are_equal(one: dict[str, object], two: dict[str, object]) -> None:
    assert (grown(one).hash == grown(two).hash) == (grown(one) == grown(two))


@given(sizes(), st.data())
def test_units_come_back_from_text_and_from_ids(size: dict[str, object], data: st.DataObject) -> None:
    tokens = grown(size)
    units = data.draw(st.lists(st.integers(0, tokens.num_units - 1)))
    assert tokens.text_to_units(tokens.units_to_text(units)) == units
    assert [tokens.unit_of_id(tokens.id_of_unit(unit)) for unit in units] == units
