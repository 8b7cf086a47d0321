"""The route table: every route is a row, with the key it asks for and the body it takes. Nothing else adds routes.

    public     no key                  infer    use models
    observe    read how it runs        admin    change what all requests get

`work` rows count against quotas and admission. Invariant: only `/health` is public.
"""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

import msgspec
from lathe.engine.http import (
    adapters,
    anthropic,
    chat,
    completions,
    embeddings,
    feedback,
    native,
    ollama,
    ollama_status,
    openapi,
    responses,
    status,
    stores,
    texts,
)
from lathe.engine.http.access import Auth
from lathe.engine.http.anthropic_in import Conversation, MessagesBody
from lathe.engine.http.call import Handler
from lathe.engine.http.ollama_in import (
    OllamaChatBody,
    OllamaEmbedBody,
    OllamaEmbeddingsBody,
    OllamaGenerateBody,
    OllamaShowBody,
)
from lathe.engine.http.responses_in import ResponsesBody


class Route:
    """One row of the table."""

    def __init__(
        self,
        method: Literal["GET", "POST"],
        path: str,
        handler: Handler,
        auth: Auth,
        takes: Any = None,
        gives: Any = None,
        *,
        work: bool = False,
        quiet: bool = False,
    ) -> None:
        self.method = method
        self.path = path
        """Has one `{name}` where a part of the path is the handler's argument."""
        self.handler = handler
        self.auth = auth
        self.takes = takes
        """Type of the body."""
        self.gives = gives
        """Type of a whole answer."""
        self.work = work
        self.quiet = quiet
        """Not logged when it goes well: it is asked every few seconds by machines."""
        self.body: msgspec.json.Decoder[Any] | None = msgspec.json.Decoder(takes) if takes is not None else None

    @property
    def name(self) -> str:
        """Method and path, for the log and the metrics."""
        return f"{self.method} {self.path}"


class Match(NamedTuple):
    """What a path leads to."""

    methods: dict[str, Route]
    argument: str
    auth: Auth
    """`public` if every method is."""


_ARGUMENT = re.compile(r"\{[a-z]+\}")


class Table:
    """Finds routes by path."""

    def __init__(self, routes: tuple[Route, ...]) -> None:
        self.routes = routes
        self._exact: dict[str, dict[str, Route]] = {}
        around: dict[tuple[str, str], dict[str, Route]] = {}
        for route in routes:
            prefix, *suffix = _ARGUMENT.split(route.path)
            group = around.setdefault((prefix, suffix[0]), {}) if suffix else self._exact.setdefault(prefix, {})
            group[route.method] = route
        # What says more comes first: `/v1/stores/{store}/search` before `/v1/stores/{store}`.
        self._around = sorted(around.items(), key=lambda item: -len("".join(item[0])))

    def match(self, path: str) -> Match | None:
        """Return the routes of a path."""
        methods, argument = self._exact.get(path), ""
        if methods is None:
            for (prefix, suffix), candidates in self._around:
                rest = path[len(prefix) : len(path) - len(suffix)]
                if rest and path.startswith(prefix) and path.endswith(suffix):
                    methods, argument = candidates, rest
                    break
        if methods is None:
            return None
        public = all(route.auth == "public" for route in methods.values())
        return Match(methods, argument, "public" if public else "infer")


