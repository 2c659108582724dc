"""The mixture-of-experts oracle against numbers worked out by hand.

Logits are logarithms of the wanted softmax over all experts, so that probabilities are round: with log(.2 .1 .4 .3) and
text owning experts 0 and 1, the in-group mass of a text token is 0.3 and its in-group softmax is (2/3, 1/3).
"""

# T tokens, E routed experts, D width, F expert hidden width, G = 2F, K experts per token

from __future__ import annotations

import math

import pytest
import torch

from . import mamoe

TEXT, AUDIO, WAVE = 0, 1, 2
HALVES = {TEXT: [0, 1], AUDIO: [2, 3]}
PLAIN = {"normalise": False, "scale": 1.0}


def logs(*rows):
    return torch.log(torch.tensor(rows, dtype=torch.float64))


def tags(*values):
    return torch.tensor(values)


def choices(num_experts, *rows):
    chosen_TE = torch.zeros(len(rows), num_experts, dtype=torch.bool)
    for t, row in enumerate(rows):
        chosen_TE[t, list(row)] = True
    return chosen_TE


def is_close(actual, expected):
    return torch.allclose(actual, torch.as_tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)  # float64


def random_case(seed, num_tokens=7, num_experts=6, width=3, hidden=2):
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64).requires_grad_()

    x_TD, router_ED = normal(num_tokens, width), normal(num_experts, width)
    experts = [(normal(2 * hidden, width), normal(width, hidden)) for _ in range(num_experts)]
    return x_TD, router_ED, experts, (normal(2 * hidden, width), normal(width, hidden))


# ---------------------------------------------------------------------------------------------------------- the gate


def test_reference_weights_keep_the_in_group_mass_and_masked_softmax_divides_it_out():
    logits_TE = logs([0.2, 0.1, 0.4, 0.3])  # text mass .2 + .1 = .3
    reference, chosen_TE, scores_TE = mamoe.gate(logits_TE, tags(TEXT), HALVES, mode="reference", top_k=2, **PLAIN)
    assert is_close(reference, [[0.2, 0.1, 0, 0]]) and is_close(scores_TE, [[0.2, 0.1, 0, 0]])
    assert chosen_TE.tolist() == [[True, True, False, False]]
    masked, _, scores_TE = mamoe.gate(logits_TE, tags(TEXT), HALVES, mode="masked_softmax", top_k=2, **PLAIN)
    assert is_close(masked, [[2 / 3, 1 / 3, 0, 0]]) and is_close(scores_TE, [[2 / 3, 1 / 3, 0, 0]])
    scaled, _, _ = mamoe.gate(
        logits_TE, tags(TEXT), HALVES, mode="masked_softmax", top_k=2, group_constant={TEXT: 0.3, AUDIO: 9.0}, **PLAIN
    )
    assert is_close(scaled, reference)  # times the mass, 0.3, it is the reference again


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_reference_is_stock_routing_on_masked_logits_times_in_group_mass(top_k):
    groups = {TEXT: [0, 3, 4], AUDIO: [1, 2, 5]}
    x_TD, router_ED, _, _ = random_case(seed=top_k)
    logits_TE, tags_T = mamoe.router_logits(x_TD, router_ED), tags(0, 1, 1, 0, 0, 1, 0)
    owned_TE = torch.zeros(7, 6, dtype=torch.bool)
    for t, tag in enumerate(tags_T.tolist()):
        owned_TE[t, groups[tag]] = True
    stock_TE = torch.softmax(logits_TE.masked_fill(~owned_TE, -math.inf), dim=1)
    best = stock_TE.topk(top_k, dim=1)
    stock_TE = torch.zeros_like(stock_TE).scatter(1, best.indices, best.values)
    mass_T1 = (torch.softmax(logits_TE, dim=1) * owned_TE).sum(dim=1, keepdim=True)
    weights_TE, _, _ = mamoe.gate(logits_TE, tags_T, groups, mode="reference", top_k=top_k, **PLAIN)
    assert mass_T1.std() > 0.05  # a constant factor would prove little
    assert is_close(weights_TE, mass_T1 * stock_TE)


