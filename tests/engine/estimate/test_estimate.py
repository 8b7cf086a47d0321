"""What the estimate decides: verdicts, layers per device, context, and what it leaves alone."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lathe.engine.estimate import FREE_SHARE, estimate, usable
from lathe.engine.footprint import DEVICE_CONTEXT, choose_attention, kv_cache, shape_of
from lathe.engine.states import Fit
from lathe.engine.telemetry.memory import HostMemory
from lathe.engine.telemetry.sample import DeviceSample
from lathe.engine.worker.messages import LoadOptions
from lathe.quantize.card import ModelCard

GIB = 1024**3
LLAMA_8B = ModelCard(
    format="gguf",
    architecture="llama",
    parameters=8_030_261_248,
    bytes=4_920_000_000,
    bits_per_weight=4.9,
    context_length=131_072,
    embedding_length=4096,
    feed_forward_length=14_336,
    layers=32,
    heads=32,
    kv_heads=8,
    vocabulary=128_256,
)


def host(gib: float, total: float | None = None) -> HostMemory:
    return HostMemory(int((total or gib) * GIB), int(gib * GIB))


def gpu(gib: float, name: str = "nvidia0", used: float = 0.0) -> DeviceSample:
    return DeviceSample(id=name, name="GPU", memory_total=int(gib * GIB), memory_used=int(used * GIB))


def test_the_cache_of_a_known_model() -> None:
    """Llama 3 8B: 32 layers x (8 KV heads x 128) x 2 (K and V) x 2 bytes = 128 KiB per token."""
    shape = shape_of(LLAMA_8B)
    assert shape is not None
    assert kv_cache(shape, 8192, "f16", 1) == 8192 * 128 * 1024
    assert kv_cache(shape, 8192, "q8_0", 1) == 8192 * 128 * 1024 * 17 // 32
    assert kv_cache(shape, 1, "f16", 1) == kv_cache(shape, 256, "f16", 1)


def test_a_roomy_machine() -> None:
    fit = estimate(LLAMA_8B, LoadOptions(), (), host(64))
    assert fit.verdict == "fits" and fit.footprint.gpu_layers == 0 and fit.options.gpu_layers == 0
    assert 4.5 * GIB < fit.footprint.weights < 5 * GIB
    assert fit.footprint.kv_cache <= fit.footprint.weights  # an automatic cache stays in proportion
    assert fit.options.context and fit.options.context >= 8192


def test_what_is_asked_is_never_changed() -> None:
    asked = LoadOptions(context=32_768, slots=2, kv_tokens=65_536, gpu_layers=10, kv_type="q8_0")
    fit = estimate(LLAMA_8B, asked, [gpu(24)], host(64))
    assert fit.options == asked
    fit = estimate(LLAMA_8B, asked, [gpu(24)], host(6))
    assert fit.options == asked and fit.verdict == "no"


def test_too_large_says_by_how_much() -> None:
    fit = estimate(LLAMA_8B, LoadOptions(context=8192, slots=1), (), host(4))
    assert fit.verdict == "no"
    assert fit.short == fit.footprint.total - 4 * GIB
    assert fit.reason == f"does not fit: short by {fit.short / GIB:.1f} GiB of RAM"


def test_memory_limits_an_automatic_context_and_says_so() -> None:
    fit = estimate(LLAMA_8B, LoadOptions(), (), host(7.0))
    assert fit.verdict == "fits" and fit.options.context and 2048 <= fit.options.context < 131_072
    assert "memory limits the context to" in fit.reason
    assert fit.footprint.total <= (1 - FREE_SHARE) * 7 * GIB


def test_slots_that_share_less_than_was_asked_for_are_told() -> None:
    fit = estimate(LLAMA_8B, LoadOptions(context=32_768, slots=16), (), host(16))
    assert fit.options.kv_tokens and fit.options.kv_tokens < 16 * 32_768
    assert f"what 16 slots hold together to {fit.options.kv_tokens:,} of 524,288 tokens" in fit.reason
    assert "slots" not in estimate(LLAMA_8B, LoadOptions(context=4096, slots=2), (), host(64)).reason


def test_little_left_is_tight() -> None:
    fit = estimate(LLAMA_8B, LoadOptions(context=2048, slots=1), (), host(5.6))
    assert fit.verdict == "tight" and "leaves only" in fit.reason


def test_all_layers_on_a_large_gpu() -> None:
    fit = estimate(LLAMA_8B, LoadOptions(context=8192), [gpu(24)], host(32))
    assert fit.verdict == "fits" and fit.options.gpu_layers == 33
    assert fit.footprint.devices["nvidia0"] > 4.5 * GIB
    assert fit.footprint.devices["cpu"] < 1.5 * GIB


def test_a_smaller_context_keeps_all_layers_on_the_gpu() -> None:
    fit = estimate(LLAMA_8B, LoadOptions(), [gpu(8)], host(64))
    assert fit.options.gpu_layers == 33 and fit.options.kv_tokens and fit.options.kv_tokens < 4 * 131_072


def test_a_small_gpu_takes_what_it_can() -> None:
    fit = estimate(LLAMA_8B, LoadOptions(context=4096, slots=1), [gpu(4)], host(32))
    assert fit.verdict == "partial" and 5 < (fit.options.gpu_layers or 0) < 33
    assert fit.footprint.devices["nvidia0"] <= 4 * GIB
    assert f"{fit.options.gpu_layers} of 33 layers fit on the GPU" in fit.reason
    more = estimate(
        LLAMA_8B,
        LoadOptions(context=4096, slots=1, gpu_layers=(fit.options.gpu_layers or 0) + 1),
        [gpu(4)],
        host(32),
    )
    assert more.verdict == "no" and "memory on nvidia0" in more.reason  # it was the most


def test_all_layers_asked_of_a_small_gpu_is_refused() -> None:
    fit = estimate(LLAMA_8B, LoadOptions(gpu_layers=-1, context=4096), [gpu(4)], host(64))
    assert fit.verdict == "no" and fit.options.gpu_layers == 33


def test_two_gpus_share_by_free_memory() -> None:
    fit = estimate(LLAMA_8B, LoadOptions(context=4096), [gpu(24, "nvidia0", used=18), gpu(24, "nvidia1")], host(32))
    first, second = fit.footprint.devices["nvidia0"], fit.footprint.devices["nvidia1"]
    assert fit.options.gpu_layers == 33 and first < second
    assert first > DEVICE_CONTEXT  # each pays for its context


def test_slices_stand_for_their_gpu() -> None:
    whole = [gpu(80), gpu(10, "nvidia0:0"), gpu(10, "nvidia0:1"), DeviceSample(id="intel0", name="unknown memory")]
    assert [device.id for device in usable(whole)] == ["nvidia0:0", "nvidia0:1"]


def test_an_apple_chip_shares_the_hosts_memory() -> None:
    apple = DeviceSample(id="apple0", name="Apple M4")
    fit = estimate(LLAMA_8B, LoadOptions(context=4096), [apple], host(16))
    assert fit.options.gpu_layers == 33 and set(fit.footprint.devices) == {"cpu"}
    assert fit.available["cpu"] == 12 * GIB


def test_a_gpu_that_is_full_leaves_the_cpu() -> None:
    fit = estimate(LLAMA_8B, LoadOptions(context=4096), [gpu(24, used=24)], host(32))
    assert fit.verdict == "partial" and fit.options.gpu_layers == 0 and "0 of 33 layers" in fit.reason


def test_latent_attention_caches_one_compressed_row() -> None:
    card = ModelCard(
        format="gguf", architecture="deepseek2", bytes=GIB, layers=27, embedding_length=2048, heads=16, kv_heads=1,
        key_length=576, value_length=512, vocabulary=102_400,
    )  # fmt: skip
    shape = shape_of(card)
    assert shape is not None and kv_cache(shape, 256, "f16", 1) == 27 * 256 * 576 * 2


def test_encoders_have_no_cache_and_recurrent_models_one_that_does_not_grow() -> None:
    bert = ModelCard(
        format="gguf", architecture="bert", bytes=90_000_000, layers=6, embedding_length=384, heads=12,
        context_length=512, vocabulary=30_522,
    )  # fmt: skip
    fit = estimate(bert, LoadOptions(embedding=True), (), host(8))
    assert fit.verdict == "fits" and fit.footprint.kv_cache == 0 and fit.options.context == 512
    mamba = msgspec.structs.replace(LLAMA_8B, architecture="mamba")
    shape = shape_of(mamba)
    assert shape is not None
    assert kv_cache(shape, 1024, "f16", 2) == kv_cache(shape, 100_000, "f16", 2) > 0


def test_an_unknown_shape_is_unknown_unless_its_bytes_alone_are_too_many() -> None:
    card = ModelCard(format="onnx", bytes=3 * GIB)
    assert estimate(card, LoadOptions(), (), host(8)).verdict == "unknown"
    fit = estimate(card, LoadOptions(), (), host(2))
    assert fit.verdict == "no" and fit.short > GIB


cards = st.builds(
    lambda layers, heads, group, head, vocabulary, context, bits, experts: ModelCard(
        format="gguf",
        architecture="llama",
        bytes=int(layers * heads * head * heads * head * 12 * bits / 8) + vocabulary * heads * head,
        layers=layers,
        heads=heads,
        kv_heads=max(1, heads // group),
        embedding_length=heads * head,
        feed_forward_length=4 * heads * head,
        vocabulary=vocabulary,
        context_length=context,
        bits_per_weight=bits,
        experts=experts or None,
        experts_used=2 if experts else None,
    ),
    st.integers(1, 80),
    st.integers(1, 64),
    st.integers(1, 8),
    st.sampled_from([32, 64, 128]),
    st.integers(0, 250_000),
    st.integers(1, 1_000_000),
    st.floats(1.5, 16),
    st.sampled_from([0, 8]),
)
options = st.builds(
    LoadOptions,
    context=st.none() | st.integers(1, 200_000),
    slots=st.integers(1, 64),
    kv_tokens=st.none() | st.integers(256, 400_000),
    gpu_layers=st.none() | st.integers(-1, 100),
    kv_type=st.sampled_from(["f16", "q8_0", "q4_0", "f32"]),
    flash_attention=st.sampled_from([None, True, False]),
)
machines = st.tuples(
    st.lists(st.builds(lambda g, used: gpu(g, used=g * used), st.floats(0.5, 90), st.floats(0, 1)), max_size=3),
    st.floats(0.5, 512),
)


@given(cards, options, machines)
def test_whatever_is_asked_the_answer_adds_up(card: ModelCard, asked: LoadOptions, machine: tuple) -> None:
    devices = [msgspec.structs.replace(device, id=f"nvidia{place}") for place, device in enumerate(machine[0])]
    fit = estimate(card, asked, devices, host(machine[1]))
    assert sum(fit.footprint.devices.values()) == fit.footprint.total
    over = [used - fit.available[device] for device, used in fit.footprint.devices.items()]
    assert fit.short == max(0, *over)
    assert (fit.verdict == "no") == (fit.short > 0)
    assert fit.options.context and fit.options.kv_tokens and fit.options.gpu_layers is not None
    assert fit.options.context == (asked.context or fit.options.context) or asked.context > (asked.kv_tokens or 0)
    assert asked.kv_tokens in (None, fit.options.kv_tokens)
    assert fit.footprint.mapped <= fit.footprint.weights + 1


@given(cards, st.integers(256, 100_000), st.integers(256, 100_000), st.booleans())
def test_more_context_never_costs_less(card: ModelCard, one: int, other: int, flash: bool) -> None:
    """With one kind of attention: left to choose, a longer context may change to the kind that needs less memory."""

    def cost(tokens: int) -> Fit:
        options = LoadOptions(context=tokens, kv_tokens=tokens, slots=1, flash_attention=flash)
        return estimate(card, options, (), host(64))

    small, large = sorted((one, other))
    assert cost(small).footprint.total <= cost(large).footprint.total


def test_plain_attention_is_for_one_sequence_on_the_cpu_with_few_scores() -> None:
    def chosen(cells: int = 4096, *, on_cpu: bool = True, **fields: object) -> tuple[bool | None, int]:
        return choose_attention(msgspec.convert({"slots": 1, **fields}, LoadOptions), 16, cells, on_cpu=on_cpu)

    assert chosen() == (False, 128)
    assert chosen(200_000) == chosen(on_cpu=False) == chosen(slots=2) == chosen(kv_type="q8_0") == (None, 512)
    assert chosen(flash_attention=True) == (True, 512)


@pytest.mark.parametrize("slots", [1, 4, 64])
def test_the_filled_in_options_lead_to_the_same_estimate(slots: int) -> None:
    first = estimate(LLAMA_8B, LoadOptions(slots=slots), [gpu(10)], host(16))
    again = estimate(LLAMA_8B, first.options, [gpu(10)], host(16))
    assert again.footprint == first.footprint and again.options == first.options
