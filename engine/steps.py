"""Steps: what a job does, as values. The screens build them, `--batch` plans contain them, jobs run them.

One dataclass per kind of work, tagged by `run` in plan files. Pure; `lathe.engine.jobs.kinds` maps each to its code.
Invariant: a step plus the hashes of its inputs determines its result, so equal keys mean reusable results.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from lathe.engine.generation import Message, Sampling
from lathe.engine.worker.messages import LoadOptions
from lathe.store.rag.values import DuplicatePolicy, Filter, Recipe
from msgspec import Meta

Positive = Annotated[int, Meta(ge=1)]
Count = Annotated[int, Meta(ge=0)]


class _Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="run"):
    pass


class ScanStep(_Step, frozen=True, kw_only=True, tag="scan"):
    """Find models in folders and in the standard places; link them in place."""

    roots: tuple[str, ...] = ()
    """Folders; none: the standard places (HF cache, Ollama, LM Studio, the workspace)."""
    hashes: bool = True
    """Compute sha256 of what was found, in the background."""


class VerifyStep(_Step, frozen=True, kw_only=True, tag="verify"):
    """Hash a model again and compare with what was recorded."""

    model: str


class ConvertStep(_Step, frozen=True, kw_only=True, tag="convert"):
    """Turn a checkpoint, a LoRA adapter or a file from before GGUF into GGUF, a checkpoint into ONNX, GGUF back."""

    model: str
    to: Literal["gguf", "onnx", "safetensors"] = "gguf"
    outtype: Literal["auto", "f32", "f16", "bf16", "q8_0"] = "auto"
    base: str | None = None
    """LoRA adapter: the checkpoint it was trained on; None: the one it names."""
    split_max_bytes: Positive | None = None
    """GGUF: largest file; None: one file."""
    parity: bool = True
    """GGUF: compare outputs with the checkpoint's through transformers, where that is installed."""
    task: Literal["auto", "text-generation-with-past", "feature-extraction", "text-classification"] = "auto"
    """ONNX: what the graph gives; auto: by the architecture."""
    opset: Annotated[int, Meta(ge=14, le=23)] | None = None
    """ONNX: version of the operators; None: the architecture's usual one."""
    legacy_context: Positive = 2048
    """Files from before GGUF: tokens of context, which they do not say; Llama 2 has 4096."""
    legacy_epsilon: Annotated[float, Meta(gt=0)] = 5e-6
    """Files from before GGUF: epsilon of the norms; Llama 2 has 1e-5."""
    output: str | None = None
    """Path; None: in the workspace, named after the source."""
    name: str | None = None
    """Registered name of the result."""
    force: bool = False


class QuantizeStep(_Step, frozen=True, kw_only=True, tag="quantize"):
    """Quantize a GGUF model."""

    model: str
    type: str = "Q4_K_M"
    imatrix: str | None = None
    tensor_types: dict[str, str] = {}
    """Regular expression over tensor names -> type."""
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    keep_output: bool = False
    """Leave output.weight as it is."""
    pure: bool = False
    allow_requantize: bool = False
    imatrix_only: tuple[str, ...] = ()
    """Use importances only for tensors with one of these in their name."""
    imatrix_except: tuple[str, ...] = ()
    """Use no importances for tensors with one of these in their name."""
    prune_layers: tuple[Count, ...] = ()
    keep_split: bool = False
    """As many shards as the source has."""
    metadata: dict[str, str | int | float | bool] = {}
    """Written into the file."""
    errors: bool = True
    """Report what the weights of each tensor lost, from a sample of rows."""
    threads: Count = 0
    output: str | None = None
    name: str | None = None
    force: bool = False