def test_normalising_ignores_the_scale_in_reference_and_keeps_it_in_masked_softmax():
    groups = {TEXT: [0, 1, 2], AUDIO: [3]}
    logits_TE = logs([0.3, 0.1, 0.2, 0.4])  # the best two of text: .3 and .2, normalised .6 and .4
    options = {"top_k": 2, "normalise": True, "scale": 16.0}
    weights_TE, _, _ = mamoe.gate(logits_TE, tags(TEXT), groups, mode="reference", **options)
    assert is_close(weights_TE, [[0.6, 0, 0.4, 0]])
    weights_TE, _, _ = mamoe.gate(logits_TE, tags(TEXT), groups, mode="masked_softmax", **options)
    assert is_close(weights_TE, [[9.6, 0, 6.4, 0]])
    options["normalise"] = False  # .3 * 16 = 4.8 and .2 * 16 = 3.2; in the group .3/.6 * 16 = 8 and .2/.6 * 16 = 16/3
    weights_TE, _, _ = mamoe.gate(logits_TE, tags(TEXT), groups, mode="reference", **options)
    assert is_close(weights_TE, [[4.8, 0, 3.2, 0]])
    weights_TE, _, _ = mamoe.gate(logits_TE, tags(TEXT), groups, mode="masked_softmax", **options)
    assert is_close(weights_TE, [[8.0, 0, 16 / 3, 0]])


@pytest.mark.parametrize(("mode", "expected"), [("reference", 0.2 * 3), ("masked_softmax", 2 / 3 * 3)])
def test_normalise_has_no_effect_on_top_1(mode, expected):
    for normalise in (False, True):
        weights_TE, _, _ = mamoe.gate(
            logs([0.2, 0.1, 0.4, 0.3]), tags(TEXT), HALVES, mode=mode, top_k=1, normalise=normalise, scale=3.0
        )
        assert is_close(weights_TE, [[expected, 0, 0, 0]])


def test_unmasked_maxima_pick_a_routing_group_for_the_other_modalitys_expert():
    # Routing groups {0, 1} and {2, 3}; text owns 0 and 2. Unmasked maxima: .25 and .6 (audio's expert 3), so reference
    # keeps the second and takes expert 2 (.1) though expert 0 (.25) is better. In-group softmax: 0 wins, .25/.35 = 5/7.
    groups = {TEXT: [0, 2], AUDIO: [1, 3]}
    logits_TE = logs([0.25, 0.05, 0.1, 0.6])
    limits = {"num_routing_groups": 2, "kept_routing_groups": 1}
    weights_TE, _, scores_TE = mamoe.gate(logits_TE, tags(TEXT), groups, mode="reference", top_k=1, **PLAIN, **limits)
    assert is_close(weights_TE, [[0, 0, 0.1, 0]])
    assert is_close(scores_TE, [[0.25, 0, 0.1, 0]])  # the limit changes the choice, not what the losses average
    weights_TE, _, _ = mamoe.gate(logits_TE, tags(TEXT), groups, mode="masked_softmax", top_k=1, **PLAIN, **limits)
    assert is_close(weights_TE, [[5 / 7, 0, 0, 0]])


@pytest.mark.parametrize("mode", mamoe.MODES)
def test_a_routing_group_without_own_experts_is_never_kept_and_missing_slots_choose_nobody(mode):
    # Routing groups {0, 1}, {2, 3}, {4, 5}; text owns 0, 1 and 4. The middle one has the largest maximum, .5, but no
    # text expert: it scores 0. Keeping one of the others leaves {0, 1} (.2 > .04): two candidates for K = 3.
    groups = {TEXT: [4, 0, 1], AUDIO: [2, 3, 5]}
    logits_TE = logs([0.2, 0.1, 0.5, 0.13, 0.04, 0.03])
    options = {"mode": mode, "top_k": 3, "normalise": True, "scale": 1.0, "num_routing_groups": 3}
    weights_TE, chosen_TE, _ = mamoe.gate(logits_TE, tags(TEXT), groups, kept_routing_groups=1, **options)
    assert is_close(weights_TE, [[2 / 3, 1 / 3, 0, 0, 0, 0]])
    assert chosen_TE.sum() == 2
    weights_TE, _, _ = mamoe.gate(logits_TE, tags(TEXT), groups, kept_routing_groups=2, **options)
    assert is_close(weights_TE, [[10 / 17, 5 / 17, 0, 0, 2 / 17, 0]])  # .2 .1 .04 over .34


