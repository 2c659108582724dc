"""Recipes: what ships is whole and true to its models, files and flags mean what they say, and a typo never passes."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_most.config import (
    Facts,
    Plan,
    RunConfig,
    build,
    dump,
    load_recipe,
    recipe_names,
    replace,
)
from megatron_most.config import load as loading
from megatron_most.config.size import count_parameters
from megatron_most.errors import ConfigError
from tests.config.runs import leaves

LARGE = ("most-16b", "most-3b-dense", "most-3b-upcycled", "no-shared", "vanilla-moe", "stage1-asr-tts",
         "stage2-instruct", "most-c-16b", "stage1-most-c", "stage2-most-c", "stage2-most-c-augmented",
         "stage1-vanilla-moe", "stage2-vanilla-moe", "stage1-no-shared", "stage2-no-shared",
         "stage1-uneven", "stage2-uneven")  # fmt: skip
ONE_NODE = Facts(world_size=8, device="gpu", core_version=(0, 16))
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str = "run.toml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refused(recipe: str | Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe)
    return caught.value


def plan_of(name: str) -> Plan:
    """Of a shipped recipe: large ones on a node of eight GPUs, the others on one CPU."""
    facts = ONE_NODE if name in LARGE else Facts(world_size=1, device="cpu", core_version=(0, 16))
    return build(with_data(load_recipe(name)), facts)


def with_data(config: RunConfig) -> RunConfig:
    """Phases have tasks, whose datasets only the user can name."""
    tasks = {field.name: getattr(config.data, field.name) for field in dataclasses.fields(config.data)}
    return replace(
        config, {f"data.{name}.train": ["somewhere"] for name, task in tasks.items() if getattr(task, "weight", 0)}
    )


# What ships


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_builds_and_reads_back_equal_from_its_dump(name: str, write: Write) -> None:
    config = load_recipe(name)
    assert config.name == name
    plan = plan_of(name)
    assert plan.config == with_data(config) and (plan.moe is None) == (config.moe.num_experts == 0)
    assert load_recipe(write(dump(config))) == config


def test_every_backbone_ships_large_mini_and_tiny_with_each_ablation() -> None:
    assert set(recipe_names()) == {
        *("most-16b", "most-mini", "most-tiny", "most-3b-dense", "most-3b-upcycled"),
        *(f"most-{size}-{kind}" for size in ("mini", "tiny") for kind in ("dense", "upcycled")),
        *(f"{kind}{size}" for kind in ("no-shared", "vanilla-moe") for size in ("", "-mini", "-tiny")),
        *("stage1-asr-tts", "stage2-instruct", "stage1-tiny", "stage2-tiny"),
        *("most-c-16b", "most-c-tiny"),
        *(
            f"{name}{size}"
            for name in ("stage1-most-c", "stage2-most-c", "stage2-most-c-augmented")
            for size in ("", "-tiny")
        ),
        *(
            f"stage{n}-{kind}{size}"
            for n in (1, 2)
            for kind in ("no-shared", "vanilla-moe", "uneven")
            for size in ("", "-tiny")
        ),
    }


def test_most_c_is_most_with_a_projector() -> None:
    for ours, theirs in (
        ("most-c-16b", "most-16b"), ("most-c-tiny", "most-tiny"), ("stage1-most-c", "stage1-asr-tts"),
        ("stage2-most-c", "stage2-instruct"), ("stage1-most-c-tiny", "stage1-tiny"),
        ("stage2-most-c-tiny", "stage2-tiny"),
    ):  # fmt: skip
        ours_without = replace(load_recipe(ours), {"model.wave_size": 0, "name": theirs})
        assert ours_without == load_recipe(theirs) and load_recipe(ours).model.wave_size in (39, 768)


def test_phases_are_those_of_the_paper_on_the_model_they_name() -> None:
    one, two, tiny = (load_recipe(name) for name in ("stage1-asr-tts", "stage2-instruct", "stage2-tiny"))
    assert one.model == two.model == load_recipe("most-16b").model and tiny.model == load_recipe("most-tiny").model
    shares = [
        {field.name: task.weight for field in dataclasses.fields(run.data) if (task := getattr(run.data, field.name))
         and getattr(task, "weight", 0)} for run in (one, two, tiny)
    ]  # fmt: skip
    assert shares[0] == {"asr": 0.4, "tts": 0.4, "text_lm": 0.2}
    assert shares[1] == shares[2] == {"speech_instruct": 0.4, "text_instruct": 0.4, "asr": 0.1, "tts": 0.1}
    assert (one.train.steps, one.train.global_batch_size) == (500_000, 512)
    assert (two.train.steps, two.train.global_batch_size) == (10_000, 128)
    assert one.train.batch_counts == two.train.batch_counts == tiny.train.batch_counts == "documents"
    assert (two.engine.kind, two.engine.zero_stage, two.engine.offload_optimizer) == ("deepspeed", 2, True)


def test_a_phase_without_datasets_is_refused_by_the_task() -> None:
    with pytest.raises(ConfigError, match="data.asr.train = .*name its datasets"):
        build(load_recipe("stage1-tiny"), Facts(world_size=1, device="cpu", core_version=(0, 16)))


def test_most_16b_has_the_published_shapes_of_deepseek_v2_lite() -> None:
    config = load_recipe("most-16b")
    model, moe = dataclasses.asdict(config.model), config.moe
    published = {
        "attention": "mla", "hidden_size": 2048, "num_layers": 27, "num_heads": 16, "kv_lora_rank": 512,
        "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "dense_hidden_size": 10944, "norm_eps": 1e-6, "tied_embeddings": False, "rope": "yarn", "rope_theta": 10000.0,
        "rope_factor": 40.0, "rope_original_length": 4096, "rope_beta_fast": 32.0, "rope_beta_slow": 1.0,
        "rope_mscale": 0.707, "rope_mscale_all_dim": 0.707, "max_positions": 163840,
    }  # fmt: skip
    assert {name: model[name] for name in published} == published
    assert (moe.num_experts, moe.top_k, moe.expert_hidden_size, moe.shared_hidden_size) == (64, 6, 1408, 2816)
    assert (moe.dense_layers, moe.normalise_top_k, moe.scale) == ((0,), False, 1.0)
    plan = build(config, ONE_NODE)
    assert plan.tokens.vocab_size == 102400
    assert plan.moe is not None and plan.moe.groups == (tuple(range(32)), tuple(range(32, 64)))
    assert plan.moe.group_of_tag == (0, 1, None) and plan.moe.shared_only == (2,)


def test_most_3b_has_the_published_shapes_of_llama_3_2_3b() -> None:
    config = load_recipe("most-3b-dense")
    model = dataclasses.asdict(config.model)
    published = {
        "attention": "gqa", "hidden_size": 3072, "num_layers": 28, "num_heads": 24, "num_kv_heads": 8, "head_dim": 128,
        "dense_hidden_size": 8192, "norm_eps": 1e-5, "tied_embeddings": True, "rope": "llama3", "rope_theta": 500000.0,
        "rope_factor": 32.0, "rope_original_length": 8192, "max_positions": 131072,
    }  # fmt: skip
    assert {name: model[name] for name in published} == published
    assert config.moe.num_experts == 0
    assert build(config, ONE_NODE).tokens.vocab_size == 128768  # 128256 and 504 new ones, in 128s
    upcycled = load_recipe("most-3b-upcycled")
    assert upcycled.model == config.model and upcycled.tokens == config.tokens
    assert upcycled.moe.expert_hidden_size == config.model.dense_hidden_size  # an expert starts as the feed-forward


def parameters(config: RunConfig, vocabulary: int) -> tuple[int, int]:
    """(all parameters, those that act on one text token), by the arithmetic of the papers."""
    model, moe = config.model, config.moe
    width, heads = model.hidden_size, model.num_heads
    if model.attention == "mla":
        query = heads * (model.qk_nope_head_dim + model.qk_rope_head_dim)
        attention = width * query + width * (model.kv_lora_rank + model.qk_rope_head_dim) + model.kv_lora_rank
        attention += model.kv_lora_rank * heads * (model.qk_nope_head_dim + model.v_head_dim)
        attention += heads * model.v_head_dim * width
    else:
        head = model.head_dim or width // heads
        attention = 2 * width * heads * head + 2 * width * (model.num_kv_heads or heads) * head
    embeddings = vocabulary * width * (1 if model.tied_embeddings else 2) + width  # and the last norm
    embeddings += width * (model.wave_size + 1) if model.wave_size else 0  # the projector of continuous frames
    num_moe = model.num_layers - len(moe.dense_layers) if moe.num_experts else 0
    everywhere = embeddings + model.num_layers * (attention + 2 * width)
    everywhere += (model.num_layers - num_moe) * 3 * width * model.dense_hidden_size
    everywhere += num_moe * (3 * width * moe.shared_hidden_size + moe.num_experts * width)  # and the gate
    expert = num_moe * 3 * width * moe.expert_hidden_size
    return everywhere + moe.num_experts * expert, everywhere + moe.top_k * expert


def test_parameters_add_up_to_the_published_numbers() -> None:
    assert parameters(load_recipe("most-16b"), 102400) == (15_706_484_224, 2_661_150_208)
    assert parameters(load_recipe("most-3b-dense"), 128256)[0] == 3_212_749_824


@pytest.mark.parametrize("name", recipe_names())
def test_the_size_of_a_plan_is_what_the_papers_arithmetic_gives(name: str) -> None:
    plan = plan_of(name)
    size = count_parameters(plan)
    assert (size.total, size.active) == parameters(plan.config, plan.tokens.vocab_size)


def test_compressed_queries_are_two_thinner_matrices_and_a_norm() -> None:
    config = load_recipe("most-16b")
    plain, compressed = (build(replace(config, {"model.q_lora_rank": r}), ONE_NODE) for r in (None, 1536))
    saved = 27 * (2048 * 16 * 192 - (2048 * 1536 + 1536 + 1536 * 16 * 192))
    assert count_parameters(plain).total - count_parameters(compressed).total == saved


@pytest.mark.parametrize("size", ["", "-mini", "-tiny"])
def test_ablations_have_as_many_active_parameters_per_token_as_what_they_are_compared_with(size: str) -> None:
    most = load_recipe(f"most{size or '-16b'}")
    without_shared, vanilla = load_recipe(f"no-shared{size}"), load_recipe(f"vanilla-moe{size}")
    assert without_shared.moe.shared_hidden_size == 0 < most.moe.shared_hidden_size
    (_, active), (less, same) = parameters(most, 1000), parameters(without_shared, 1000)
    assert same == active and less < parameters(most, 1000)[0]
    assert parameters(vanilla, 1000) == parameters(most, 1000)
    assert len(vanilla.moe.groups) == 1 and len(most.moe.groups) == 2


@pytest.mark.parametrize("kind", ["no-shared", "vanilla-moe"])
@pytest.mark.parametrize("size", ["", "-tiny"])
def test_a_phase_of_an_ablation_is_the_phase_with_its_experts_alone_changed(kind: str, size: str) -> None:
    for number, phase in ((1, "asr-tts"), (2, "instruct")):
        ours, of_phase = load_recipe(f"stage{number}-{kind}{size}"), f"stage{number}{size or '-' + phase}"
        theirs, experts = load_recipe(of_phase), load_recipe(f"{kind}{size}").moe
        assert dataclasses.replace(ours, moe=theirs.moe, name=theirs.name) == theirs
        said = {"aux_coefficient": theirs.moe.aux_coefficient, "aux_loss": theirs.moe.aux_loss}  # by the phase
        assert ours.moe == dataclasses.replace(experts, **said) != theirs.moe


@pytest.mark.parametrize("size", ["", "-tiny"])
def test_an_uneven_phase_is_the_phase_with_another_sharing_out(size: str) -> None:
    for number, phase in ((1, "asr-tts"), (2, "instruct")):
        ours, theirs = load_recipe(f"stage{number}-uneven{size}"), load_recipe(f"stage{number}{size or '-' + phase}")
        moe = dataclasses.replace(ours.moe, groups=theirs.moe.groups)
        assert dataclasses.replace(ours, moe=moe, name=theirs.name) == theirs and ours.moe != theirs.moe


@pytest.mark.parametrize("size", ["", "-tiny"])
def test_augmentation_of_frames_is_the_default_set_without_what_changes_their_number(size: str) -> None:
    ours, theirs = load_recipe(f"stage2-most-c-augmented{size}"), load_recipe(f"stage2-most-c{size}")
    default = load_recipe("parts/augment").data.augment
    assert dataclasses.replace(default, speed=0.0, tempo=0.0) == ours.data.augment and ours.data.augment.is_on
    assert ours.data.spec_augment.is_on and not theirs.data.augment.is_on
    off = dataclasses.replace(ours.data, augment=theirs.data.augment, spec_augment=theirs.data.spec_augment)
    assert dataclasses.replace(ours, data=off, name=theirs.name) == theirs


@pytest.mark.parametrize(
    ("lines", "field"),
    [
        ("[data.augment]\nspeed = 0.1", "data.augment.speed"),
        ("[data.augment]\ntempo = 0.1", "data.augment.tempo"),
        ("[data.augment]\nnoise = 2.0", "data.augment.noise"),
        ("[data.spec_augment]\ntime_masks = -1", "data.spec_augment.time_masks"),
        ("[data.spec_augment]\nfeature_share = 0.9", "data.spec_augment.feature_share"),
        ("[data.asr]\nreal_share = 0.5", "data.asr.real_share"),
        ('[data.asr]\nreal = ["x"]', "data.asr.real_share"),
        ('[data.asr]\nreal_share = 1.0\nreal = ["x"]', "data.asr.real_share"),
    ],
)
def test_what_augmentation_and_replay_cannot_be_is_refused_by_field(lines: str, field: str, write: Write) -> None:
    config = load_recipe(write(f'extends = "stage1-most-c"\n{lines}'))
    with pytest.raises(ConfigError) as caught:
        build(with_data(config), ONE_NODE)
    assert caught.value.field == field


def test_augmentation_in_training_is_for_models_that_hear(write: Write) -> None:
    config = load_recipe(write('extends = "most-tiny"\n[data.spec_augment]\ntime_masks = 1'))
    with pytest.raises(ConfigError, match="is about continuous features, and model.wave_size is 0") as caught:
        build(config, Facts(world_size=1, device="cpu", core_version=(0, 16)))
    assert caught.value.field == "data.spec_augment"


@pytest.mark.parametrize("size", ["3b", "mini", "tiny"])
def test_an_upcycled_recipe_differs_from_its_dense_twin_in_experts_and_layout_alone(size: str) -> None:
    dense, upcycled = load_recipe(f"most-{size}-dense"), load_recipe(f"most-{size}-upcycled")
    differing = [f.name for f in dataclasses.fields(dense) if getattr(dense, f.name) != getattr(upcycled, f.name)]
    assert differing == (["name", "moe", "layout"] if size == "3b" else ["name", "moe"])


# Files


def test_a_later_file_wins_field_by_field_and_lists_are_replaced_whole(write: Write) -> None:
    write(
        'extends = "most-tiny"\n[train]\nseed = 1\nsteps = 7\n[moe]\ngroups = ["text+wave: 0-3", "audio: 4-7"]',
        "a.toml",
    )
    top = write('extends = "../a.toml"\n[train]\nsteps = 8\n[moe]\nshared_only_tags = []', "deep/b.toml")
    config = load_recipe(top)
    assert (config.train.seed, config.train.steps) == (1, 8)
    assert config.train.sequence_length == load_recipe("most-tiny").train.sequence_length
    assert config.moe.groups == ("text+wave: 0-3", "audio: 4-7") and config.moe.shared_only_tags == ()


def test_several_bases_are_laid_over_each_other_in_their_order(write: Write) -> None:
    write("[train]\nsteps = 5\nseed = 1", "one.toml")
    write("[train]\nsteps = 6\nclip = 2.0", "two.toml")
    config = load_recipe(write('extends = ["most-tiny", "one.toml", "two.toml"]\n[train]\nclip = 3.0'))
    assert (config.train.steps, config.train.seed, config.train.clip) == (6, 1, 3.0)
    assert config.model == load_recipe("most-tiny").model
    assert refused(write("extends = []")).field == refused(write('extends = ["most-tiny", 3]')).field == "extends"


def test_extends_looks_beside_the_file_and_not_where_one_stands(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("[train]\nseed = 5", "recipes/base.toml")
    top = write('extends = "base.toml"', "recipes/top.toml")
    elsewhere = write("[train]\nseed = 6", "elsewhere/base.toml")
    monkeypatch.chdir(elsewhere.parent)
    assert load_recipe(top).train.seed == 5
    assert load_recipe("base.toml").train.seed == 6  # a path of one's own starts where one stands


def test_recipes_that_extend_each_other_are_refused_by_name(write: Write) -> None:
    write('extends = "b.toml"', "a.toml")
    error = refused(write('extends = "a.toml"', "b.toml"))
    assert error.field == "extends" and "b.toml extends itself" in str(error)
    assert "c.toml extends itself" in str(refused(write('extends = "c.toml"', "c.toml")))


@pytest.mark.parametrize(
    ("given", "hint"),
    [("most-tyny", "did you mean most-tiny?"), ("none-such.toml", "most-16b, most-3b-dense"), ("", "most-16b")],
)
def test_a_missing_recipe_is_refused_with_what_there_is(given: str, hint: str, write: Write) -> None:
    error = refused(given)
    assert (error.field, error.value, error.wrong) == ("config", given, "no such recipe") and hint in error.remedy
    assert hint in refused(write(f'extends = "{given}"')).remedy


@pytest.mark.parametrize("base", ["3", '["most-tiny", 1]', "true"])
def test_a_base_that_is_no_name_is_refused(base: str, write: Write) -> None:
    assert refused(write(f"extends = {base}")).field == "extends"


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        ("[trian]\nsteps = 3", "trian", "did you mean train?"),
        ("steps = 3", "steps", "known here: name, device, tokens"),
        ("[moe]\ntopk = 3", "moe.topk", "did you mean moe.top_k?"),
        ("[train]\nextends = 'most-tiny'", "train.extends", "no such setting"),
        ("[moe]\nzzz = 3", "moe.zzz", "known here: num_experts, top_k"),
        ("[train]\nsteps = '3'", "train.steps", "of type str; give int"),
        ("[train]\nsteps = 3.0", "train.steps", "of type float; give int"),
        ("[train]\nsteps = true", "train.steps", "of type bool; give int"),
        ("[train]\nclip = '1'", "train.clip", "of type str; give float"),
        ("[train]\nclip = false", "train.clip", "of type bool; give float"),
        (f"[train]\nclip = {10**400}", "train.clip", "too large for a float"),
        ("[model]\ntied_embeddings = 1", "model.tied_embeddings", "of type int; give bool"),
        ("[model]\nq_lora_rank = 'none'", "model.q_lora_rank", "of type str; give int"),
        ("name = 3", "name", "of type int; give str"),
        ("name = 2020-01-01", "name", "of type date; give str"),
        ("moe = 3", "moe", "a table of settings is wanted; write [moe]"),
        ("[moe.top_k]\nx = 1", "moe.top_k", "of type dict; give int"),
        ("[moe]\ngroups = 'text: 0-63'", "moe.groups", "a list is wanted; write it in [ ]"),
        ("[moe]\ngroups = [1]", "moe.groups", "of type int; give str"),
        ("[moe]\ndense_layers = [0, 'one']", "moe.dense_layers", "of type str; give int"),
        ("[train]\nbetas = [0.9]", "train.betas", "2 values are wanted; give that many"),
        ("[moe]\ngate = 'referense'", "moe.gate", "use one of masked_softmax, reference; did you mean reference?"),
        ("[moe]\ngate = 3", "moe.gate", "not a choice; use one of masked_softmax, reference"),
        ("[moe]\ngate = ['reference']", "moe.gate", "not a choice"),
        ("core = 3", "core", "a table of settings is wanted"),
        ("[core]\nmoe_layer = [1, 0]", "core.moe_layer", "of type list; give bool or int or float or str"),
        ("[deepspeed.a]\nb = []", "deepspeed.a.b", "of type list"),
        ("[deepspeed]\n'a.b' = 1\na = {b = 2}", "deepspeed.a.b", "given twice (also as 1); keep one"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_refused_by_its_dotted_name(text: str, field: str, words: str, write: Write) -> None:
    error = refused(write(text))
    assert error.field == field
    assert str(error).startswith(f"{field} = ") and words in str(error)


@pytest.mark.parametrize(
    "content", [b"[train\nsteps = 3", b"steps = = 3", b"[moe]\ntop_k = 1\ntop_k = 2", b"name = '\xff'", b"\x00"]
)
def test_a_file_that_is_no_toml_is_refused_with_its_path(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_bytes(content)
    error = refused(tmp_path / "bad.toml")
    assert error.field == "config" and str(tmp_path / "bad.toml") in str(error) and "not readable as TOML" in str(error)


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    assert refused(tmp_path).wrong == "no such recipe"


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("[train]\nlearning_rate = nan", "train.learning_rate"),
        ("[train]\nbetas = [0.9, nan]", "train.betas"),
        ("[model]\nrope_theta = inf", "model.rope_theta"),
        ("[moe]\nscale = -nan", "moe.scale"),
        ("[core]\nwindow = nan", "core.window"),
        ("[deepspeed.zero_optimization]\nsub_group_size = inf", "deepspeed.zero_optimization.sub_group_size"),
    ],
)
def test_a_number_that_is_not_one_is_refused_before_anything_starts(line: str, field: str, write: Write) -> None:
    with pytest.raises(ConfigError, match="not a finite number") as caught:
        build(load_recipe(write(f'extends = "most-tiny"\n{line}')), ONE_NODE)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("files", "last"),
    [
        (["[deepspeed]\n'z.bucket' = 1", "[deepspeed.z]\nbucket = 2"], 2),
        (["[deepspeed.z]\nbucket = 1", "[deepspeed]\n'z.bucket' = 2"], 2),
        (["[deepspeed.z]\nbucket = 1", "[deepspeed]\n'z.bucket' = 2", "[deepspeed.z]\nbucket = 3"], 3),
    ],
)
def test_an_upstream_setting_means_the_same_nested_and_dotted(files: list[str], last: int, write: Write) -> None:
    base = "most-tiny"
    for number, text in enumerate(files):
        base = str(write(f'extends = "{base}"\n{text}\nother.{"x" * (number + 1)} = {number}', f"{number}.toml"))
    others = {
        f"z.other.{'x' * (n + 1)}" if "[deepspeed.z]" in t else f"other.{'x' * (n + 1)}": n for n, t in enumerate(files)
    }
    assert load_recipe(base).deepspeed == {"z.bucket": last, **others}


def test_whole_numbers_become_floats_where_a_float_is_wanted_and_stay_whole_elsewhere(write: Write) -> None:
    config = load_recipe(write("[train]\nclip = 1\nsteps = 3\n[core]\nwindow = 2"))
    assert type(config.train.clip) is float and type(config.train.steps) is int and type(config.core["window"]) is int


# The resolved file


@pytest.mark.parametrize("name", ["most-tiny", "most-3b-dense"])
def test_the_resolved_file_holds_every_field_that_is_set_and_no_other(name: str) -> None:
    given = leaves(load_recipe(name))
    written: dict[str, Any] = {}

    def collect(table: dict[str, Any], at: str) -> None:
        for key, part in table.items():
            if isinstance(part, dict) and key not in loading.UPSTREAM:
                collect(part, f"{at}{key}.")
            else:
                written[f"{at}{key}"] = part

    collect(tomllib.loads(dump(load_recipe(name))), "")
    assert any(value is None for value in given.values())
    wanted = {field: list(value) if isinstance(value, tuple) else value for field, value in given.items()}
    assert written == {field: value for field, value in wanted.items() if value is not None}


def test_strings_that_toml_must_escape_and_upstream_tables_survive_the_dump(write: Write) -> None:
    config = replace(
        load_recipe("most-tiny"),
        {
            "name": 'quote " backslash \\ tab \t line \n 話',
            "core.window": 1e-30,
            "core.flag": True,
            "deepspeed.zero_optimization.bucket": 5,
            "deepspeed.zero_optimization.kind": "a.b",
            "model.q_lora_rank": 8,
            "moe.dense_layers": [],
        },
    )
    assert config.deepspeed == {"zero_optimization.bucket": 5, "zero_optimization.kind": "a.b"}
    assert load_recipe(write(dump(config))) == config


def test_replace_sets_unsets_and_leaves_the_original_alone() -> None:
    config = load_recipe("most-tiny")
    changed = replace(config, {"layout.expert_tensor": 2, "core.window": 3, "train.seed": 9})
    assert (changed.layout.expert_tensor, changed.core, changed.train.seed) == (2, {"window": 3}, 9)
    assert replace(changed, {"layout.expert_tensor": None, "core.window": None, "train.seed": None}) == config
    assert config.train.seed == 42  # the default, which unsetting gives back
    assert config == load_recipe("most-tiny")


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"moe.topk": 1}, "moe.topk", "did you mean moe.top_k?"),
        ({"moe.top_k.x": 1}, "moe.top_k.x", "top_k has no settings inside it"),
        ({"more.x": 1}, "more", "did you mean moe?"),
        ({"moe": 3}, "moe", "a table of settings is wanted"),
        ({"train.steps": 2.5}, "train.steps", "give int"),
    ],
)
def test_replace_refuses_what_a_recipe_may_not_say(change: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(load_recipe("most-tiny"), change)
    assert caught.value.field == field and words in str(caught.value)