class OnnxQuantizeStep(_Step, frozen=True, kw_only=True, tag="onnx-quantize"):
    """Quantize an ONNX model through ONNX Runtime's tools."""

    model: str
    mode: Literal["int8", "int8-static", "int4", "float16"] = "int8"
    text: str | None = None
    """int8-static: path of the calibration text."""
    per_channel: bool = True
    """int8: a scale for each column of a weight."""
    symmetric: bool = True
    """int4: no zero points."""
    block_size: Literal[16, 32, 64, 128, 256] = 32
    """int4: weights that share a scale."""
    operators: tuple[str, ...] = ()
    """Operators to quantize, such as MatMul; none: those that bear it."""
    exclude: tuple[str, ...] = ()
    """Regular expressions over names of nodes that stay as they are."""
    reduce_range: bool = False
    """int8: seven bits, for processors without VNNI."""
    calibration: Literal["minmax", "entropy", "percentile"] = "minmax"
    samples: Positive = 32
    sample_tokens: Positive = 128
    """int8-static: pieces of the text, and their length."""
    threads: Count = 0
    output: str | None = None
    name: str | None = None
    force: bool = False


class ToolchainStep(_Step, frozen=True, kw_only=True, tag="toolchain"):
    """Install llama.cpp's own converter, for architectures that ours does not know."""

    source: str | None = None
    """Source archive of llama-cpp-python or a packed toolchain; None: fetched through pip, where not offline."""
    version: str | None = None
    """None: that of the installed llama-cpp-python."""
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")] | None = None
    """Of the source archive; None: the known one of the version."""
    force: bool = False
    """Replace an installed one."""


class PerplexityStep(_Step, frozen=True, kw_only=True, tag="perplexity"):
    """Perplexity over a text, as llama-perplexity computes it."""

    model: str
    text: str | None = None
    """Path; None: the held-out docstrings shipped with the embedded model."""
    context: Positive = 512
    chunks: Annotated[int, Meta(ge=-1)] = -1
    threads: Count = 0
    gpu_layers: int | None = None


class KldStep(_Step, frozen=True, kw_only=True, tag="kld"):
    """Divergence of a model's predictions from a base model's, with llama-perplexity's statistics."""

    model: str
    base: str | None = None
    """The reference, usually the same model at full precision; both step through the text together."""
    base_file: str | None = None
    """In place of `base`: log-probabilities written by llama-perplexity or by `save_base`."""
    save_base: str | None = None
    """Path: also write the base's log-probabilities for later, in llama-perplexity's format."""
    text: str | None = None
    """Path; None: the held-out docstrings shipped with the embedded model."""
    context: Positive = 512
    chunks: Annotated[int, Meta(ge=-1)] = -1
    threads: Count = 0
    gpu_layers: int | None = None
    force: bool = False
    """Replace an existing `save_base`."""


class ImatrixStep(_Step, frozen=True, kw_only=True, tag="imatrix"):
    """Importance matrix of a model on a text, as llama-imatrix collects it."""

    model: str
    text: str
    """Path of the calibration text."""
    context: Positive = 512
    chunks: Annotated[int, Meta(ge=-1)] = -1
    process_output: bool = False
    """Collect for the output matrix, too."""
    merge: tuple[str, ...] = ()
    """Matrices of the same model to add."""
    threads: Count = 0
    gpu_layers: int | None = None
    output: str | None = None
    name: str | None = None
    force: bool = False


class ImatrixMergeStep(_Step, frozen=True, kw_only=True, tag="imatrix-merge"):
    """Add up importance matrices of one model, as if their texts had been one."""

    matrices: Annotated[tuple[str, ...], Meta(min_length=1)]
    """Paths; GGUF or llama-imatrix's older format."""
    output: str
    force: bool = False


class TuneStep(_Step, frozen=True, kw_only=True, tag="tune"):
    """Find the mix of types that is closest to the model for a size, measured on a text and on this machine."""

    model: str
    text: str
    """Path of the calibration text; what is measured later should be measured on another."""
    max_size: str | None = None
    """The file wanted: at most so many bytes (`4GB`, `2.5GiB`, `2888160`), or as large as a file type (`Q4_K_M`)."""
    max_kld: Annotated[float, Meta(gt=0)] | None = None
    """The file wanted: the smallest within this mean divergence, or a closer one where a size is given, too."""
    max_distance: Annotated[float, Meta(gt=0)] | None = None
    """The same of an embedder: mean distance (1 - cosine) of its vectors from the model's."""
    min_tokens_per_s: Annotated[float, Meta(gt=0)] | None = None
    """The file wanted: generates at least this fast here; an embedder reads."""
    sizes: tuple[str, ...] = ()
    """More sizes to find mixes for, written as `max_size`."""
    compare: tuple[str, ...] = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M")
    """llama.cpp's own recipes to measure beside."""
    kinds: tuple[str, ...] = ()
    """Tensor types to choose from; none: all that are worth trying."""
    imatrix: str | None = None
    """Importance matrix; None: collected from the text."""
    feedback: bool = True
    """Round with the second moments of each weight's input: the same bytes, less error."""
    context: Positive = 256
    chunks: Positive = 48
    minutes: Annotated[float, Meta(gt=0)] = 30
    """The search is planned by what its first steps take; what there is no time for is left out, and named."""
    speed: bool = True
    """Time prompt and generation of every point, and ways to run the chosen one."""
    kv_types: Annotated[tuple[str, ...], Meta(min_length=1)] = ("f16", "q8_0")
    """Types of the KV cache to try with the chosen file; points are timed and measured with the first.

    Embedders have no such cache."""
    try_threads: tuple[Positive, ...] = ()
    """Numbers of threads to try; none: the physical cores and half of them."""
    try_batch: tuple[Positive, ...] = ()
    """Prompt tokens computed together, to try; none: 128 and 512, of an embedder's texts 512."""
    try_gpu_layers: tuple[Annotated[int, Meta(ge=-1)], ...] = ()
    """Layers on the accelerator to try; none: all, half and none of them where there is one."""
    threads: Count = 0
    gpu_layers: int | None = None
    output: str | None = None
    """Path of the GGUF file, where a wish names one."""
    name: str | None = None
    force: bool = False
    mix: dict[str, str] = {}
    """Tensor -> type: make and measure this very mix, found before; nothing is searched and no wish is asked."""


class BenchStep(_Step, frozen=True, kw_only=True, tag="bench"):
    """Prompt and generation speed with llama-bench's rows."""

    model: str
    prompt_tokens: tuple[Count, ...] = (512,)
    generate_tokens: tuple[Count, ...] = (128,)
    pairs: tuple[tuple[Positive, Positive], ...] = ()
    """`-pg`: prompt then generation in one timing."""
    depths: tuple[Count, ...] = (0,)
    batch: Positive = 2048
    micro_batch: Positive = 512
    kv_types: tuple[str, ...] = ("f16",)
    threads: tuple[Count, ...] = (0,)
    repetitions: Positive = 5
    gpu_layers: int | None = None


class BenchServedStep(_Step, frozen=True, kw_only=True, tag="bench-served"):
    """Speed of a model as it is served, through its worker: any backend, one request or several at once."""

    model: str
    prompt_tokens: tuple[Count, ...] = (512,)
    generate_tokens: tuple[Count, ...] = (128,)
    parallel: tuple[Positive, ...] = (1,)
    """Requests at once; each has its own prompt."""
    repetitions: Positive = 5
    options: LoadOptions | None = None


class ServeStep(_Step, frozen=True, kw_only=True, tag="serve"):
    """Serve a model over HTTP, probe it with real requests, report, and stop (or keep serving)."""

    model: str
    options: LoadOptions = LoadOptions()
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 0
    prompts: tuple[str, ...] = ("Hello",)
    max_tokens: Positive = 64
    keep: bool = False


class GenerateStep(_Step, frozen=True, kw_only=True, tag="generate"):
    """Generate text for each prompt with one model."""

    model: str
    prompts: tuple[str, ...] = ()
    file: str | None = None
    """JSON lines with `prompt` or `messages`, or one prompt per line."""
    system: str | None = None
    chat: bool = True
    messages: tuple[Message, ...] = ()
    max_tokens: Positive = 256
    sampling: Sampling = Sampling()
    options: LoadOptions = LoadOptions()
    output: str | None = None
    """Path of the JSON lines written; None: only in the job's result."""


class RagBuildStep(_Step, frozen=True, kw_only=True, tag="rag-build"):
    """Make a RAG store from folders, or bring it up to date: only what changed is read and embedded again."""

    store: str
    sources: tuple[str, ...] = ()
    """Folders and files; none: those that the store was made from."""
    embedder: str | None = None
    """None: the store's own, else the default one."""
    words_only: bool = False
    """Keyword search alone: no vectors."""
    tokens: Positive = 256
    """Budget of a passage; holds for a new store."""
    overlap: Count = 32
    description: str = ""
    partition: str = ""
    """Written on the documents of this call; searches can be kept to it."""
    mask_personal: bool = False
    """Names of what was found instead of e-mail addresses, phone and card numbers, secrets."""
    drop_injections: bool = False
    """Leave out text that addresses a model instead of a reader."""
    recipe: Recipe | None = None
    """How text is cleaned; None: as the store says. Another recipe than the store's reads every file again."""
    duplicates: DuplicatePolicy | None = None
    """Which copies answers leave out; None: as the store says, at first `drop-exact`."""
    reembed: Literal["auto", "manual"] | None = None
    """What another embedder than the store's means: it is embedded anew in a job of its own, then switches, or the
    build is refused; None: as the store says, at first `auto`."""
    explore: bool | None = None
    """Make the exploration report; None: where something changed and the store is not too large for it."""


class RagReembedStep(_Step, frozen=True, kw_only=True, tag="rag-reembed"):
    """Embed a store with another model beside the one that answers, compare both, and switch in one step."""

    store: str
    embedder: str
    least_agreement: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Golden questions: recall that the new column must keep of the old one's for the switch."""
    keep: bool = False
    """Keep the vectors of the former embedder in the file."""


class RagQueryStep(_Step, frozen=True, kw_only=True, tag="rag-query"):
    """Search a store with each question; a row per passage found."""

    store: str
    questions: tuple[str, ...] = ()
    k: Positive = 10
    mode: Literal["hybrid", "dense", "bm25"] = "hybrid"
    reranker: str | None = None
    mmr: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Trade between relevance (1) and novelty (0)."""
    filter: Filter = Filter()
    """Which passages may be found."""


class RagAskStep(_Step, frozen=True, kw_only=True, tag="rag-ask"):
    """Answer each question from a store with a model, citing passages."""

    store: str
    model: str
    questions: tuple[str, ...] = ()
    k: Positive = 6
    max_tokens: Positive = 256
    support: bool = True
    quote: bool = False
    """Hold the model to sentences of the passages, word for word."""
    always: bool = False
    """Let the model answer even when what was found is weak."""
    mode: Literal["hybrid", "dense", "bm25"] = "hybrid"
    reranker: str | None = None
    mmr: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Trade between relevance (1) and novelty (0)."""
    filter: Filter = Filter()
    """Which passages may be found."""


class RagEvalStep(_Step, frozen=True, kw_only=True, tag="rag-eval"):
    """Measure retrieval: a BEIR-layout test set, or a store's golden questions."""

    store: str | None = None
    beir: str | None = None
    """Folder with corpus.jsonl, queries.jsonl and qrels/."""
    split: str = "test"
    modes: tuple[Literal["hybrid", "dense", "bm25"], ...] = ("bm25", "dense", "hybrid")
    embedder: str | None = None
    reranker: str | None = None
    passages: bool = False
    """Cut documents as stores do; else one vector per document, as published figures have it."""
    embedders: tuple[str, ...] = ()
    """Embedders to compare on a test set, a row for each and way of searching."""
    tokens: tuple[Positive, ...] = ()
    """Budgets of passages to compare on a test set; documents are cut then."""


class RagGoldenStep(_Step, frozen=True, kw_only=True, tag="rag-golden"):
    """Put golden questions into a store, for `rag-eval` to ask: from a file, or drafted and then confirmed."""

    store: str
    file: str | None = None
    """JSON lines: `{"id": ..., "text": ..., "relevant": [{"path": ..., "start": ..., "end": ...}]}`."""
    draft: Count = 0
    """How many passages to draft a question for; drafts are not asked before they are confirmed."""
    model: str | None = None
    """The one that drafts."""
    confirm: tuple[str, ...] = ()
    """Ids of drafts that are good."""
    drop: tuple[str, ...] = ()
    """Ids of questions to forget."""


class RagExploreStep(_Step, frozen=True, kw_only=True, tag="rag-explore"):
    """Say what a store is made of: counts, lengths, languages, findings, and which passages repeat which."""

    store: str


class RagVerifyStep(_Step, frozen=True, kw_only=True, tag="rag-verify"):
    """Read every row of a store and compare it with its seal; exit 1 when something is damaged."""

    store: str
    mend: bool = False
    """Make every index again from the vectors and passages first."""


class EvalStep(_Step, frozen=True, kw_only=True, tag="eval"):
    """Run an eval suite on a model; an unfinished run of the same questions is gone on with."""

    suite: str
    """Name of a shipped suite or one of the workspace, or path of a suite file."""
    model: str
    variables: dict[str, str | int | float | bool] = {}
    """In place of the suite's own."""
    limit: Positive | None = None
    """Cases per task."""
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] | None = None
    tags: tuple[str, ...] = ()
    """Only cases with one of these."""
    skip_bad: bool = False
    """Leave unusable cases out instead of running none."""
    options: LoadOptions | None = None
    concurrency: Annotated[int, Meta(ge=1, le=256)] = 8
    """Cases asked at once."""
    cache: bool = True
    """Use answers that were given before to the same question by the same model."""
    fresh: bool = False
    """Begin anew even where an unfinished run could be gone on with."""
    baseline_name: str | None = None
    """Let this name stand for the run from now on."""
    reports: tuple[str, ...] = ()
    """Paths; the suffix chooses: .html, .md, .json, .jsonl, .xml (JUnit)."""


class GateStep(_Step, frozen=True, kw_only=True, tag="gate"):
    """Hold an eval run against gates and a baseline; exit 1 where one is missed."""

    of: str
    """The run: `e-12`, a baseline's name, `SUITE@MODEL`, or `${ID.figures.run}` in a plan."""
    baseline: str | None = None
    gates: tuple[str, ...] = ()
    """None: the suite's, and against a baseline that nothing got worse."""
    waivers: str | None = None
    """Path of a YAML list of waivers."""
    tolerance: Annotated[float, Meta(ge=0, le=1)] = 0.01
    """Share of the baseline's figure that a loss must surely exceed."""
    reports: tuple[str, ...] = ()


class JudgeStep(_Step, frozen=True, kw_only=True, tag="judge"):
    """Let a model compare the generated answers of two eval runs, in both orders; verdicts are kept as reviews."""

    of: str
    """The run: `e-12`, a baseline's name, or `${ID.figures.run}` in a plan."""
    baseline: str
    model: str
    """The judge."""
    rubric: str = ""
    """What makes an answer the better one."""
    limit: Positive | None = None
    """A drawn sample of so many pairs."""
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 0
    abstain: Annotated[float, Meta(ge=0)] = 0.5
    """Nats of log-odds below which there is no verdict."""
    options: LoadOptions | None = None


class HarnessStep(_Step, frozen=True, kw_only=True, tag="harness"):
    """Run tasks of lm-evaluation-harness on a model, offline; the results are stored like those of a suite."""

    model: str
    tasks: tuple[str, ...]
    include: str | None = None
    """Folder with more tasks in the harness's YAML."""
    limit: Positive | None = None
    """Cases per task."""
    fewshot: Count | None = None
    """None: what each task says."""
    chat: bool = False
    """Through the model's chat template."""
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 0
    options: LoadOptions | None = None
    baseline_name: str | None = None


Step = (
    ScanStep | VerifyStep
    | ToolchainStep | ConvertStep | QuantizeStep | OnnxQuantizeStep | ImatrixStep | ImatrixMergeStep | TuneStep
    | PerplexityStep | KldStep
    | BenchStep | ServeStep | GenerateStep
    | RagBuildStep | RagReembedStep | RagQueryStep | RagAskStep | RagEvalStep | RagGoldenStep
    | RagExploreStep | RagVerifyStep
    | EvalStep | GateStep | JudgeStep | HarnessStep | BenchServedStep
)  # fmt: skip