def test_a_routing_group_can_be_scored_by_the_sum_of_its_best_experts():
    # One group of all. Maxima: .3 against .28; sums of the best two: .32 against .5.
    logits_TE = logs([0.3, 0.02, 0.28, 0.22, 0.1, 0.08])
    options = {"mode": "masked_softmax", "top_k": 2, "num_routing_groups": 3, "kept_routing_groups": 1, **PLAIN}
    by_maximum, _, _ = mamoe.gate(logits_TE, tags(TEXT), {TEXT: range(6)}, **options)
    by_sum, _, _ = mamoe.gate(logits_TE, tags(TEXT), {TEXT: range(6)}, routing_group_best=2, **options)
    assert is_close(by_maximum, [[0.3, 0.02, 0, 0, 0, 0]])
    assert is_close(by_sum, [[0, 0, 0.28, 0.22, 0, 0]])


def test_an_underflowed_own_score_beats_a_foreign_one():
    logits_TE = torch.tensor([[0.0, -2000.0, 5.0, 5.0]], dtype=torch.float64)  # exp(-2000) is 0 in float64
    weights_TE, chosen_TE, _ = mamoe.gate(logits_TE, tags(TEXT), HALVES, mode="reference", top_k=2, **PLAIN)
    assert weights_TE[0, 1] == 0
    assert chosen_TE.tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("mode", mamoe.MODES)
def test_both_modes_agree_when_every_tag_owns_every_expert(mode):
    groups = {TEXT: [2, 0, 1], AUDIO: [0, 1, 2]}
    logits_TE = logs([0.5, 0.2, 0.3], [0.1, 0.3, 0.6])
    weights_TE, _, _ = mamoe.gate(logits_TE, tags(TEXT, AUDIO), groups, mode=mode, top_k=2, **PLAIN)
    assert is_close(weights_TE, [[0.5, 0, 0.3], [0, 0.3, 0.6]])


@pytest.mark.parametrize("mode", mamoe.MODES)
def test_a_shared_only_token_gets_zeros_even_from_nan_logits_and_a_stray_tag_is_refused(mode):
    logits_TE = torch.cat([logs([0.2, 0.1, 0.4, 0.3]), torch.full((1, 4), math.nan)]).requires_grad_()
    options = {"mode": mode, "top_k": 2, "normalise": True, "scale": 1.0}
    weights_TE, chosen_TE, scores_TE = mamoe.gate(logits_TE, tags(TEXT, WAVE), HALVES, shared_only={WAVE}, **options)
    assert is_close(weights_TE[0], [2 / 3, 1 / 3, 0, 0])
    assert weights_TE[1].tolist() == scores_TE[1].tolist() == [0.0] * 4
    assert not chosen_TE[1].any()
    weights_TE[:, 0].sum().backward()
    assert logits_TE.grad[0].abs().max() > 0.1 and logits_TE.grad[1].tolist() == [0.0] * 4
    with pytest.raises(KeyError, match="tag 2"):
        mamoe.gate(logits_TE, tags(TEXT, WAVE), HALVES, **options)


# --------------------------------------------------------------------------------------------------------- the layer


def test_the_layer_adds_weighed_experts_and_the_shared_one():
    # D = F = 1. Expert(x) = down * silu(gate x) * (up x). At x = ln 3: sigmoid(x) = 3/4, silu(x) = 3/4 ln 3.
    # Expert 0 (gate 1, up 2, down 1): 3/4 ln3 * 2 ln3 = 1.5 (ln 3)^2.   Shared (gate -1, up 1, down 4):
    # silu(-x) = -ln3 / 4, times ln3 times 4: -(ln 3)^2.   Router rows all 0: q = 1/2, so w = 1/2, and
    # y = (1.5 / 2 - 1) (ln 3)^2 for text; the wave token gets Shared alone.
    x_TD = torch.full((2, 1), math.log(3.0), dtype=torch.float64)
    router_ED = torch.zeros(2, 1, dtype=torch.float64)
    experts = [(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0]])), (torch.ones(2, 1), torch.full((1, 1), 99.0))]
    shared = (torch.tensor([[-1.0], [1.0]]), torch.tensor([[4.0]]))
    y_TD = mamoe.layer(
        x_TD, router_ED, experts, shared, tags(TEXT, WAVE), {TEXT: [0], AUDIO: [1]},
        mode="reference", top_k=1, shared_only=(WAVE,), **PLAIN,
    )  # fmt: skip
    square = math.log(3.0) ** 2
    assert is_close(y_TD, [[-0.25 * square], [-square]])


