"""Oracle: a modality-aware mixture of experts in plain PyTorch float64, written token by token.

Takes router logits [T, E], a tag per token and a table from tag to published expert ids; gives gate weights, the
layer's output, auxiliary losses and the router z-loss. Everything is differentiable with respect to inputs and weights;
choices and counts are constants. Equal scores are settled for the lower expert id. `pad_T` is True AT pads.
`sequence_T` says which sequence a token is in, so that [B, S], [S, B] and packed rows need no separate code.
"""

# T tokens, E routed experts (published ids), D width, F expert hidden width, G = 2F (gate stacked over up),
# K experts per token, B sequences, S counted tokens of one sequence

from __future__ import annotations

import itertools

import torch

MODES = ("masked_softmax", "reference")
SCOPES = ("sequence", "batch")


# ---------------------------------------------------------------------------------------------------- who owns what


def experts_of_tokens(tags_T, groups, num_experts, shared_only=()):
    """For each token, the sorted list of experts that its tag owns: empty if shared-only, KeyError for a stray tag."""
    for tag, experts in groups.items():
        if tag in shared_only:
            raise ValueError(f"tag {tag} owns experts and is shared-only too")
        if not experts or len(set(experts)) != len(experts) or not set(experts) <= set(range(num_experts)):
            raise ValueError(f"tag {tag}: {experts} must be distinct ids in 0..{num_experts - 1}, at least one")
    owned = []
    for tag in torch.as_tensor(tags_T).tolist():
        if tag not in groups and tag not in shared_only:
            raise KeyError(f"tag {tag} owns no experts and is not shared-only")
        owned.append(sorted(groups[tag]) if tag in groups else [])
    return owned


def reference_scores(logits_TE, tags_T, groups, *, shared_only=()):
    """q'_te = softmax over ALL experts inside the token's group, 0 outside: a row sums to its in-group mass."""
    logits_TE = logits_TE.to(torch.float64)
    owned = experts_of_tokens(tags_T, groups, logits_TE.shape[1], shared_only)
    rows = []
    for logits_E, ids in zip(logits_TE, owned, strict=True):
        foreign_E = torch.ones(len(logits_E), dtype=torch.bool)
        foreign_E[ids] = False
        if not ids:  # masked before the softmax: not even the NaN of a skipped row gets through, nor its gradient
            logits_E = logits_E.masked_fill(foreign_E, 0.0)
        rows.append(torch.softmax(logits_E, dim=0).masked_fill(foreign_E, 0.0))
    return torch.stack(rows)


def in_group_probabilities(logits_TE, tags_T, groups, *, shared_only=()):
    """p_te = softmax over the experts of the token's group only, 0 outside: a row sums to 1, or 0 where shared-only."""
    logits_TE = logits_TE.to(torch.float64)
    owned = experts_of_tokens(tags_T, groups, logits_TE.shape[1], shared_only)
    rows = []
    for logits_E, ids in zip(logits_TE, owned, strict=True):
        row_E = logits_E.masked_fill(torch.ones(len(logits_E), dtype=torch.bool), 0.0)  # zeros, yet in the graph
        if ids:
            row_E = row_E.index_copy(0, torch.tensor(ids), torch.softmax(logits_E[ids], dim=0))
        rows.append(row_E)
    return torch.stack(rows)


# ---------------------------------------------------------------------------------------------------------- the gate


def _best(score_of, candidates, count):
    """The `count` candidates with the highest score, fewer if there are fewer; the lower id wins a tie."""
    return sorted(candidates, key=lambda i: (-score_of[i], i))[:count]


def _candidates(scores_E, ids, num_routing_groups, kept_routing_groups, best):
    """Experts of `ids` that lie in the kept routing groups: consecutive blocks of E / num_routing_groups ids.

    A block scores the sum of its `best` highest `scores_E`. Blocks without an expert of `ids` come after all others,
    whatever their scores: keeping one would only lose a candidate.
    """
    size = len(scores_E) // num_routing_groups
    blocks = [range(g * size, (g + 1) * size) for g in range(num_routing_groups)]
    block_scores = [sum(sorted((scores_E[e].item() for e in block), reverse=True)[:best]) for block in blocks]
    eligible = [g for g, block in enumerate(blocks) if set(block) & set(ids)]
    kept = _best(block_scores, eligible, kept_routing_groups)
    return [e for g in kept for e in blocks[g] if e in ids]


