"""Mean ablation and the frozen final norm, against norms, softcaps and neurons written by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.tiny_models import (
    D_MLP,
    D_MODEL,
    DENSE,
    MIXTURES,
    N_LAYERS,
    blocks,
    body,
    down_projection,
    final_norm,
    hook_count,
    tiny_model,
)
from torch import Tensor, nn

from ptmech.errors import DataError, UnknownNameError
from ptmech.live.generation import generate_tokens, pad
from ptmech.live.interventions import add, freeze_final_norm, intervene, mean_ablate, patch
from ptmech.live.recording import record

ENDLESS = SimpleNamespace(eos_token_id=None)
TOKENS = torch.tensor([[3, 7, 11, 2, 30], [9, 1, 40, 17, 6]])
PROMPTS = [[3, 7, 11, 2, 30], [9, 21], [33, 8, 17, 6, 25, 4, 12]]
STEPS = 4
NEURONS = [4, 0, 17]
MEANS = torch.linspace(-6, 6, D_MLP)
DIRECTION = torch.linspace(-3, 4, D_MODEL)
LAST = N_LAYERS - 1

Edit = Callable[[Tensor], Tensor]


@pytest.fixture(params=DENSE, scope="module")
def model(request: pytest.FixtureRequest) -> Any:
    return tiny_model(request.param)


@pytest.fixture(params=["qwen3", "gpt2", "gemma2"], scope="module")
def writer(request: pytest.FixtureRequest) -> Any:
    """A model that completes prompts: three kinds of norm and of cache."""
    return tiny_model(request.param)


def scale_by_hand(model: Any, stream: Tensor) -> Tensor:
    """What the final norm divides by."""
    if isinstance(final_norm(model), nn.LayerNorm):
        variance = stream.var(-1, unbiased=False, keepdim=True)
        return (variance + 1e-5).sqrt()
    return ((stream**2).mean(-1, keepdim=True) + model.config.rms_norm_eps).sqrt()


def logits_by_hand(model: Any, stream: Tensor, scale: Tensor) -> Tensor:
    """Logits of the last stream, divided by a given scale."""
    norm = final_norm(model)
    if isinstance(norm, nn.LayerNorm):
        normed = (stream - stream.mean(-1, keepdim=True)) / scale * norm.weight + norm.bias
    else:
        normed = stream / scale * (norm.weight + model.config.model_type.startswith("gemma"))
    logits = normed @ model.lm_head.weight.T
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def last_stream(model: Any, tokens: Tensor) -> Tensor:
    """The output of the last block, by a hook of torch's own."""
    seen: list[Tensor] = []
    handle = final_norm(model).register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    body(model)(tokens, use_cache=False)
    handle.remove()
    return seen[0]


@contextmanager
def neurons_held(
    model: Any, *, layer: int = LAST, at: Any = slice(None), means: Tensor = MEANS
) -> Iterator[None]:
    """The neurons at their means at tokens `at` of every row, by a hook of torch's own."""
    rows: list[int] = []
    watch = blocks(model)[layer].register_forward_pre_hook(
        lambda _module, args: rows.append(len(args[0]))
    )

    def hold(_module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # OPT has put all tokens of the batch into one row.
        changed = args[0].clone().reshape(rows[-1], -1, D_MLP)
        for neuron in NEURONS:
            changed[:, at, neuron] = means[neuron]
        return (changed.reshape(args[0].shape),)

    handle = down_projection(blocks(model)[layer]).register_forward_pre_hook(hold)
    yield
    handle.remove()
    watch.remove()


@contextmanager
def first_input(model: Any, edit: Edit) -> Iterator[None]:
    """The input of block 1 changed by hand."""
    handle = blocks(model)[1].register_forward_pre_hook(lambda _m, args: (edit(args[0]), *args[1:]))
    yield
    handle.remove()


def frozen_by_hand(model: Any, tokens: Tensor, *edits: Any) -> Tensor:
    """Logits with edits, the final norm's scale taken from the model without them."""
    scale = scale_by_hand(model, last_stream(model, tokens))
    with ExitStack() as stack:
        for edit in edits:
            stack.enter_context(edit)
        return logits_by_hand(model, last_stream(model, tokens), scale)


def close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-4, atol=2e-5)


def logits_with(model: Any, *interventions: Any, **kwargs: Any) -> Tensor:
    with intervene(model, *interventions), torch.inference_mode():
        return model(**({"input_ids": TOKENS} | kwargs)).logits


# --- mean ablation -----------------------------------------------------------------------------


@pytest.mark.parametrize("layer", range(N_LAYERS))
def test_neurons_are_held_at_their_means(model: Any, layer: int) -> None:
    plain = model(TOKENS).logits
    with neurons_held(model, layer=layer):
        expected = model(TOKENS).logits
    found = logits_with(model, mean_ablate(NEURONS, MEANS, layer=layer))
    assert close(found, expected)
    assert not close(expected, plain)
    assert hook_count(model) == 0