ROUTES = (
    Route("GET", "/health", status.health, "public", gives=status.Health, quiet=True),
    Route("GET", "/v1/health", status.health, "public", gives=status.Health, quiet=True),
    Route("GET", "/openapi.json", openapi.document, "observe"),
    # OpenAI
    Route("GET", "/v1/models", status.list_models, "infer", gives=status.ModelList, quiet=True),
    Route("GET", "/v1/models/{model}", status.show_model, "infer", gives=status.ModelBody),
    Route("POST", "/v1/chat/completions", chat.chat, "infer", chat.ChatBody, chat.ChatCompletion, work=True),
    Route("POST", "/v1/completions", completions.complete, "infer", completions.CompletionBody,
          completions.Completion, work=True),
    Route("POST", "/v1/embeddings", embeddings.embeddings, "infer", embeddings.EmbeddingBody,
          embeddings.EmbeddingList, work=True),
    Route("POST", "/v1/responses", responses.responses, "infer", ResponsesBody, responses.Response, work=True),
    Route("POST", "/v1/rerank", embeddings.rerank, "infer", embeddings.RerankBody, embeddings.RankedList, work=True),
    Route("POST", "/v1/score", texts.score, "infer", texts.ScoreBody, texts.ScoreList, work=True),
    Route("POST", "/v1/feedback", feedback.feedback, "infer", feedback.FeedbackBody, feedback.Feedback, work=True),
    # RAG stores
    Route("GET", "/v1/stores", stores.list_stores, "infer", gives=stores.StoreList, quiet=True),
    Route("GET", "/v1/stores/{store}", stores.show_store, "infer", gives=stores.StoreBody),
    Route("POST", "/v1/stores/{store}/search", stores.search, "infer", stores.StoreSearchBody, stores.SearchAnswer,
          work=True),
    # Anthropic
    Route("POST", "/v1/messages", anthropic.messages, "infer", MessagesBody, anthropic.AnthropicMessage, work=True),
    Route("POST", "/v1/messages/count_tokens", anthropic.count_tokens, "infer", Conversation, anthropic.TokenCount,
          work=True),
    # llama-server and vLLM
    Route("POST", "/completion", native.complete, "infer", native.NativeCompletionBody, native.NativeCompletion,
          work=True),
    Route("POST", "/infill", native.infill, "infer", native.InfillBody, native.NativeCompletion, work=True),
    Route("POST", "/tokenize", texts.tokenize, "infer", texts.TokenizeBody, texts.TokenList, work=True),
    Route("POST", "/detokenize", texts.detokenize, "infer", texts.DetokenizeBody, texts.DetokenizedText, work=True),
    Route("POST", "/apply-template", texts.apply_template, "infer", texts.TemplateBody, texts.TemplateResult,
          work=True),
    Route("GET", "/tokenizer_info", texts.tokenizer_info, "infer", gives=texts.TokenizerInfo),
    Route("GET", "/metrics", status.metrics, "observe", quiet=True),
    Route("GET", "/props", status.props, "observe", gives=status.Props),
    Route("GET", "/slots", status.slots, "observe", gives=list[status.SlotBody], quiet=True),
    Route("GET", "/lora-adapters", adapters.list_adapters, "observe", gives=list[adapters.AdapterBody]),
    Route("POST", "/lora-adapters", adapters.set_adapters, "admin", adapters.SetScales, list[adapters.AdapterBody]),
    # Ollama
    Route("GET", "/api/version", ollama_status.version, "infer", gives=ollama_status.Version),
    Route("GET", "/api/tags", ollama_status.tags, "infer", gives=ollama_status.Tags, quiet=True),
    Route("GET", "/api/ps", ollama_status.running, "infer", gives=ollama_status.RunningList, quiet=True),
    Route("POST", "/api/show", ollama_status.show, "infer", OllamaShowBody, ollama_status.Shown),
    Route("POST", "/api/chat", ollama.chat, "infer", OllamaChatBody, ollama.Line, work=True),
    Route("POST", "/api/generate", ollama.generate, "infer", OllamaGenerateBody, ollama.Line, work=True),
    Route("POST", "/api/embed", ollama.embed_texts, "infer", OllamaEmbedBody, ollama.OllamaEmbeddings, work=True),
    Route("POST", "/api/embeddings", ollama.embed_prompt, "infer", OllamaEmbeddingsBody, ollama.OllamaEmbedding,
          work=True),
)  # fmt: skip

TABLE = Table(ROUTES)