@pytest.mark.parametrize("mode", mamoe.MODES)
@pytest.mark.parametrize("normalise", [False, True])
def test_gradients_of_the_layer_are_those_of_finite_differences(mode, normalise):
    x_TD, router_ED, experts, shared = random_case(seed=5)
    groups, tags_T = {TEXT: [0, 3, 5], AUDIO: [1, 2, 4]}, tags(0, 1, 1, 2, 0, 1, 0)
    flat = [w for pair in [*experts, shared] for w in pair]

    def forward(x_TD, router_ED, *flat):
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
        return mamoe.layer(
            x_TD, router_ED, pairs[:-1], pairs[-1], tags_T, groups,
            mode=mode, top_k=2, normalise=normalise, scale=1.5, shared_only=(WAVE,),
        )  # fmt: skip

    assert torch.autograd.gradcheck(forward, (x_TD, router_ED, *flat), fast_mode=True)
    forward(x_TD, router_ED, *flat).square().sum().backward()
    assert all(w.grad.abs().max() > 0 for w in (x_TD, router_ED, *flat))


# -------------------------------------------------------------------------------------------------------- the losses


def reference_loss(logits_TE, chosen_TE, tags_T, **options):
    options = {"top_k": 1, "alpha": 1.0, "seq_aux": True, "count_everything": False, "shared_only": (WAVE,)} | options
    return mamoe.reference_aux_loss(logits_TE, chosen_TE, tags_T, HALVES, **options)


def test_the_reference_loss_per_sequence_and_per_batch():
    # Text tokens, K = 1, E = 4. Tokens 0 and 2 are sequence 0, token 1 is sequence 1.
    #   token 0: q' = .5 .1 0 0 -> expert 0      token 2: q' = .1 .3 0 0 -> expert 1      token 1: q' = .2 .4 0 0 -> 1
    # Sequence 0 (S = 2): counts 1 1, factors 1 * 4 / 2 = 2, means .3 .2: 2 * .3 + 2 * .2 = 1.
    # Sequence 1 (S = 1): counts 0 1, factor 4, mean .4: 1.6.   Mean over sequences: 1.3.
    # Batch: shares 1/3 2/3, means .8/3 .8/3: 4/3 * .8/3 + 8/3 * .8/3 = 4 * .8/3 = 3.2/3.
    logits_TE = logs([0.5, 0.1, 0.2, 0.2], [0.2, 0.4, 0.3, 0.1], [0.1, 0.3, 0.3, 0.3])
    chosen_TE, tags_T, sequence_T = choices(4, [0], [1], [1]), tags(TEXT, TEXT, TEXT), tags(0, 1, 0)
    for count_everything in (False, True):  # no pads, no markers: the same numbers
        options = {"sequence_T": sequence_T, "count_everything": count_everything, "alpha": 0.001}
        assert is_close(reference_loss(logits_TE, chosen_TE, tags_T, **options), 0.0013)
        assert is_close(reference_loss(logits_TE, chosen_TE, tags_T, seq_aux=False, **options), 0.0032 / 3)


def test_the_reference_loss_falls_when_mass_leaves_the_group():
    # Two text and two audio tokens, each expert chosen once: every factor is 1 * 4 / 4 = 1, every mean q' is mass / 4.
    chosen_TE, tags_T = choices(4, [0], [1], [2], [3]), tags(TEXT, TEXT, AUDIO, AUDIO)
    for mass in (0.8, 0.2):
        own, foreign = mass / 2, (1 - mass) / 2
        text, audio = [own, own, foreign, foreign], [foreign, foreign, own, own]
        assert is_close(reference_loss(logs(text, text, audio, audio), chosen_TE, tags_T), mass)