def gate(
    logits_TE,
    tags_T,
    groups,
    *,
    mode,
    top_k,
    normalise,
    scale,
    num_routing_groups=None,
    kept_routing_groups=None,
    routing_group_best=1,
    group_constant=None,
    shared_only=(),
):
    """Weights [T, E] (0 where not chosen), choices [T, E] bool and the scores [T, E] that auxiliary losses average.

    mode "reference", with q = softmax over all E experts and q' = q inside the group, 0 outside:
        chosen_t = top-K of q'_t
        w_te = q'_te / (sum_chosen q'_t + 1e-20)   if normalise and K > 1; scale is ignored
        w_te = q'_te * scale                       otherwise
      Routing groups are scored by the largest UNMASKED q in them, the other modality's experts included.
      Returned scores: q', unrenormalised and unscaled.

    mode "masked_softmax", with p = softmax over the group's experts only:
        chosen_t = top-K of p_t
        w_te = p_te / (sum_chosen p_t if normalise and K > 1 else 1) * scale * group_constant[tag]
      Routing groups are scored by the sum of the `routing_group_best` largest p in them. 1, the maximum, is
      DeepSeek-V2's rule; Megatron-Core's own function takes the best top_k // kept_routing_groups.
      Returned scores: p, before the choice, the scale and the constant.

    Either way a token with fewer than K candidates has fewer than K choices (its other slots weigh 0 and name nobody),
    and a shared-only token has none and an all-zero row. `groups` and `group_constant` are dicts by tag.
    """
    if mode not in MODES:
        raise ValueError(f"mode {mode!r} is not one of {MODES}")
    if mode == "reference" and (group_constant is not None or routing_group_best != 1):
        raise ValueError("group_constant and routing_group_best belong to masked_softmax")
    if (num_routing_groups is None) != (kept_routing_groups is None):
        raise ValueError("give num_routing_groups and kept_routing_groups together")
    num_tokens, num_experts = logits_TE.shape
    if num_routing_groups is not None and num_experts % num_routing_groups:
        raise ValueError(f"{num_routing_groups} routing groups do not divide {num_experts} experts")

    logits_TE = logits_TE.to(torch.float64)
    owned = experts_of_tokens(tags_T, groups, num_experts, shared_only)
    scores_of = reference_scores if mode == "reference" else in_group_probabilities
    scores_TE = scores_of(logits_TE, tags_T, groups, shared_only=shared_only)

    chosen_TE = torch.zeros(num_tokens, num_experts, dtype=torch.bool)
    for t, ids in enumerate(owned):
        if not ids:
            continue
        candidates = ids
        if num_routing_groups is not None:
            ranking_E = torch.softmax(logits_TE[t], dim=0) if mode == "reference" else scores_TE[t]
            candidates = _candidates(ranking_E, ids, num_routing_groups, kept_routing_groups, routing_group_best)
        chosen_TE[t, _best(scores_TE[t].tolist(), candidates, top_k)] = True

    weights_TE = scores_TE.masked_fill(~chosen_TE, 0.0)
    sums_T1 = weights_TE.sum(dim=1, keepdim=True)
    if mode == "reference":
        weights_TE = weights_TE / (sums_T1 + 1e-20) if normalise and top_k > 1 else weights_TE * scale
        return weights_TE, chosen_TE, scores_TE
    if normalise and top_k > 1:
        weights_TE = weights_TE / sums_T1.masked_fill(~chosen_TE.any(dim=1, keepdim=True), 1.0)  # shared-only: 0 / 1
    weights_TE = weights_TE * scale
    if group_constant is not None:
        constants = [group_constant[tag] if tag in groups else 1.0 for tag in torch.as_tensor(tags_T).tolist()]
        weights_TE = torch.stack([row_E * constant for row_E, constant in zip(weights_TE, constants, strict=True)])
    return weights_TE, chosen_TE, scores_TE


# --------------------------------------------------------------------------------------------------------- the layer


