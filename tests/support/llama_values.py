"""One pass of llama.cpp over a few tokens: what a converted model computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from lathe.quantize.libllama import bindings, complaint

POOLING_NONE, POOLING_RANK = 0, 4


def computed_values(
    path: Path, tokens: list[int], *, encoder: bool = False, scores: bool = False, pooled: bool = False,
    adapter: Path | None = None,
) -> np.ndarray:  # fmt: skip
    """Compute logits of the last position, an encoder's vector of the first, a score, or what is made of all."""
    native = bindings()
    parameters = native.llama_model_default_params()
    parameters.n_gpu_layers = 0
    parameters.use_extra_bufts = False  # AMX kernels crash on some machines; results are what is of interest here
    model = native.llama_model_load_from_file(str(path).encode(), parameters)
    assert model, complaint()
    settings = native.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = 256
    settings.n_threads = settings.n_threads_batch = 1
    settings.embeddings = encoder or pooled
    if encoder and not scores:
        settings.pooling_type = POOLING_NONE
    context = native.llama_init_from_model(model, settings)
    assert context, complaint()
    batch = native.llama_batch_init(len(tokens), 0, 1)
    try:
        if adapter is not None:
            _apply(native, model, context, adapter)
        if scores:
            assert native.llama_pooling_type(context) == POOLING_RANK, "the file does not say that the model scores"
        batch.n_tokens = len(tokens)
        for place, token in enumerate(tokens):
            batch.token[place], batch.pos[place] = token, place
            batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, True
        assert native.llama_decode(context, batch) == 0
        if scores:
            return np.array(native.llama_get_embeddings_seq(context, 0)[:1])
        if pooled:
            return np.array(native.llama_get_embeddings_seq(context, 0)[: native.llama_model_n_embd_out(model)])
        if encoder:
            return np.array(native.llama_get_embeddings_ith(context, 0)[: native.llama_model_n_embd(model)])
        count = native.llama_vocab_n_tokens(native.llama_model_get_vocab(model))
        return np.array(native.llama_get_logits_ith(context, len(tokens) - 1)[:count])
    finally:
        native.llama_batch_free(batch)
        native.llama_free(context)
        native.llama_model_free(model)


def _apply(native: object, model: object, context: object, path: Path) -> None:
    import ctypes

    lora = native.llama_adapter_lora_init(model, str(path).encode())  # type: ignore[attr-defined]
    assert lora, complaint()
    adapters = (native.llama_adapter_lora_p_ctypes * 1)(lora)  # type: ignore[attr-defined]
    scales = (ctypes.c_float * 1)(1.0)
    assert native.llama_set_adapters_lora(context, adapters, 1, scales) == 0  # type: ignore[attr-defined]
