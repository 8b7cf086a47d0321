"""LoRA adapters in a worker: loaded beside the model, chosen by each request, never mixed up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lathe.engine.generation import Sampling
from lathe.engine.worker.messages import Failed
from lathe.quantize.convert import convert_adapter, convert_checkpoint
from support.checkpoints import safetensors_bytes, weights, write_checkpoint
from support.families import RECIPES
from support.worker_child import WorkerChild, worker_child

pytestmark = pytest.mark.native

GREEDY = Sampling(temperature=0, ignore_eos=True)
TOKENS = (7, 44, 81, 118, 155, 192)
RANK = 4


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base, two adapters for it, and the base with the first adapter merged in."""
    folder = tmp_path_factory.mktemp("adapters")
    recipe = RECIPES["llama2"]
    plain = {name: weights(name, shape, "F32") for name, shape in recipe.shapes.items()}
    base = write_checkpoint(folder / "base", recipe.config, plain, recipe.files())
    made = {"base": convert_checkpoint(base, folder / "base.gguf", outtype="f32").output}
    for name, strength in (("pirate", 1.0), ("lawyer", -0.7)):
        halves, merged = {}, dict(plain)
        for weight in plain:
            if weight.endswith(("q_proj.weight", "down_proj.weight")):
                rows, columns = plain[weight].shape
                down, up = weights(f"{weight}.A", (RANK, columns), "F32"), weights(f"{weight}.B", (rows, RANK), "F32")
                up = (strength * up).astype(np.float32)
                stem = f"base_model.model.{weight.removesuffix('.weight')}"
                halves |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
                merged[weight] = plain[weight] + 2 * up @ down
        source = folder / name
        source.mkdir()
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "bias": "none"}
        (source / "adapter_config.json").write_text(json.dumps(config))
        (source / "adapter_model.safetensors").write_bytes(safetensors_bytes(halves))
        made[name] = folder / f"{name}.gguf"
        convert_adapter(source, made[name], base=base, outtype="f32")
        whole = write_checkpoint(folder / f"merged-{name}", recipe.config, merged, recipe.files())
        made[f"merged-{name}"] = convert_checkpoint(whole, folder / f"merged-{name}.gguf", outtype="f32").output
    return made


@pytest.fixture(scope="module")
def child(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerChild]:
    adapters = (str(files["pirate"]), str(files["lawyer"]))
    log = tmp_path_factory.mktemp("log") / "log"
    with worker_child(files["base"], log, threads=1, context=128, adapters=adapters) as made:
        assert "adapters" in made.ready().capabilities
        yield made


def start(child: WorkerChild, **fields: Any) -> int:
    return child.generate(tokens=TOKENS, max_tokens=12, sampling=GREEDY, **fields)


def alone(path: Path, log: Path) -> list[int]:
    with worker_child(path, log, threads=1, context=128) as child:
        child.ready()
        return child.answer(start(child)).tokens()


def test_each_request_has_the_adapters_it_names(child: WorkerChild, files: dict[str, Path], tmp_path: Path) -> None:
    expected = {name: alone(files[name], tmp_path / "log") for name in ("base", "merged-pirate", "merged-lawyer")}
    assert len({tuple(tokens) for tokens in expected.values()}) == 3
    wanted = [({}, "base"), ({"pirate": 1.0}, "merged-pirate"), ({"lawyer": 1.0}, "merged-lawyer"),
              ({"pirate": 0.0}, "base"), ({"pirate": 1.0, "lawyer": 0.0}, "merged-pirate")]  # fmt: skip
    for adapters, name in wanted:
        assert child.answer(start(child, adapters=adapters)).tokens() == expected[name]
    requests = [start(child, adapters=adapters) for adapters, _ in wanted * 2]
    got = child.collect(*requests)
    assert [got[one].tokens() for one in requests] == [expected[name] for _, name in wanted * 2], "side by side as well"


def test_a_scale_lies_between_none_and_all(child: WorkerChild) -> None:
    def first(scale: float) -> float:
        request = child.generate(
            tokens=TOKENS, max_tokens=1, sampling=GREEDY, logprobs=20, adapters={"pirate": scale} if scale else {}
        )
        (entry,) = (entry for delta in child.answer(request).deltas for entry in delta.logprobs)
        return {token: number for token, _, number in entry.top}.get(token_of_interest, -99.0)

    request = child.generate(tokens=TOKENS, max_tokens=1, sampling=GREEDY, logprobs=1)
    token_of_interest = child.answer(request).tokens()[0]
    numbers = [first(scale) for scale in (0.0, 0.01, 0.02)]
    assert len(set(numbers)) == 3
    assert abs(numbers[1] - numbers[0]) < abs(numbers[2] - numbers[0])


def test_prefixes_are_not_shared_between_adapters(child: WorkerChild) -> None:
    long = TOKENS * 8
    usages = []
    for adapters in ({"lawyer": 0.5}, {"lawyer": 0.5}, {"lawyer": 0.25}):
        request = child.generate(tokens=long, max_tokens=1, sampling=GREEDY, adapters=adapters)
        usages.append(child.answer(request).last.usage)
    assert [usage.cached_tokens for usage in usages if usage] == [0, len(long) - 1, 0]


def test_what_is_not_loaded_is_refused(child: WorkerChild, files: dict[str, Path], tmp_path: Path) -> None:
    failed = child.answer(start(child, adapters={"poet": 1.0})).failed
    assert failed is not None
    assert "lawyer, pirate" in failed.failure.hint
    with worker_child(files["base"], tmp_path / "log", threads=1, adapters=(str(files["base"]),)) as wrong:
        message = wrong.receive()
        assert isinstance(message, Failed)
        assert message.failure.code == "E_ADAPTER"