def expert(x_TD, gate_up_GD, down_DF):
    """down (silu(gate x) * (up x)), silu(z) = z / (1 + exp(-z)); the first F rows of gate_up are gate, the rest up."""
    x_TD, gate_up_GD, down_DF = (a.to(torch.float64) for a in (x_TD, gate_up_GD, down_DF))
    hidden_F = gate_up_GD.shape[0] // 2
    gate_TF = x_TD @ gate_up_GD[:hidden_F].T
    up_TF = x_TD @ gate_up_GD[hidden_F:].T
    return (gate_TF * torch.sigmoid(gate_TF) * up_TF) @ down_DF.T


def router_logits(x_TD, router_ED):
    """logits_te = x_t . router_e, without a bias."""
    return x_TD.to(torch.float64) @ router_ED.to(torch.float64).T


def layer(x_TD, router_ED, experts, shared, tags_T, groups, **gate_options):
    """y_t = sum_e w_te Expert_e(x_t) + Shared(x_t), with w from `gate(..., **gate_options)`.

    `experts` is a list by published id of (gate_up_GD, down_DF); `shared` is one such pair or None. Every expert is run
    on every token and weighed by 0 where not chosen, so an idle expert has a gradient of zeros, not None.
    """
    weights_TE, _, _ = gate(router_logits(x_TD, router_ED), tags_T, groups, **gate_options)
    y_TD = torch.zeros_like(x_TD, dtype=torch.float64)
    for e, (gate_up_GD, down_DF) in enumerate(experts):
        y_TD = y_TD + weights_TE[:, e : e + 1] * expert(x_TD, gate_up_GD, down_DF)
    if shared is not None:
        y_TD = y_TD + expert(x_TD, *shared)
    return y_TD


# -------------------------------------------------------------------------------------------------------- the losses


def _sequences(sequence_T, num_tokens):
    """The token ids of each sequence; all tokens are one sequence if `sequence_T` is None."""
    if sequence_T is None:
        return [list(range(num_tokens))]
    by_sequence = sorted(range(num_tokens), key=lambda t: int(sequence_T[t]))
    return [list(tokens) for _, tokens in itertools.groupby(by_sequence, key=lambda t: int(sequence_T[t]))]


def _spans(scope, sequence_T, num_tokens):
    """What a loss averages over: each sequence by itself, or the whole batch as if it were one."""
    if scope not in SCOPES:
        raise ValueError(f"scope {scope!r} is not one of {SCOPES}")
    return _sequences(sequence_T if scope == "sequence" else None, num_tokens)


def _counted(tags_T, pad_T, shared_only):
    """True for the tokens that are neither pads nor shared-only."""
    tags = torch.as_tensor(tags_T).tolist()
    pads = [False] * len(tags) if pad_T is None else torch.as_tensor(pad_T).tolist()
    return [not pad and tag not in shared_only for tag, pad in zip(tags, pads, strict=True)]


def _zero_of(logits_TE):
    """A zero that autograd can be asked about, even if no token counts or a logit is not finite."""
    return logits_TE.masked_fill(torch.ones_like(logits_TE, dtype=torch.bool), 0.0).sum()