def test_the_release_counts_pads_and_the_tied_slots_of_markers():
    # Token 0 text (q' .5 .1 -> expert 0), token 1 a pad tagged text (q' .2 .4 -> expert 1), token 2 a marker (q' 0).
    # Ours: token 0 alone, S = 1: 4 * .5 = 2.
    # The release, marker tied to expert 0: S = 3, counts 2 1, factors 8/3 4/3, means .7/3 .5/3: 5.6/9 + 2/9 = 7.6/9.
    # Marker tied to expert 3 instead: counts 1 1 0 1, where q'_3 = 0: 4/3 * .7/3 + 4/3 * .5/3 = 4.8/9.
    logits_TE = logs([0.5, 0.1, 0.2, 0.2], [0.2, 0.4, 0.3, 0.1], [0.25, 0.25, 0.25, 0.25])
    chosen_TE, tags_T, pad_T = choices(4, [0], [1], []), tags(TEXT, TEXT, WAVE), torch.tensor([False, True, False])
    assert is_close(reference_loss(logits_TE, chosen_TE, tags_T, pad_T=pad_T), 2.0)
    for tied, expected in ((0, 7.6 / 9), (3, 4.8 / 9)):
        loss = reference_loss(
            logits_TE, chosen_TE, tags_T, pad_T=pad_T, count_everything=True, tied_TE=choices(4, [], [], [tied])
        )
        assert is_close(loss, expected)
    with pytest.raises(ValueError, match="tied_TE"):
        reference_loss(logits_TE, chosen_TE, tags_T, pad_T=pad_T, count_everything=True)


def test_a_sequence_of_pads_contributes_zero_to_a_mean_over_two():
    # Sequence 0: one text token, q' .5 .1 -> expert 0: 4 * .5 = 2. Sequence 1 only a pad: 0. Mean: 1.
    # The group loss of sequence 0: 2/(1*1) * 1 * 5/6 = 5/3, mean 5/6. z in the group: ln(.6)^2, mean half of it.
    logits_TE = logs([0.5, 0.1, 0.2, 0.2], [0.2, 0.4, 0.3, 0.1])
    chosen_TE, tags_T = choices(4, [0], [1]), tags(TEXT, TEXT)
    where = {"pad_T": torch.tensor([False, True]), "sequence_T": tags(0, 1)}
    assert is_close(reference_loss(logits_TE, chosen_TE, tags_T, **where), 1.0)
    loss = mamoe.group_aux_loss(logits_TE, chosen_TE, tags_T, HALVES, top_k=1, scope="sequence", **where)
    assert is_close(loss, 5 / 6)
    z = mamoe.z_loss(logits_TE, tags_T, HALVES, mode="masked_softmax", scope="sequence", **where)
    assert is_close(z, math.log(0.6) ** 2 / 2)


@pytest.mark.parametrize("num_audio", [2, 10, 18])
@pytest.mark.parametrize("scope", mamoe.SCOPES)
def test_the_group_loss_is_one_at_perfect_balance_for_any_mix(num_audio, scope):
    # 20 tokens, 10, 50 or 90 % audio, uniform logits, choices in turns: each expert of a group is chosen equally often.
    tags_T = tags(*[AUDIO] * num_audio, *[TEXT] * (20 - num_audio))
    chosen_TE = choices(4, *([2 * int(tag) + t % 2] for t, tag in enumerate(tags_T)))
    loss = mamoe.group_aux_loss(torch.zeros(20, 4), chosen_TE, tags_T, HALVES, top_k=1, scope=scope)
    assert is_close(loss, 1.0)


def test_the_group_loss_weighs_each_group_by_its_tokens():
    # Uneven and interleaved: text owns {0, 2, 4}, audio {1, 3}; K = 2. Tokens 0-2 text, 3 audio, 4 a marker, 5 a pad.
    # Text: p = (.5 .3 .2) thrice, all choose 0 and 2: counts 3 3 0, sums 1.5 .9: 3 * 1.5 + 3 * .9 = 7.2,
    #   times E_g / (K n^2) = 3 / 18: 1.2; share 3/4.   Audio: p = (.6 .4), both chosen: 1 * .6 + 1 * .4 = 1,
    #   times 2 / (2 * 1) = 1; share 1/4.   Total .9 + .25 = 1.15.
    # Per sequence, with token 0 alone in sequence 1: it gives 3 / (2 * 1) * (.5 + .3) = 1.2. Sequence 0, tokens 1-3:
    #   text 3 / (2 * 4) * (2 * 1 + 2 * .6) = 1.2, share 2/3; audio 1, share 1/3: 3.4/3. Mean: 3.5/3.
    groups = {TEXT: [4, 0, 2], AUDIO: [1, 3]}
    row = [0.25, 0.3, 0.15, 0.2, 0.1]
    tags_T, pad_T = tags(TEXT, TEXT, TEXT, AUDIO, WAVE, TEXT), torch.tensor([False] * 5 + [True])
    chosen_TE = choices(5, [0, 2], [0, 2], [0, 2], [1, 3], [], [0, 4])
    options = {"top_k": 2, "pad_T": pad_T, "sequence_T": tags(1, 0, 0, 0, 0, 0), "shared_only": (WAVE,)}
    for scope, expected in (("batch", 1.15), ("sequence", 3.5 / 3)):
        loss = mamoe.group_aux_loss(logs(*[row] * 6), chosen_TE, tags_T, groups, scope=scope, **options)
        assert is_close(loss, expected)


