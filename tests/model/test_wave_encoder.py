"""Layers of the speech encoder inside the model: they compute what the whole encoder does, utterance by utterance, and
they learn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_most.config import count_parameters, load_recipe, replace
from megatron_most.convert.families.most import write
from megatron_most.convert.families.rows import WAVE_LAYERS
from megatron_most.convert.most_hf.configuration_most import MostConfig
from megatron_most.convert.most_hf.encoder_most import MostWaveEncoder
from megatron_most.convert.tables import link
from megatron_most.data import Document, PackedBatch, Wave, check_batch, pack_rows
from megatron_most.engine import make_plan, open_groups
from megatron_most.errors import DataError
from megatron_most.model import WaveProjector, build_model, core_config
from megatron_most.plan.weights import held_by_stage, tensors_of
from megatron_most.runtime import Ranks, find_device
from megatron_most.speech import FrameSettings, open_frames, read_layers
from megatron_most.vocab import AUDIO, TEXT, TokenMap
from tests.harness import run_ranks
from tests.speech_models import save_tiny_hubert

OF_TINY_HUBERT = {"model.wave_layers": [2, 3], "model.wave_heads": 2, "model.wave_inner_size": 64}
OF_MFCC = {"model.wave_size": 39, "model.wave_layers": [1, 2], "model.wave_heads": 3, "model.wave_inner_size": 16}


@pytest.mark.parametrize("stack", [1, 3])
def test_trained_layers_on_the_frames_below_are_the_whole_encoder_of_each_utterance(tmp_path: Path, stack: int) -> None:
    """Three utterances in one row, two of them side by side; the last frame of a stack is not always full."""
    folder = str(save_tiny_hubert(tmp_path / "hubert", "group"))
    below, whole = (open_frames(FrameSettings(kind="hubert", model=folder, layer=at, stack=stack)) for at in (1, 3))
    draw = np.random.default_rng(0)
    waves = [0.1 * draw.standard_normal(size, np.float32) for size in (12000, 7000, 5000, 9700)]
    frames, wanted = below(waves), np.concatenate(whole(waves))
    sizes = [len(of) for of in frames]
    assert len(set(sizes)) == 4 and (stack == 1 or any((of[-1, -32:] == 0).all() for of in frames))
    is_wave_BS, starts_BS = torch.zeros(2, 2, sum(sizes) + 3, dtype=torch.bool)
    wave_BSF = torch.full((*is_wave_BS.shape, 32 * stack), torch.nan)
    for row, numbers in enumerate(([0, 1, 2], [3])):
        at = 2
        for number in numbers:
            at += number == 2  # a place of text before it
            here = slice(at, at + sizes[number])
            is_wave_BS[row, here], starts_BS[row, at] = True, True
            wave_BSF[row, here] = torch.from_numpy(frames[number])
            at += sizes[number]
    changes = {**OF_TINY_HUBERT, "model.wave_size": 32 * stack, "model.wave_stack": stack}
    plan = make_plan(replace(load_recipe("most-c-tiny"), changes), 1, find_device("cpu"))
    wave = WaveProjector(plan.config.model, core_config(plan))
    assert wave.encoder is not None
    wave.encoder.load_state_dict(read_layers(below.identity, [2, 3], model=folder).tensors)
    with torch.no_grad():
        found = wave.encode(wave_BSF, is_wave_BS, starts_BS)
    assert bool((found[~is_wave_BS] == 0).all())
    off = np.abs(found[is_wave_BS].numpy() - wanted).max() / np.abs(wanted).max()
    assert off < 1e-5  # fp32, sums in another order


def heard(tokens: TokenMap, size: int, seed: int) -> Document:
    """Text, two utterances of four and three frames side by side, text that is learnt."""
    draw = np.random.default_rng(seed)
    ids, tags = draw.integers(5, 20, size), np.full(size, TEXT)
    ids[3:10], tags[3:10] = tokens.begin_wave_id, AUDIO
    starts = np.isin(np.arange(7), [0, 4])
    wave = Wave(np.arange(3, 10), draw.normal(size=(7, 39)).astype(np.float32), starts)
    return Document(ids.tolist(), tags.tolist(), [False] * 10 + [True] * (size - 10), wave)


def test_a_frame_is_heard_from_the_first_place_of_its_utterance_on_and_never_before() -> None:
    [first_changed] = run_ranks(change_each_frame, 1)
    assert first_changed == [3] * 4 + [7] * 3


def change_each_frame(ranks: Ranks) -> list[int]:
    plan = make_plan(replace(load_recipe("most-c-tiny"), {"model.init_std": 0.2, **OF_MFCC}), 1, ranks.device)
    first = []
    with open_groups(plan, ranks) as session, torch.no_grad():
        model = build_model(plan, session.groups).eval()
        documents = [heard(plan.tokens, 16, 0), heard(plan.tokens, 14, 1)]
        before = model(pack_rows([documents], 32, plan.tokens), with_labels=False)
        for t in range(7):
            wave = documents[0].wave
            assert wave is not None and wave.features_NF is not None
            other = wave.features_NF.copy()
            other[t, :20] += 1.0  # norms would take the same step in all numbers away
            changed = Document(*list(vars(documents[0]).values())[:3], Wave(wave.places_N, other, wave.starts_N))
            after = model(pack_rows([[changed, documents[1]]], 32, plan.tokens), with_labels=False)
            # Experts of more rows round otherwise.
            moved = (after - before).abs().amax(-1)[0] > 1e-6 * before.abs().max()
            moved = moved.nonzero().squeeze(-1).tolist()
            assert moved == list(range(moved[0], 15))  # to the end of its document, and none of its neighbour's
            first.append(moved[0])
    return first


def test_packed_utterances_teach_each_layer_what_they_teach_it_alone() -> None:
    [(together, alone)] = run_ranks(gradients, 1)
    assert len(together) == 2 * 16
    for name, gradient in together.items():
        if name.endswith("k_proj.bias"):  # the same for all keys: no part of a softmax
            continue
        assert float(gradient.norm()) > 1e-4, name
        assert float((gradient - alone[name]).abs().max() / gradient.abs().max()) < 1e-5, name


def gradients(ranks: Ranks) -> Any:
    plan = make_plan(replace(load_recipe("most-c-tiny"), {"model.init_std": 0.2, **OF_MFCC}), 1, ranks.device)
    with open_groups(plan, ranks) as session:
        model, found = build_model(plan, session.groups).eval(), []
        assert sum(w.numel() for w in model.parameters()) == count_parameters(plan).total
        [held] = held_by_stage(plan, tensors_of(plan))
        assert sum(w.numel() for w in model.wave.parameters()) == held.parts["wave"]
        documents, encoder = [heard(plan.tokens, size, size) for size in (16, 13, 14)], model.wave.encoder
        for rows in ([[documents]], [[[document]] for document in documents]):
            encoder.zero_grad()
            for row in rows:
                batch = pack_rows(row, 48, plan.tokens)
                (model(batch) * batch.loss_weights_BS).sum().backward()
            found.append({name: weight.grad.clone() for name, weight in encoder.named_parameters()})
    return found


def test_rows_without_any_frame_give_all_layers_a_gradient_of_zero() -> None:
    [largest] = run_ranks(without_frames, 1)
    assert largest == 0.0


def without_frames(ranks: Ranks) -> float:
    plan = make_plan(replace(load_recipe("most-c-tiny"), OF_MFCC), 1, ranks.device)
    with open_groups(plan, ranks) as session:
        model = build_model(plan, session.groups)
        text = Document([5, 6, 7, 8], [TEXT] * 4, [True] * 4)
        model(pack_rows([[text]], 32, plan.tokens)).sum().backward()
        return max(float(weight.grad.abs().max()) for weight in model.wave.encoder.parameters())


def test_frames_that_begin_in_the_middle_of_an_utterance_are_refused_by_place() -> None:
    plan = make_plan(replace(load_recipe("most-c-tiny"), OF_MFCC), 1, find_device("cpu"))
    batch = pack_rows([[heard(plan.tokens, 16, 0)]], 32, plan.tokens)
    check_batch(batch, plan)
    none = torch.zeros_like(batch.is_pad_BS)
    with pytest.raises(DataError, match="row 0, token 3: .* begin in the middle of an utterance"):
        check_batch(PackedBatch(**{**vars(batch), "wave_starts_BS": none}), plan)
    with pytest.raises(DataError, match=r"wave_starts_BS: shape \(1, 31\) differs"):
        check_batch(PackedBatch(**{**vars(batch), "wave_starts_BS": none[:, 1:]}), plan)


def test_a_document_that_is_cut_within_an_utterance_begins_one_there() -> None:
    wave = Wave(np.arange(3, 10), np.zeros((7, 2), np.float32), np.isin(np.arange(7), [0, 4]))
    assert wave.cut(5, 12).is_first_N.tolist() == [True, False, True, False, False]
    assert Wave(np.array([1, 2, 5, 6]), None).is_first_N.tolist() == [True, False, True, False]


def test_the_transformers_module_hears_what_ours_does() -> None:
    changes = {**OF_MFCC, "model.wave_size": 78, "model.wave_stack": 2, "model.init_std": 0.2}
    plan = make_plan(replace(load_recipe("most-c-tiny"), changes), 1, find_device("cpu"))
    ours = WaveProjector(plan.config.model, core_config(plan))
    theirs = MostWaveEncoder(MostConfig(**write(plan)))
    state = {found.parts[0][0].partition("hubert_model.")[2]: found.name for found in link(WAVE_LAYERS, plan)}
    theirs.load_state_dict({name: ours.get_parameter(of.removeprefix("wave.")) for name, of in state.items()})
    is_wave_BS, starts_BS = torch.zeros(2, 2, 12, dtype=torch.bool)
    for row, (first, second, end) in enumerate(((1, 4, 9), (0, 5, 12))):
        is_wave_BS[row, first:end], starts_BS[row, [first, second]] = True, True
    wave_BSF = torch.randn(2, 12, 78)
    wave_BSF[0, 3, 39:] = 0.0  # its utterance has one frame less
    with torch.no_grad():
        found, wanted = theirs(wave_BSF, is_wave_BS, starts_BS), ours.encode(wave_BSF, is_wave_BS, starts_BS)
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-6 and float(wanted.abs().max()) > 0.1


def test_an_encoder_that_norms_before_its_layers_is_refused(tmp_path: Path) -> None:
    folder = str(save_tiny_hubert(tmp_path / "hubert", "layer"))
    source = open_frames(FrameSettings(kind="hubert", model=folder, layer=1))
    with pytest.raises(DataError, match=r"do_stable_layer_norm = True: .* leave all of this encoder frozen"):
        read_layers(source.identity, [2, 3], model=folder)