def test_means_of_the_chosen_neurons_alone_will_do(model: Any) -> None:
    whole = logits_with(model, mean_ablate(NEURONS, MEANS))
    assert torch.equal(logits_with(model, mean_ablate(NEURONS, MEANS[NEURONS].numpy())), whole)
    assert torch.equal(logits_with(model, mean_ablate(NEURONS, MEANS, layer=LAST)), whole)


def test_only_the_chosen_tokens_are_ablated(model: Any) -> None:
    with neurons_held(model, layer=1, at=[1, 4]):
        expected = model(TOKENS).logits
    found = logits_with(model, mean_ablate(NEURONS, MEANS, layer=1, positions=[1, -1]))
    assert close(found, expected)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda: mean_ablate([], MEANS), DataError, "none is named"),
        (lambda: mean_ablate([3, 3], MEANS), DataError, "named twice"),
        (lambda: mean_ablate([1.5], MEANS), DataError, "whole number"),
        (lambda: mean_ablate([3], MEANS[None]), DataError, "finite vector"),
        (lambda: mean_ablate([3], MEANS * torch.nan), DataError, "finite vector"),
        (lambda: mean_ablate([3], MEANS[:2]), DataError, "2 means belong neither"),
        (lambda: mean_ablate([D_MLP], MEANS), UnknownNameError, "unknown neuron 24"),
        (lambda: mean_ablate([-1], MEANS), UnknownNameError, "unknown neuron -1"),
        (lambda: mean_ablate([3], MEANS, layer=N_LAYERS), UnknownNameError, "unknown layer 3"),
        (lambda: mean_ablate([3], MEANS, layer=-2), UnknownNameError, "unknown layer -2"),
    ],
)
def test_what_cannot_be_ablated_is_refused(
    wrong: Callable[[], Any], error: type[Exception], message: str
) -> None:
    model = tiny_model()
    with pytest.raises(error, match=message), intervene(model, wrong()):
        pytest.fail("the body ran")
    assert hook_count(model) == 0


# --- the frozen norm -----------------------------------------------------------------------------


def test_frozen_logits_are_those_written_by_hand(model: Any) -> None:
    expected = frozen_by_hand(model, TOKENS, neurons_held(model))
    found = logits_with(model, mean_ablate(NEURONS, MEANS), freeze_final_norm())
    assert close(found, expected)
    assert not close(expected, logits_with(model, mean_ablate(NEURONS, MEANS)))


def test_edits_of_earlier_layers_count_as_well(model: Any) -> None:
    by_hand = first_input(model, lambda stream: stream + 2 * DIRECTION)
    expected = frozen_by_hand(model, TOKENS, by_hand)
    found = logits_with(model, freeze_final_norm(), add(DIRECTION, 1, scale=2))
    assert close(found, expected)
    assert not close(expected, logits_with(model, add(DIRECTION, 1, scale=2)))


@pytest.mark.parametrize("family", MIXTURES)
def test_a_mixture_of_experts_has_a_norm_to_freeze(family: str) -> None:
    model = tiny_model(family)
    by_hand = first_input(model, lambda stream: stream + 2 * DIRECTION)
    expected = frozen_by_hand(model, TOKENS, by_hand)
    assert close(logits_with(model, freeze_final_norm(), add(DIRECTION, 1, scale=2)), expected)


def test_without_edits_nothing_changes(model: Any) -> None:
    assert close(logits_with(model, freeze_final_norm()), model(TOKENS).logits)


@pytest.mark.parametrize("order", ["outside", "inside", "both", "twice"])
def test_nested_contexts_freeze_once(model: Any, order: str) -> None:
    ablation, frozen = mean_ablate(NEURONS, MEANS), freeze_final_norm()
    outer, inner = {
        "outside": ([frozen], [ablation]),
        "inside": ([ablation], [frozen]),
        "both": ([frozen], [ablation, freeze_final_norm()]),
        "twice": ([frozen, frozen], [ablation]),
    }[order]
    expected = frozen_by_hand(model, TOKENS, neurons_held(model))
    with intervene(model, *outer):
        assert close(logits_with(model, *inner), expected)
        left = expected if order == "both" else logits_with(model, *inner)
        assert close(left, expected)
    assert torch.equal(model(TOKENS).logits, logits_with(model))
    assert hook_count(model) == 0


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(model: Any, side: Any) -> None:
    ids, mask = pad(PROMPTS, side=side)
    places = mask.cumsum(1).sub(1).clamp_min(0)
    found = logits_with(
        model,
        mean_ablate(NEURONS, MEANS, positions=[0, -1]),
        freeze_final_norm(),
        input_ids=ids,
        attention_mask=mask,
        position_ids=places,
    )
    for row, real, prompt in zip(found, mask.bool(), PROMPTS, strict=True):
        held = neurons_held(model, at=[0, len(prompt) - 1])
        assert close(row[real], frozen_by_hand(model, torch.tensor([prompt]), held)[0])


def completed_by_hand(model: Any, prompt: list[int], **held_where: Any) -> list[int]:
    new: list[int] = []
    for _ in range(STEPS):
        tokens = torch.tensor([[*prompt, *new]])
        held = neurons_held(model, means=9 * MEANS, **held_where)
        new.append(int(frozen_by_hand(model, tokens, held)[0, -1].argmax()))
    return new