def test_tags_that_share_experts_are_balanced_as_one_group():
    # Both own both experts. Text chooses 0, audio 1: balanced together, 2 / (1 * 4) * (1 * 1 + 1 * 1) = 1.
    # As two groups each would be lopsided: p_0 = .8 for text, p_1 = .8 for audio give 2 * .8 = 1.6 each.
    groups = {TEXT: [0, 1], AUDIO: [1, 0]}
    logits_TE = logs([0.8, 0.2], [0.2, 0.8])
    loss = mamoe.group_aux_loss(logits_TE, choices(2, [0], [1]), tags(TEXT, AUDIO), groups, top_k=1, scope="batch")
    assert is_close(loss, 1.0)


def test_a_group_smaller_than_k_can_be_in_balance():
    # One expert, K = 2: one choice per token, K_g = 1: 1 / (1 * 4) * 2 * 2 = 1.
    loss = mamoe.group_aux_loss(
        torch.zeros(2, 3), choices(3, [1], [1]), tags(AUDIO, AUDIO), {TEXT: [0, 2], AUDIO: [1]}, top_k=2, scope="batch"
    )
    assert is_close(loss, 1.0)


def test_the_z_loss_sees_what_the_softmax_sees():
    # Logits 0: ln 4 over all, ln 2 in the group. Token 1 (logits 1): 1 + ln 4 or 1 + ln 2. The marker and the pad: no.
    logits_TE = torch.tensor([[0.0], [1.0], [7.0], [9.0], [0.0]], dtype=torch.float64).expand(5, 4)
    tags_T, pad_T = tags(TEXT, AUDIO, WAVE, AUDIO, AUDIO), torch.tensor([False, False, False, True, False])
    options = {"pad_T": pad_T, "sequence_T": tags(0, 0, 0, 0, 1), "shared_only": (WAVE,)}
    for mode, size in (("reference", 4), ("masked_softmax", 2)):
        low, high = math.log(size) ** 2, (1 + math.log(size)) ** 2
        batch = mamoe.z_loss(logits_TE, tags_T, HALVES, mode=mode, scope="batch", **options)
        sequence = mamoe.z_loss(logits_TE, tags_T, HALVES, mode=mode, scope="sequence", **options)
        assert is_close(batch, (2 * low + high) / 3)
        assert is_close(sequence, ((low + high) / 2 + low) / 2)


def test_gradients_of_the_losses_are_those_of_finite_differences():
    groups, tags_T = {TEXT: [0, 3], AUDIO: [1, 2, 4, 5]}, tags(0, 1, 1, 2, 0, 1, 0)
    x_TD, router_ED, _, _ = random_case(seed=8)
    logits_TE = mamoe.router_logits(x_TD, router_ED).detach().requires_grad_()
    where = {"sequence_T": tags(0, 1, 0, 1, 0, 1, 1), "pad_T": tags(0, 0, 1, 0, 0, 0, 0).bool(), "shared_only": (WAVE,)}
    _, chosen_TE, _ = mamoe.gate(
        logits_TE, tags_T, groups, mode="reference", top_k=2, normalise=False, scale=1.0, shared_only=(WAVE,)
    )

    def losses(logits_TE):
        first = mamoe.reference_aux_loss(
            logits_TE, chosen_TE, tags_T, groups, top_k=2, alpha=1.0, seq_aux=True, count_everything=False, **where
        )
        second = mamoe.group_aux_loss(logits_TE, chosen_TE, tags_T, groups, top_k=2, scope="sequence", **where)
        third = mamoe.z_loss(logits_TE, tags_T, groups, mode="masked_softmax", scope="batch", **where)
        return torch.stack([first, second, third])

    assert torch.autograd.gradcheck(losses, (logits_TE,))
    losses(logits_TE).sum().backward()
    assert logits_TE.grad[[2, 3]].abs().max() == 0  # the pad and the marker
    assert (logits_TE.grad[[0, 1, 4, 5, 6]].abs().amax(dim=1) > 0).all()
