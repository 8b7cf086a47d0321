"""What the scripted workbench knows: a catalogue, jobs, settings and figures of an imaginary host `edge-07`.

Pure values from constants. Invariant: two calls give equal values, so screens drawn from them can be golden files.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import msgspec
from lathe.engine.errors import Failure
from lathe.engine.jobs.values import Artefact, Job, Outcome, Progress
from lathe.engine.states import Percentiles, RequestRow, Traffic, WorkerState
from lathe.engine.steps import BenchStep, ConvertStep, PerplexityStep, QuantizeStep, ScanStep
from lathe.engine.telemetry.sample import DeviceSample, ProcessSample, Sample
from lathe.engine.workbench import Finding, SettingValue
from lathe.engine.worker.messages import LoadOptions, WorkerInfo, WorkerStats
from lathe.quantize.card import ModelCard
from lathe.store.models import ModelEntry

GIB = 1 << 30
MIB = 1 << 20
T0 = 1_795_183_329.0
"""2026-11-20 14:02:09 UTC, the moment at which the script opens."""
HOME = "/srv/lathe"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def digest(text: str) -> str:
    """Return 64 hex digits that depend on `text` alone."""
    return "".join(f"{zlib.crc32(f'{text}/{i}'.encode()):08x}" for i in range(8))


def _entry(
    name: str, format_: str, size: float, *, parent: str | None = None, origin: str = "linked", **card: Any
) -> ModelEntry:
    verified = not card.pop("unverified", False)
    measured = card.pop("measured", {})
    recipe = card.pop("recipe", {})
    facts = ModelCard(format=format_, bytes=int(size), name=name, **card) if card else None
    suffix = {"gguf": ".gguf", "ggml": ".bin"}.get(format_, "")
    return ModelEntry(
        id=digest(name)[:12],
        name=name,
        path=f"{HOME}/models/{name}{suffix}",
        format=format_,  # type: ignore[arg-type]
        bytes=int(size),
        sha256=digest(name + "#") if verified else None,
        origin=origin,  # type: ignore[arg-type]
        parent=digest(parent)[:12] if parent else None,
        recipe=recipe,
        added_at=T0 - 86_400,
        verified_at=T0 - 120 if verified else None,
        card=msgspec.to_builtins(facts) if facts else {},
        measured=measured,
    )


_QWEN: dict[str, Any] = {
    "architecture": "qwen3", "parameters": 8_190_735_360, "context_length": 40_960, "embedding_length": 4096,
    "feed_forward_length": 12_288, "layers": 36, "heads": 32, "kv_heads": 8, "key_length": 128, "value_length": 128,
    "vocabulary": 151_936, "tokenizer": "gpt2", "pre_tokenizer": "qwen2", "chat_template": CHATML,
    "template_sha256": digest(CHATML), "licence": "apache-2.0", "tensors": 399,
}  # fmt: skip
_STDLIB: dict[str, Any] = {
    "architecture": "llama", "parameters": 4_196_608, "context_length": 1024, "embedding_length": 256,
    "feed_forward_length": 768, "layers": 4, "heads": 8, "kv_heads": 4, "key_length": 32, "value_length": 32,
    "vocabulary": 4096, "tokenizer": "gpt2", "chat_template": CHATML, "template_sha256": digest(CHATML),
    "licence": "apache-2.0", "tensors": 38,
}  # fmt: skip


def _quant(base: str, facts: dict[str, Any], kind: str, size: float, bits: float, **measured: float) -> ModelEntry:
    mix = {kind.split("_")[0] + "_K" if "_K" in kind else kind: int(size * 0.96), "F32": int(size * 0.04)}
    return _entry(
        f"{base}-{kind.lower()}", "gguf", size, parent=base, origin="made", file_type=kind, bits_per_weight=bits,
        tensor_types=mix, measured=measured, recipe={"type": kind, "source": base, "job": "j-117"}, **facts,
    )  # fmt: skip


def models() -> list[ModelEntry]:
    """Every model of the imaginary host."""
    return [
        _entry("bge-small-en", "safetensors", 127 * MIB, architecture="bert", parameters=33_360_000, context_length=512,
               layers=12, heads=12, kv_heads=12, embedding_length=384, file_type="F32", bits_per_weight=32.0,
               pooling="cls", licence="mit"),
        _entry("gpt-j-6b-ggml", "ggml", 3.5 * GIB, architecture="gptj", parameters=6_053_381_344, context_length=2048,
               layers=28, heads=16, kv_heads=16, embedding_length=4096, file_type="Q4_0", bits_per_weight=4.5,
               warnings=("legacy GGML: convert it before use",)),
        _entry("llama-3.3-70b-q4_k_m", "gguf", 39.6 * GIB, architecture="llama", parameters=70_553_706_560,
               context_length=131_072, embedding_length=8192, layers=80, heads=64, kv_heads=8, key_length=128,
               value_length=128, vocabulary=128_256, tokenizer="gpt2", file_type="Q4_K_M", bits_per_weight=4.82,
               licence="llama3.3", chat_template=CHATML, template_sha256=digest(CHATML)),
        _entry("mystery", "gguf", 4.1 * GIB, unverified=True),
        _entry("phi-4-mini-onnx", "onnx", 2.4 * GIB, architecture="phi3", parameters=3_836_021_760,
               context_length=131_072, layers=32, heads=24, kv_heads=8, file_type="int4", bits_per_weight=4.5,
               licence="mit"),
        _entry("qwen3-8b", "safetensors", 15.3 * GIB, file_type="bf16", bits_per_weight=16.0, shards=4, **_QWEN),
        _quant("qwen3-8b", _QWEN, "F16", 15.3 * GIB, 16.0, tokens_per_s=14.1, ttft_s=0.42, perplexity=9.12),
        _quant("qwen3-8b", _QWEN, "Q8_0", 8.1 * GIB, 8.5, tokens_per_s=27.3, ttft_s=0.26, perplexity=9.13),
        _quant("qwen3-8b", _QWEN, "Q5_K_M", 5.4 * GIB, 5.7, tokens_per_s=36.8, ttft_s=0.21, perplexity=9.16),
        _quant("qwen3-8b", _QWEN, "Q4_K_M", 4.7 * GIB, 4.9, tokens_per_s=41.0, ttft_s=0.18, perplexity=9.20),
        _entry("stdlib-4m", "safetensors", 8.0 * MIB, origin="embedded", file_type="bf16", bits_per_weight=16.0,
               **_STDLIB),
        _quant("stdlib-4m", _STDLIB, "F16", 8.2 * MIB, 16.0, tokens_per_s=1890.0, ttft_s=0.004, perplexity=5.71),
        _quant("stdlib-4m", _STDLIB, "Q8_0", 4.5 * MIB, 8.5, tokens_per_s=2410.0, ttft_s=0.003, perplexity=5.72),
    ]  # fmt: skip


def empty_models() -> list[ModelEntry]:
    """A first run: only the checkpoint that ships with Lathe."""
    return [entry for entry in models() if entry.name == "stdlib-4m"]


def worker(entry: ModelEntry, options: LoadOptions, *, gpu_layers: int | None = None, port: int = 0) -> WorkerState:
    """A loaded model with plausible figures."""
    facts = msgspec.convert(entry.card, ModelCard) if entry.card else ModelCard(format=entry.format)
    layers = facts.layers or 1
    on_gpu = layers if gpu_layers is None else gpu_layers
    context = options.context or min(8192, facts.context_length or 2048)
    kv_tokens = context * options.slots
    per_token = 2 * layers * (facts.kv_heads or 1) * (facts.key_length or 64) * 2
    kv = kv_tokens * per_token
    compute = 300 * MIB if entry.bytes > GIB else 12 * MIB
    share = on_gpu / layers
    total = entry.bytes + kv + compute
    info = WorkerInfo(
        backend="scripted", pid=4200 + port, context=context, kv_tokens=kv_tokens, slots=options.slots,
        vocabulary=facts.vocabulary or 32_000, layers=layers, gpu_layers=on_gpu, threads=8, load_s=3.9,
        weights_bytes=entry.bytes, kv_bytes=kv, compute_bytes=compute, chat_template=facts.chat_template,
        device_bytes={"nvidia0": int(total * share), "cpu": int(total * (1 - share))},
        capabilities=("embed",) if facts.pooling else ("generate", "chat", "score", "grammar"),
    )  # fmt: skip
    return WorkerState(
        name=entry.name, model_id=entry.id, path=entry.path, phase="ready", options=options, info=info,
        stats=WorkerStats(kv_tokens=kv_tokens), pid=info.pid, since=T0 - 1200, last_used_at=T0 - 2,
    )  # fmt: skip


def jobs() -> list[Job]:
    """A queue with every state in it, newest first."""
    made = Artefact(name="qwen3-8b-q4_k_m", path=f"{HOME}/models/qwen3-8b-q4_k_m.gguf", format="gguf",
                    bytes=int(4.68 * GIB), sha256=digest("q4"))  # fmt: skip
    oom = Failure("E_MEMORY", "CUDA out of memory: 2.1 GiB short at context 40960",
                  "use context 32768, or KV type q8_0, which saves 2.5 GiB", 75)  # fmt: skip
    return [
        Job(id="j-120", step=PerplexityStep(model="qwen3-8b-q5_k_m"), title="perplexity qwen3-8b-q5_k_m",
            lane="cpu", created_at=T0 - 60),
        Job(id="j-119", step=BenchStep(model="qwen3-8b-q5_k_m"), title="bench qwen3-8b-q5_k_m", lane="gpu",
            created_at=T0 - 90),
        Job(id="j-118", step=QuantizeStep(model="qwen3-8b-f16", type="Q5_K_M"), title="quantize qwen3-8b-f16 to Q5_K_M",
            state="running", created_at=T0 - 430, started_at=T0 - 427, last_event_at=T0 - 1, attempts=1, pid=4121,
            progress=Progress(stage=2, stages=3, label="quantize", done=186, total=399, unit="tensor", rate=4.1,
                              eta_s=192.0)),
        Job(id="j-117", step=QuantizeStep(model="qwen3-8b-f16", type="Q4_K_M"), title="quantize qwen3-8b-f16 to Q4_K_M",
            state="done", created_at=T0 - 1300, started_at=T0 - 1290, finished_at=T0 - 890, attempts=1,
            progress=Progress(stage=3, stages=3, label="verify", done=1, total=1),
            outcome=Outcome(artefacts=(made,), figures={"bytes": made.bytes, "bits_per_weight": 4.9})),
        Job(id="j-116", step=ConvertStep(model="qwen3-8b", outtype="f16"), title="convert qwen3-8b to GGUF f16",
            state="done", created_at=T0 - 1600, started_at=T0 - 1590, finished_at=T0 - 1459, attempts=1,
            progress=Progress(done=399, total=399, unit="tensor")),
        Job(id="j-115", step=BenchStep(model="qwen3-8b-q4_k_m", depths=(40_960,)), title="bench qwen3-8b-q4_k_m",
            state="failed", lane="gpu", created_at=T0 - 3000, started_at=T0 - 2990, finished_at=T0 - 2949, attempts=2,
            progress=Progress(stage=2, stages=3, label="load", done=31, total=100, unit="%"), failure=oom),
        Job(id="j-114", step=ScanStep(roots=("/models",)), title="scan /models", state="cancelled", lane="io",
            created_at=T0 - 4000, started_at=T0 - 3999, finished_at=T0 - 3951, attempts=1,
            progress=Progress(label="hash", done=7, total=14, unit="file")),
    ]  # fmt: skip


JOB_LOG = (
    "13:55:02 info  preflight  disk 490 G free, needs 19.1 G: ok",
    "13:55:03 info  convert    reading 399 tensors from 4 shards",
    "13:57:13 info  convert    wrote qwen3-8b-f16.gguf, 15.3 GiB",
    "14:00:05 info  quantize   blk.0.attn_q.weight  F16 -> Q5_K",
    "14:01:42 info  quantize   checkpoint saved",
    "14:02:03 info  quantize   blk.17.ffn_down.weight  F16 -> Q6_K  186/399",
)


def wave(t: float, seed: int, low: float, high: float) -> float:
    """A deterministic, lively figure between `low` and `high`."""
    x = 0.5 + 0.3 * math.sin(t / 7 + seed) + 0.2 * math.sin(t / 2.3 + seed * 3)
    return low + (high - low) * min(1.0, max(0.0, x))


def sample(t: float) -> Sample:
    """The machine `t` seconds after the script opened."""
    gpu = DeviceSample(
        id="nvidia0", name="NVIDIA RTX A5000", memory_used=int(wave(t, 1, 12.1, 12.4) * GIB), memory_total=24 * GIB,
        utilization=wave(t, 2, 0.7, 0.95), temperature_c=63.0, power_w=wave(t, 3, 130, 160), power_limit_w=170.0,
        clock_mhz=1695.0, memory_clock_mhz=8001.0, processes={4201: int(6.6 * GIB), 4202: int(4.9 * GIB)},
    )  # fmt: skip
    return Sample(
        t=t, wall=T0 + t, cpu=wave(t, 4, 0.25, 0.5), load1=5.1, cores=16, memory_used=21 * GIB, memory_total=64 * GIB,
        memory_available=43 * GIB, swap_used=0, swap_total=8 * GIB, disk_used=1310 * GIB, disk_total=1800 * GIB,
        disk_read_bps=412e6, disk_write_bps=3e6, devices=(gpu,),
        processes=(
            ProcessSample(pid=4100, role="engine", rss=96 * MIB, cpu=0.04),
            ProcessSample(pid=4201, role="worker qwen3-8b-q4_k_m", rss=int(1.1 * GIB), cpu=0.9),
            ProcessSample(pid=4121, role="job j-118", rss=int(9.1 * GIB), cpu=2.2),
        ),
    )  # fmt: skip


def bare_sample(t: float) -> Sample:
    """A small box without an accelerator."""
    return Sample(t=t, wall=T0 + t, cpu=0.03, load1=0.1, cores=8, memory_used=int(2.9 * GIB), memory_total=16 * GIB,
                  memory_available=int(13.1 * GIB), disk_used=46 * GIB, disk_total=256 * GIB)  # fmt: skip


REQUESTS = (
    RequestRow(id="r-91", model="qwen3-8b-q4_k_m", stage="decode", client="playground A", prompt_tokens=812,
               generated=233, ttft_s=0.190, tokens_per_s=41.0, age_s=6.1),
    RequestRow(id="r-92", model="qwen3-8b-q5_k_m", stage="prefill", client="eval gold-qa", prompt_tokens=2048,
               age_s=0.9),
    RequestRow(id="r-93", model="qwen3-8b-q5_k_m", stage="waiting", client="http 10.0.3.14", age_s=1.2),
    RequestRow(id="r-90", model="qwen3-8b-q4_k_m", stage="stop", client="http 10.0.3.14", prompt_tokens=640,
               generated=512, ttft_s=0.171, tokens_per_s=46.1, age_s=11.2, finished=True),
    RequestRow(id="r-89", model="qwen3-8b-q4_k_m", stage="cancelled", client="playground A", prompt_tokens=812,
               generated=12, ttft_s=0.188, tokens_per_s=43.9, age_s=0.5, finished=True),
)  # fmt: skip


def traffic(t: float, requests: tuple[RequestRow, ...] = REQUESTS) -> Traffic:
    """The last five minutes of generation."""
    past = [t - 300 + i for i in range(300)]
    return Traffic(
        window_s=300,
        ttft=Percentiles(412, 0.180, 0.410, 0.890),
        itl=Percentiles(9120, 0.022, 0.031, 0.055),
        e2e=Percentiles(410, 2.1, 6.4, 9.9),
        queue=Percentiles(412, 0.040, 0.095, 0.180),
        decode_tps=wave(t, 5, 20, 66), prefill_tps=wave(t, 6, 100, 1200),
        running=sum(not r.finished and r.stage != "waiting" for r in requests),
        waiting=sum(not r.finished and r.stage == "waiting" for r in requests),
        requests_total=4180, prompt_tokens_total=9_120_000, generated_tokens_total=1_840_000,
        kv_used=12_450, kv_tokens=32_768, cached_tokens_total=5_650_000,
        decode_history=tuple(wave(x, 5, 20, 66) for x in past),
        prefill_history=tuple(wave(x, 6, 100, 1200) for x in past),
        queue_history=tuple(float(int(wave(x, 7, 0, 4.5))) for x in past),
        requests=requests,
    )  # fmt: skip


def settings() -> list[SettingValue]:
    """One setting of every kind and source."""
    rows: list[tuple[str, Any, Any, str, str, str, bool]] = [
        ("general.offline", True, True, "env LATHE_OFFLINE", "Never open a connection to another machine.", "bool",
         True),
        ("general.refresh_s", 1.0, 1.0, "default", "Seconds between two samples of the machine.", "float", False),
        ("general.models_dir", f"{HOME}/models", f"{HOME}/models", "default", "Where Lathe writes models.", "path",
         False),
        ("engine.idle_exit_s", 900.0, 900.0, "default", "Stop the engine after this long without a front or work.",
         "float", False),
        ("engine.job_lanes_cpu", 2, 1, f"user {HOME}/config.toml:12", "CPU jobs that run at once.", "int", False),
        ("serving.host", "127.0.0.1", "127.0.0.1", "default", "Address that the HTTP API listens on.", "str", False),
        ("serving.port", 8321, 8321, "default", "Port of the HTTP API; 0 picks a free one.", "int", False),
        ("serving.context", 8192, None, f"user {HOME}/config.toml:15", "Tokens of context per sequence slot.", "int",
         False),
        ("serving.kv_type", "f16", "f16", "default", "Type of the KV cache.", "f16|q8_0|q4_0", False),
        ("appearance.theme", "lathe-dark", "lathe-dark", "default", "Theme of the TUI.",
         "lathe-dark|lathe-light|lathe-contrast", False),
        ("appearance.glyphs", "auto", "auto", "default", "Characters for graphs and borders.",
         "auto|unicode|blocks|ascii", False),
    ]  # fmt: skip
    return [
        SettingValue(key=k, value=v, default=d, source=s, doc=doc, kind=kind, locked=locked)
        for k, v, d, s, doc, kind, locked in rows
    ]


def findings() -> list[Finding]:
    """A report with every level in it."""
    return [
        Finding(area="cpu", name="cores", value="16 physical, AVX2 FMA F16C"),
        Finding(area="memory", name="RAM", value="64.0 GiB, 43.0 GiB available"),
        Finding(area="gpu", name="nvidia0", value="NVIDIA RTX A5000, 24.0 GiB, driver 580.82"),
        Finding(area="llama.cpp", name="build", value="0.3.36, no GPU offload", level="warn",
                fix='CMAKE_ARGS="-DGGML_CUDA=on" pip install --force-reinstall --no-cache-dir llama-cpp-python'),
        Finding(area="sqlite", name="driver", value="pysqlite3 3.53.4, FTS5, sqlite-vec 0.1.9"),
        Finding(area="extras", name="onnxruntime", value="installed beside onnxruntime-gpu: it hides CUDA",
                level="fail", fix="pip uninstall onnxruntime"),
        Finding(area="extras", name="ctransformers", value="not installed", level="info",
                fix="pip install 'lathe-llm[legacy]'"),
        Finding(area="network", name="offline", value="on: no connection leaves this machine"),
        Finding(area="workspace", name="home", value=f"{HOME}, 490 GiB free"),
    ]  # fmt: skip