def generated(model: Any, *contexts: list[Any]) -> list[list[int]]:
    with ExitStack() as stack:
        for interventions in contexts:
            stack.enter_context(intervene(model, *interventions))
        return generate_tokens(model, ENDLESS, PROMPTS, max_new_tokens=STEPS, batch_size=2)


def test_generation_with_a_cache_freezes_at_the_scales_of_the_unedited_model(writer: Any) -> None:
    ablation, frozen = mean_ablate(NEURONS, 9 * MEANS), freeze_final_norm()
    expected = [completed_by_hand(writer, prompt) for prompt in PROMPTS]
    assert generated(writer, [ablation, frozen]) == expected
    assert generated(writer, [ablation], [frozen]) == expected
    assert generated(writer, [frozen], [ablation]) == expected
    assert expected != generated(writer)


def test_rows_that_have_ended_leave_a_frozen_norm_as_it_is(writer: Any) -> None:
    endless = [
        completed_by_hand(writer, prompt, layer=1, at=[len(prompt) - 1]) for prompt in PROMPTS
    ]

    def cut(end: int) -> list[list[int]]:
        return [reply[: reply.index(end) + 1] if end in reply else reply for reply in endless]

    end = max({*chain(*endless)}, key=lambda end: len({len(reply) for reply in cut(end)}))
    expected = cut(end)
    writer.generation_config.eos_token_id = end
    rows: list[int] = []
    handle = writer.lm_head.register_forward_pre_hook(lambda _head, args: rows.append(len(args[0])))
    ablation = mean_ablate(NEURONS, 9 * MEANS, layer=1, positions=[-1])
    with intervene(writer, ablation, freeze_final_norm()):
        found = generate_tokens(writer, ENDLESS, PROMPTS, max_new_tokens=STEPS)
    handle.remove()
    writer.generation_config.eos_token_id = None
    assert found == expected
    assert min(rows) < len(PROMPTS)


@pytest.mark.parametrize("position", [0, -1])
def test_positions_stay_those_of_the_prompt_while_the_norm_is_frozen(
    writer: Any, position: int
) -> None:
    ablation = mean_ablate(NEURONS, 9 * MEANS, layer=1, positions=[position])
    expected = [
        completed_by_hand(writer, prompt, layer=1, at=[position % len(prompt)])
        for prompt in PROMPTS
    ]
    for contexts in (
        [[ablation, freeze_final_norm()]],
        [[freeze_final_norm()], [ablation]],
        [[ablation], [freeze_final_norm()]],
    ):
        assert generated(writer, *contexts) == expected
    assert expected != generated(writer, [mean_ablate(NEURONS, 9 * MEANS, layer=1)])


def test_a_cache_from_elsewhere_is_refused() -> None:
    model = tiny_model()
    cache = model(TOKENS[:, :3], use_cache=True).past_key_values
    with intervene(model, freeze_final_norm()), pytest.raises(DataError, match="outside of this"):
        model(TOKENS[:, 3:], past_key_values=cache)
    assert hook_count(model) == 0


def test_what_is_recorded_is_the_edited_run(model: Any) -> None:
    wanted, everywhere = [("resid_post", LAST)], torch.arange(5).expand(2, 5)
    with neurons_held(model):
        expected = last_stream(model, TOKENS)
    with (
        intervene(model, freeze_final_norm(), mean_ablate(NEURONS, MEANS)),
        record(model, wanted, everywhere) as found,
    ):
        model(TOKENS)
    assert close(found["resid_post", LAST], expected)


def test_gradients_flow_through_a_frozen_norm() -> None:
    model = tiny_model()
    embedded = model.model.embed_tokens(TOKENS).requires_grad_()
    with intervene(model, freeze_final_norm()):
        model(inputs_embeds=embedded).logits[..., 3].sum().backward()
    found, embedded.grad = embedded.grad, None
    scale = scale_by_hand(model, last_stream(model, TOKENS)).detach()
    seen: list[Tensor] = []
    handle = model.model.norm.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    model(inputs_embeds=embedded)
    handle.remove()
    logits_by_hand(model, seen[0], scale)[..., 3].sum().backward()
    assert close(found, embedded.grad)


def test_half_precision_stays_half_precision() -> None:
    model = tiny_model("gemma2").bfloat16()
    plain = model(TOKENS).logits
    found = logits_with(model, freeze_final_norm())
    assert found.dtype == plain.dtype
    assert torch.allclose(found, plain, atol=0.02, rtol=0.02)


def test_hooks_go_when_a_forward_or_the_body_raises() -> None:
    model = tiny_model()
    wrong = patch(torch.ones(1, D_MODEL), 0, [7])
    with pytest.raises(DataError, match="outside of a prompt"):
        logits_with(model, freeze_final_norm(), wrong)
    with pytest.raises(ZeroDivisionError), intervene(model, freeze_final_norm()):
        1 / (hook_count(model) - 5)
    assert hook_count(model) == 0
    assert close(logits_with(model, freeze_final_norm()), model(TOKENS).logits)
