"""generate() and training of MostForCausalLM: caches, padding, tags that follow the ids, checkpointing, precisions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import LogitsProcessorList, TemperatureLogitsWarper

from megatron_most.vocab import AUDIO, TEXT, tiny_token_map
from tests.convert.most_twins import apart, twin

RECIPES = ["most-tiny", "most-tiny-upcycled"]  # latents in the cache, and keys with values
TOKENS = tiny_token_map()
GREEDY = dict(do_sample=False, max_new_tokens=8, eos_token_id=None)
PROMPTS = [  # text, units, both with markers; of three lengths
    [38, 1, 2, 3, 4, 5, 6],
    [38, TOKENS.begin_audio_id, 40, 43, 46, 49, 52, 55, 58],
    [38, 7, 8, 9, TOKENS.begin_wave_id, TOKENS.end_wave_id, TOKENS.begin_audio_id, 41, 44, 47, 50],
]


@pytest.fixture(scope="module", params=RECIPES)
def model(request: pytest.FixtureRequest) -> Any:
    return twin(request.param, {"model.num_layers": 3, "model.wave_size": 10})


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model spends its time waiting for threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def greedy_by_hand(model: Any, prompt: list[int]) -> list[int]:
    """The whole row through the model for each new token."""
    ids = list(prompt)
    for _ in range(GREEDY["max_new_tokens"]):
        logits_V = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        ids.append(int(logits_V[: TOKENS.used_size].argmax()))
    return ids


def left_padded(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, prompts))
    ids = [[TOKENS.pad_id] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)


@torch.no_grad()
def test_cached_and_uncached_generation_choose_what_the_full_forward_does(model: Any) -> None:
    wanted = [greedy_by_hand(model, prompt) for prompt in PROMPTS]
    new_tags = {TOKENS.tag_of(i) for ids, prompt in zip(wanted, PROMPTS, strict=True) for i in ids[len(prompt) :]}
    assert {TEXT, AUDIO} <= new_tags, "the test needs generated ids of both modalities"
    for prompt, ids in zip(PROMPTS, wanted, strict=True):
        for options in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
            assert model.generate(torch.tensor([prompt]), **GREEDY, **options)[0].tolist() == ids, options
    ids_BS, mask_BS = left_padded(PROMPTS)
    for options in ({}, {"use_cache": False}):
        rows = model.generate(ids_BS, attention_mask=mask_BS, **GREEDY, **options)[:, -GREEDY["max_new_tokens"] :]
        assert rows.tolist() == [ids[len(prompt) :] for ids, prompt in zip(wanted, PROMPTS, strict=True)]


@torch.no_grad()
def test_a_left_padded_batch_has_the_logits_of_its_rows_alone(model: Any) -> None:
    ids_BS, mask_BS = left_padded(PROMPTS)
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        logits_BSV = model(ids_BS, attention_mask=mask_BS).logits
        assert logits_BSV.isfinite().all()  # pads see nothing, and must not become NaN
        for logits_SV, prompt in zip(logits_BSV, PROMPTS, strict=True):
            alone_SV = model(torch.tensor([prompt])).logits[0]
            torch.testing.assert_close(logits_SV[-len(prompt) :], alone_SV, atol=1e-4, rtol=1e-4)  # fp32
    model.set_attn_implementation("sdpa")


@torch.no_grad()
def test_given_tags_stay_with_the_prompt_and_new_ids_bring_their_own(model: Any) -> None:
    prompt_BS = torch.tensor([PROMPTS[0]])
    tags_BS = torch.tensor([[1, 1, 1, 2, 1, 1, 1]])
    ids, tags = PROMPTS[0][:], tags_BS[0].tolist()
    for _ in range(GREEDY["max_new_tokens"]):
        logits_V = model(torch.tensor([ids]), modality_tags=torch.tensor([tags])).logits[0, -1]
        ids.append(int(logits_V[: TOKENS.used_size].argmax()))
        tags.append(TOKENS.tag_of(ids[-1]))
    assert ids != greedy_by_hand(model, PROMPTS[0])
    embeds_BSD = model.get_input_embeddings()(prompt_BS)
    for options in ({}, {"use_cache": False}):
        assert model.generate(prompt_BS, modality_tags=tags_BS, **GREEDY, **options)[0].tolist() == ids
    assert model.generate(inputs_embeds=embeds_BSD, modality_tags=tags_BS, **GREEDY)[0].tolist() == ids[7:]
    with pytest.raises(ValueError, match="inputs_embeds have no ids to tell tags from; give modality_tags"):
        model.generate(inputs_embeds=embeds_BSD, **GREEDY)


@torch.no_grad()
def test_continuous_speech_in_a_prompt_is_read_once_and_kept(model: Any) -> None:
    prompt = PROMPTS[0]
    is_wave_BS = torch.tensor([[False, True, True, True, False, False, False]])
    wave_BSF = torch.randn(1, 7, 10, generator=torch.Generator().manual_seed(1))
    ids = prompt[:]
    for new in range(GREEDY["max_new_tokens"]):
        wave = {"audio_wave_features": F.pad(wave_BSF, (0, 0, 0, new)), "audio_wave_mask": F.pad(is_wave_BS, (0, new))}
        logits_V = model(torch.tensor([ids]), **wave).logits[0, -1]
        ids.append(int(logits_V[: TOKENS.used_size].argmax()))
    assert ids != greedy_by_hand(model, prompt)
    wave = {"audio_wave_features": wave_BSF, "audio_wave_mask": is_wave_BS}
    for options in ({}, {"use_cache": False}):
        assert model.generate(torch.tensor([prompt]), **wave, **GREEDY, **options)[0].tolist() == ids


@torch.no_grad()
def test_beams_are_the_same_with_and_without_a_cache(model: Any) -> None:
    ids_BS, mask_BS = left_padded(PROMPTS)
    tags_BS = model.model.tags(ids_BS, None, None)
    cached, whole = (
        model.generate(
            ids_BS, attention_mask=mask_BS, modality_tags=tags_BS, num_beams=3, use_cache=use_cache, **GREEDY
        )
        for use_cache in (True, False)
    )
    assert torch.equal(cached, whole)


def test_rows_without_a_token_are_never_generated() -> None:
    model = twin()
    rows = model.lm_head.weight.data[TOKENS.used_size :]
    rows[0] *= 100
    rows[1] = -rows[0]  # so one of the two is the likeliest of all
    logits_V = model(torch.tensor([PROMPTS[0]])).logits[0, -1]
    assert logits_V.argmax() >= TOKENS.used_size
    for options in ({}, {"do_sample": True, "logits_processor": LogitsProcessorList([TemperatureLogitsWarper(2.0)])}):
        assert model.generate(torch.tensor([PROMPTS[0]]), **{**GREEDY, **options}).max() < TOKENS.used_size


@torch.no_grad()
def test_sdpa_and_eager_agree_and_attentions_are_rows_of_probabilities() -> None:
    model = twin()
    ids_BS = torch.tensor([PROMPTS[2]])
    sdpa = model(ids_BS, output_hidden_states=True)
    with pytest.raises(ValueError, match="output_attentions"):
        model(ids_BS, output_attentions=True)
    model.set_attn_implementation("eager")
    eager = model(ids_BS, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(sdpa.logits, eager.logits, atol=1e-5, rtol=1e-5)
    assert len(eager.hidden_states) == 5 and len(eager.attentions) == 4
    torch.testing.assert_close(model.lm_head(sdpa.hidden_states[-1]), sdpa.logits)
    for weights_BHSS in eager.attentions:
        assert weights_BHSS.shape == (1, 4, 11, 11)
        torch.testing.assert_close(weights_BHSS.sum(-1), torch.ones(1, 4, 11))
        assert not weights_BHSS.triu(1).any()


@pytest.mark.parametrize("recipe", RECIPES)
@torch.no_grad()
def test_bf16_keeps_gate_constants_in_fp32_and_comes_close(recipe: str) -> None:
    model = twin(recipe, {"model.num_layers": 2, "moe.bias_rate": 0.1})
    for weight in model.parameters():
        weight.mul_(0.5)  # a gentler model: routing is not a matter of the last bit
    ids_BS = torch.tensor([PROMPTS[0]])
    wanted = model(ids_BS).logits
    constants = {name: buffer.clone() for name, buffer in model.named_buffers()}
    logits = model.bfloat16()(ids_BS).logits
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - wanted).norm() < 0.1 * wanted.norm()
    assert len(constants) >= 2
    for name, buffer in model.named_buffers():
        assert buffer.dtype == torch.float32 and torch.equal(buffer, constants[name]), name
    assert model.generate(ids_BS, **GREEDY).shape == (1, 15)


@torch.no_grad()
def test_autocast_does_not_round_the_routing() -> None:
    gate = twin().model.layers[1].mlp.gate
    x_TD = torch.randn(50, 64, generator=torch.Generator().manual_seed(1))
    owned_TE, group_T = torch.ones(50, 8, dtype=torch.bool), torch.zeros(50, dtype=torch.long)
    wanted = gate(x_TD, owned_TE, group_T)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(gate(x_TD, owned_TE, group_T), wanted, strict=True))


def loss_and_gradients(model: Any, checkpointing: dict[str, Any] | None) -> tuple[torch.Tensor, dict[str, Any]]:
    model.train()
    if checkpointing is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
    ids_BS, mask_BS = left_padded(PROMPTS)
    labels_BS = ids_BS.masked_fill(mask_BS == 0, -100)
    model.get_input_embeddings().weight.requires_grad_()
    loss = model(ids_BS, attention_mask=mask_BS, labels=labels_BS).loss
    loss.backward()
    model.gradient_checkpointing_disable()
    grads = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return loss.detach(), grads


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_gradient(reentrant: bool) -> None:
    model = twin()
    loss, grads = apart(loss_and_gradients, model, None)
    again, of_checkpointing = apart(loss_and_gradients, model, {"use_reentrant": reentrant})
    assert torch.equal(loss, again)
    assert grads.keys() == of_checkpointing.keys() and len(grads) > 80
    for name, grad in grads.items():
        assert torch.equal(grad, of_checkpointing[name]), name


def test_the_loss_is_the_mean_over_labels_and_the_pad_id_learns() -> None:
    model = twin()
    loss, grads = apart(loss_and_gradients, model, None)
    ids_BS, mask_BS = left_padded(PROMPTS)
    logits_BSV = model(ids_BS, attention_mask=mask_BS).logits.detach()
    labels_BS = ids_BS.masked_fill(mask_BS == 0, -100)[:, 1:]
    torch.testing.assert_close(loss, F.cross_entropy(logits_BSV[:, :-1].flatten(0, 1), labels_BS.flatten()))
    # Pad is EOS: a padding_idx would keep the embedding of real EOS tokens from learning.
    assert model.get_input_embeddings().padding_idx is None
    assert grads["model.layers.1.mlp.gate.weight"].abs().max() > 0


def test_weights_learn() -> None:
    losses = apart(losses_of_training, twin())
    assert losses[-1] < 0.5 * losses[0]


def losses_of_training(model: Any) -> list[float]:
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2)
    ids_BS = torch.tensor([PROMPTS[2]])
    losses = []
    for _ in range(15):
        loss = model(ids_BS, labels=ids_BS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses
