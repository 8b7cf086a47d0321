"""Documents of any shape: a checkpoint's files end in a typed error or a plan, never in anything else."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lathe.quantize.checkpoint import Checkpoint, read_checkpoint
from lathe.quantize.convert.adapter import convert_adapter
from lathe.quantize.convert.convert import plan_conversion
from lathe.quantize.convert.hparams import Hparams
from lathe.quantize.convert.vocabulary.choose import draft_vocabulary
from lathe.quantize.errors import QuantizeError
from support import tokenizer_files as files
from support.checkpoints import safetensors_bytes, weights
from support.families import RECIPES

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 5),
    st.sampled_from([2**31, 2**63, 10**30, -1, 0.5, 1e300, -0.0]),
    st.text(max_size=3),
    st.sampled_from([[], {}, [None], [[]], {"a": 1}, ["x"], "Sequence", "\ud800"]),
    st.recursive(st.just([]), lambda inner: st.lists(inner, max_size=2), max_leaves=4),
)
DOCUMENTS = {
    "bpe": files.byte_level_bpe("llama-bpe", ("<s>", "</s>")) | {"post_processor": files.template(("<s>", 1), None)},
    "spm": files.spm_json(),
    "wordpiece": files.wordpiece_json(),
    "unigram": files.unigram_json(),
}


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document, but few of each long list."""
    found = [path] if path else []
    if isinstance(document, dict):
        for key in list(document)[:40]:
            found += places(document[key], (*path, key))
    elif isinstance(document, list):
        for index in range(min(len(document), 2)):
            found += places(document[index], (*path, index))
    return found


def changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Copy a document with another value at a place."""
    result = copy.deepcopy(document)
    target = result
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    return result


@pytest.mark.parametrize("kind", DOCUMENTS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(data=st.data())
def test_tokenizers(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    document = DOCUMENTS[kind]
    place = data.draw(st.sampled_from(places(document)))
    (tmp_path / "tokenizer.json").write_text(json.dumps(changed(document, place, data.draw(VALUES))))
    odd = data.draw(st.dictionaries(st.sampled_from(["bos_token", "cls_token", "added_tokens_decoder"]), VALUES))
    try:
        draft = draft_vocabulary(Checkpoint(folder=tmp_path, config={}, tokenizer=odd), Hparams({}, {}))
    except QuantizeError:
        return
    assert draft.vocabulary.metadata()


@pytest.mark.parametrize("name", ["llama3", "qwen2", "gemma3", "phi3-long", "gpt2", "reranker", "bge-m3", "nomic"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(data=st.data())
def test_configurations(tmp_path: Path, name: str, data: st.DataObject) -> None:
    source = tmp_path / name
    if not source.is_dir():
        RECIPES[name].write(source)
    config = dict(RECIPES[name].config)
    key = data.draw(st.sampled_from([*places(config), ("text_config",), ("quantization_config",), ("_name_or_path",)]))
    (source / "config.json").write_text(json.dumps(changed(config, key, data.draw(VALUES))))
    other = data.draw(st.sampled_from(["top_k", "temperature", "repetition_penalty", "sequence"]))
    (source / "generation_config.json").write_text(json.dumps({other: data.draw(VALUES)}))
    try:
        plan = plan_conversion(read_checkpoint(source), "f16")
    except QuantizeError:
        return
    assert plan.entries


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_model_cards(tmp_path: Path, data: st.DataObject) -> None:
    source = tmp_path / "smollm"
    if not source.is_dir():
        RECIPES["smollm"].write(source)
    keys = ["license", "tags", "base_model", "datasets", "language", "name", "model_creator"]
    card = data.draw(st.dictionaries(st.sampled_from(keys), VALUES))
    lines = [f"{key}: {json.dumps(value)}" for key, value in card.items()]
    (source / "README.md").write_text("\n".join(["---", *lines, "---", "text"]))
    assert plan_conversion(read_checkpoint(source), "f16").entries


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(key=st.sampled_from(["lora_alpha", "alpha_pattern", "use_rslora", "peft_type", "bias", "r"]), value=VALUES)
def test_adapter_settings(tmp_path: Path, key: str, value: Any) -> None:
    base, source = tmp_path / "base", tmp_path / "adapter"
    if not base.is_dir():
        RECIPES["llama2"].write(base)
        source.mkdir()
        name = "base_model.model.model.layers.0.self_attn.q_proj"
        halves = {f"{name}.lora_A.weight": weights("a", (4, 64), "F32")}
        halves |= {f"{name}.lora_B.weight": weights("b", (64, 4), "F32")}
        (source / "adapter_model.safetensors").write_bytes(safetensors_bytes(halves))
    config = {"peft_type": "LORA", "lora_alpha": 8, key: value}
    (source / "adapter_config.json").write_text(json.dumps(config))
    try:
        report = convert_adapter(source, tmp_path / "out.gguf", base=base, force=True)
    except QuantizeError:
        return
    assert report.tensors == 2