def reference_aux_loss(
    logits_TE,
    chosen_TE,
    tags_T,
    groups,
    *,
    top_k,
    alpha,
    seq_aux,
    count_everything,
    pad_T=None,
    sequence_T=None,
    tied_TE=None,
    shared_only=(),
):
    """The public release's balance loss: alpha times the in-group mass where all E experts are chosen equally often.

    q' is `reference_scores`, whichever gate made `chosen_TE`; E counts all routed experts.
        seq_aux:   alpha * mean_b sum_e [count_be * E / (S_b K)] * mean_{s in b} q'_se
        otherwise: alpha * sum_e [E * count_e / (T K)] * mean_t q'_te

    count_everything False: pads and shared-only tokens are in no count, no mean and not in S_b or T. A sequence without
    a counted token contributes 0, and is one of the sequences over which mean_b is taken.

    count_everything True: as the release counts. Pads are tokens like others (tag them text, as the release does), and
    shared-only rows have q' = 0 but their K slots are counted. The release's top-k of K equal zeros names arbitrary
    experts, so nothing can predict them: pass those it named as `tied_TE` [T, E] bool, likewise for tokens with fewer
    than K candidates. Each row of chosen or tied must then hold exactly K. Without such rows `tied_TE` is not needed.
    Both ways agree where there are no pads, no shared-only tokens and K candidates everywhere.
    """
    logits_TE = logits_TE.to(torch.float64)
    num_tokens, num_experts = logits_TE.shape
    scores_TE = reference_scores(logits_TE, tags_T, groups, shared_only=shared_only)
    counted = _counted(tags_T, pad_T, shared_only)
    if count_everything:
        counted = [True] * num_tokens
        if tied_TE is not None:
            if (chosen_TE & tied_TE).any():
                raise ValueError("a slot is both chosen and tied")
            chosen_TE = chosen_TE | tied_TE
        if not bool((chosen_TE.sum(dim=1) == top_k).all()):
            raise ValueError(f"the release counts {top_k} slots for every token: pass the tied ones as tied_TE")
    elif tied_TE is not None:
        raise ValueError("tied_TE is counted only with count_everything")

    spans = _spans("sequence" if seq_aux else "batch", sequence_T, num_tokens)
    total = _zero_of(logits_TE)
    for span in spans:
        tokens = [t for t in span if counted[t]]
        if not tokens:
            continue
        for e in range(num_experts):
            count = int(chosen_TE[tokens, e].sum())
            total = total + count * num_experts / (len(tokens) * top_k) * scores_TE[tokens, e].mean()
    return alpha * total / len(spans)


def group_aux_loss(logits_TE, chosen_TE, tags_T, groups, *, top_k, scope, pad_T=None, sequence_T=None, shared_only=()):
    """Balance inside each group, 1 at perfect balance whatever the share of each modality. No coefficient.

        aux = sum_g (n_g / n) * E_g / (K_g n_g^2) * sum_{e in g} count_ge * sum_{t in g} p_te
        p = softmax over the group's experts only,   K_g = min(K, E_g)

    n_g and count_ge are over the counted tokens of group g (no pads, no shared-only tokens), n = sum_g n_g; a group
    with none contributes 0. Tags that own the same experts are ONE group. scope "batch": once for all tokens.
    "sequence": the mean over sequences, where one without a counted token contributes 0 but is one of them.
    """
    logits_TE = logits_TE.to(torch.float64)
    p_TE = in_group_probabilities(logits_TE, tags_T, groups, shared_only=shared_only)
    owned = experts_of_tokens(tags_T, groups, logits_TE.shape[1], shared_only)
    counted = _counted(tags_T, pad_T, shared_only)
    spans = _spans(scope, sequence_T, len(owned))
    total = _zero_of(logits_TE)
    for span in spans:
        num_counted = sum(counted[t] for t in span)
        for ids in sorted({tuple(sorted(experts)) for experts in groups.values()}):
            tokens = [t for t in span if counted[t] and tuple(owned[t]) == ids]
            if not tokens:
                continue
            n, k = len(tokens), min(top_k, len(ids))
            dot = sum(int(chosen_TE[tokens, e].sum()) * p_TE[tokens, e].sum() for e in ids)
            total = total + n / num_counted * len(ids) / (k * n**2) * dot
    return total / len(spans)


def z_loss(logits_TE, tags_T, groups, *, mode, scope, pad_T=None, sequence_T=None, shared_only=()):
    """z = mean over counted tokens of (log sum_e exp logits_te)^2, e over the experts that the gate's softmax sees.

    Those are the token's group for "masked_softmax" and all experts for "reference". Pads and shared-only tokens never
    count. scope "batch": one mean over all counted tokens. "sequence": a mean per sequence, then the mean over
    sequences, where one without a counted token contributes 0 but is one of them. No coefficient.
    """
    if mode not in MODES:
        raise ValueError(f"mode {mode!r} is not one of {MODES}")
    logits_TE = logits_TE.to(torch.float64)
    owned = experts_of_tokens(tags_T, groups, logits_TE.shape[1], shared_only)
    counted = _counted(tags_T, pad_T, shared_only)
    spans = _spans(scope, sequence_T, len(owned))
    total = _zero_of(logits_TE)
    for span in spans:
        tokens = [t for t in span if counted[t]]
        for t in tokens:
            seen = logits_TE[t] if mode == "reference" else logits_TE[t, owned[t]]
            total = total + torch.logsumexp(seen, dim=0) ** 2 / len(tokens)
    return total / len(spans)
