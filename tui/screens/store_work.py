"""What can be done with a store: the forms that ask how, and the jobs and calls that follow.

Each function calls the engine through the app, which reports what goes wrong. Invariant: building, embedding, checking
and measuring are always jobs, so the terminal may be closed meanwhile; deleting asks for the store's name.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from lathe.engine.steps import RagBuildStep, RagEvalStep, RagGoldenStep, RagReembedStep, Step
from lathe.store.rag.values import DuplicatePolicy, Question, StoreStats, is_store_name
from lathe.tui import formats
from lathe.tui.board import Board
from lathe.tui.screens.dialogs import Ask, Confirm
from lathe.tui.screens.forms import Field, Form, number
from lathe.tui.screens.model_work import submit
from lathe.tui.screens.reading import Choice, Choose
from lathe.tui.text import line as one_line
from lathe.tui.widgets.fields import Check

if TYPE_CHECKING:
    from lathe.tui.app import LatheApp

AS_IT_IS = "as it is"
_POLICIES = ("drop-exact", "drop-near", "drop-similar", "keep")
_DUPLICATES = "copies that answers leave out: same words, nearly the same, the same meaning, none"


def embedders(board: Board) -> tuple[str, ...]:
    """Models that may give vectors; those that say so first."""
    able = [entry for entry in board.models if entry.format in ("gguf", "onnx", "safetensors")]
    able.sort(key=lambda entry: (not entry.card.get("pooling"), entry.name))
    return tuple(entry.name for entry in able)


def queue(app: LatheApp, step: Step, words: Sequence[str]) -> None:
    """Queue a job about a store."""
    submit(app, step, shlex.join(["lathe", "rag", *words]), lambda _job: app.redraw())


def new(app: LatheApp, board: Board, taken: set[str], then: Callable[[str], None]) -> None:
    """Ask what to make a store of; `then` is told its name."""
    form = Form(
        "New store",
        (
            Field("name", "name", hint="one word of small letters", check=_name_check(taken)),
            Field("sources", "folders", hint="folders and files, separated by blanks", check=sources_check),
            Field("embedder", "embedder", "default", ("default", *embedders(board)),
                  "default: MiniLM; words alone where there is none"),
            Field("vectors", "vectors", "yes", ("yes", "no"), "no: keyword search alone"),
            Field("tokens", "passage tokens", "256", check=number(16, 8192, whole=True)),
            Field("overlap", "overlap", "32", check=number(0, 4096, whole=True)),
            Field("personal", "personal data", "keep", ("keep", "mask"), "mask: names instead of addresses, numbers"),
            Field("injection", "instructions", "keep", ("keep", "drop"), "drop: leave out text that addresses a model"),
            Field("duplicates", "duplicates", "drop-exact", _POLICIES, _DUPLICATES),
            Field("partition", "partition", hint="a word on these documents, which searches can be kept to"),
            Field("about", "about", hint="what it is for"),
        ),
        yes="Build",
        intro="A job reads the documents in a limited process; files that cannot be read are listed, not fatal.",
    )  # fmt: skip

    def take(values: dict[str, str] | None) -> None:
        if values is None:
            return
        step = RagBuildStep(
            store=values["name"], sources=tuple(folders(values["sources"])),
            embedder=None if values["embedder"] == "default" else values["embedder"],
            words_only=values["vectors"] == "no", tokens=int(values["tokens"]), overlap=int(values["overlap"]),
            mask_personal=values["personal"] == "mask", drop_injections=values["injection"] == "drop",
            duplicates=cast(DuplicatePolicy, values["duplicates"]), partition=values["partition"].strip(),
            description=values["about"],
        )  # fmt: skip
        words = ["build", step.store, *step.sources, "--tokens", str(step.tokens), "--overlap", str(step.overlap)]
        words += ["--embedder", step.embedder] if step.embedder else []
        words += ["--words-only"] * step.words_only + ["--mask-personal"] * step.mask_personal
        words += ["--drop-injections"] * step.drop_injections + ["--duplicates", values["duplicates"]]
        words += ["--partition", step.partition] if step.partition else []
        words += ["--description", step.description] if step.description else []
        queue(app, step, words)
        then(step.store)

    app.push_screen(form, take)


def add(app: LatheApp, store: StoreStats) -> None:
    """Ask for more sources, or for another policy of the store."""
    name = store.settings.name
    form = Form(
        f"Add to {name}",
        (
            Field("sources", "folders", hint="folders and files, separated by blanks", check=sources_check),
            Field("partition", "partition", hint="a word on these documents, which searches can be kept to"),
            Field("duplicates", "duplicates", AS_IT_IS, (AS_IT_IS, *_POLICIES), _DUPLICATES),
        ),
        yes="Add",
    )

    def take(values: dict[str, str] | None) -> None:
        if values is None:
            return
        policy = None if values["duplicates"] == AS_IT_IS else cast(DuplicatePolicy, values["duplicates"])
        step = RagBuildStep(store=name, sources=tuple(folders(values["sources"])), duplicates=policy,
                            partition=values["partition"].strip())  # fmt: skip
        words = ["add", name, *step.sources, *(["--partition", step.partition] if step.partition else [])]
        queue(app, step, [*words, *(["--duplicates", policy] if policy else [])])

    app.push_screen(form, take)


def reembed(app: LatheApp, board: Board, store: StoreStats) -> None:
    """Ask which model makes other vectors."""
    names = embedders(board)
    if not names:
        app.notify("There is no model to embed with.", severity="warning")
        return
    form = Form(
        f"Re-embed {store.settings.name}",
        (
            Field("embedder", "embedder", choices=names, hint="its vectors are made beside the old ones"),
            Field("least", "least recall", "0", hint="of the old one's on golden questions, for the switch",
                  check=number(0, 1)),
            Field("keep", "keep the old", "no", ("no", "yes"), "keeps the former vectors in the file"),
        ),
        yes="Re-embed",
        intro="The store answers as before until the new vectors are complete.",
    )  # fmt: skip

    def take(values: dict[str, str] | None) -> None:
        if values is not None:
            step = RagReembedStep(
                store=store.settings.name, embedder=values["embedder"], least_agreement=float(values["least"]),
                keep=values["keep"] == "yes",
            )  # fmt: skip
            words = ["reembed", step.store, "--embedder", step.embedder, *["--keep"] * step.keep]
            queue(app, step, [*words, *(["--least", values["least"]] if step.least_agreement else [])])

    app.push_screen(form, take)


def evaluate(app: LatheApp, board: Board, store: StoreStats, then: Callable[[], None]) -> None:
    """Ask what to measure retrieval on."""
    own = bool(store.questions)
    form = Form(
        f"Measure retrieval of {store.settings.name}",
        (
            Field("beir", "test set", hint="folder in BEIR's layout; empty: the store's own golden questions",
                  check=_set_check(own)),
            Field("mode", "search", "all", ("all", "hybrid", "dense", "bm25"), "a row for each"),
            Field("embedders", "embedders", hint="of a test set: models to compare, separated by blanks"),
            Field("tokens", "passage tokens", hint="of a test set: budgets to compare; empty: documents whole",
                  check=_numbers_check),
            Field("reranker", "reranker", "none", ("none", *rerankers(board)), "orders the best again"),
        ),
        yes="Measure",
    )  # fmt: skip

    def take(values: dict[str, str] | None) -> None:
        if values is None:
            return
        beir = folders(values["beir"])[0] if values["beir"].strip() else None
        models = tuple(values["embedders"].split()) if beir else ()
        mode = cast(Literal["hybrid", "dense", "bm25"], values["mode"])
        step = RagEvalStep(
            store=None if beir else store.settings.name, beir=beir,
            modes=("bm25", "dense", "hybrid") if values["mode"] == "all" else (mode,),
            embedder=models[0] if len(models) == 1 else None, embedders=models if len(models) > 1 else (),
            tokens=tuple(int(word) for word in values["tokens"].split()) if beir else (),
            reranker=None if values["reranker"] == "none" else values["reranker"],
        )  # fmt: skip
        words = ["eval", *(["--beir", beir] if beir else [store.settings.name])]
        for option, given in (("--mode", step.modes if values["mode"] != "all" else ()), ("--embedder", models),
                              ("--tokens", step.tokens)):  # fmt: skip
            words += [word for value in given for word in (option, str(value))]
        queue(app, step, [*words, *(["--reranker", step.reranker] if step.reranker else [])])
        then()

    app.push_screen(form, take)


def rerankers(board: Board) -> tuple[str, ...]:
    """Models that score a question with a passage; where none says so, whatever can be asked."""
    ranking = [entry.name for entry in board.models if entry.card.get("pooling") == "rank"]
    return tuple(ranking or (entry.name for entry in board.models if entry.format in ("gguf", "onnx", "safetensors")))


def questions_file(app: LatheApp, store: StoreStats) -> None:
    """Ask for a file of golden questions."""
    name = store.settings.name
    dialog = Ask(
        f"Golden questions for {name}", "File of JSON lines", check=_file_check,
        hint='{"id": ..., "text": ..., "relevant": [{"path": ...}]}',
    )  # fmt: skip

    def take(text: str | None) -> None:
        if text:
            (path,) = folders(text)[:1]
            queue(app, RagGoldenStep(store=name, file=path), ["golden", name, path])

    app.push_screen(dialog, take)


def draft(app: LatheApp, models: Sequence[str], store: StoreStats) -> None:
    """Ask how many questions a model shall draft."""
    if not models:
        app.notify("There is no model that could draft questions.", severity="warning")
        return
    form = Form(
        f"Draft questions for {store.settings.name}",
        (
            Field("model", "model", choices=tuple(models), hint="reads passages and asks what they answer"),
            Field("count", "passages", "10", check=number(1, 1000, whole=True), hint="drawn at random"),
        ),
        yes="Draft",
        intro="A draft is asked by no evaluation before somebody confirmed it: enter on its row.",
    )

    def take(values: dict[str, str] | None) -> None:
        if values is not None:
            step = RagGoldenStep(store=store.settings.name, draft=int(values["count"]), model=values["model"])
            queue(app, step, ["golden", step.store, "--draft", values["count"], "--model", values["model"]])

    app.push_screen(form, take)


def judge(app: LatheApp, store: str, question: Question) -> None:
    """Ask what becomes of a golden question."""
    where = question.relevant[0].path if question.relevant else "no document"
    choices = [Choice("keep", "leave it as it is")]
    if question.state == "draft":
        choices.insert(0, Choice("confirm", "confirm it", "evaluations ask it"))
    choices.append(Choice("drop", "drop it", "it is forgotten"))

    def take(what: str | None) -> None:
        if what in ("confirm", "drop"):
            step = RagGoldenStep(
                store=store, confirm=(question.id,) if what == "confirm" else (),
                drop=(question.id,) if what == "drop" else (),
            )  # fmt: skip
            queue(app, step, ["golden", store, f"--{what}", question.id])

    app.push_screen(Choose(f"{one_line(question.text, 60)}  ({one_line(where, 30)})", choices), take)


def share(app: LatheApp, store: StoreStats, keys: Sequence[str], then: Callable[[], None]) -> None:
    """Ask which keys may search a store."""
    name = store.settings.name
    known = ", ".join(keys) or "there is none yet: Serve makes keys"
    dialog = Ask(
        f"Who may search {name}", "Names of API keys, separated by blanks; empty: every key",
        " ".join(store.settings.access), check=_keys_check(keys, store.settings.access), hint=f"keys: {known}",
    )  # fmt: skip

    def take(text: str | None) -> None:
        if text is None:
            return
        allowed = text.split()
        words = [word for key in allowed for word in ("--allow", key)] or ["--everyone"]

        def done(stats: StoreStats) -> None:
            app.tell(f"{name} is open to {', '.join(stats.settings.access) or 'every key'}")
            then()

        app.do(lambda bench: bench.share_store(name, allowed), done,
               command=shlex.join(["lathe", "rag", "access", name, *words]), what=name)  # fmt: skip

    app.push_screen(dialog, take)


def delete(app: LatheApp, store: StoreStats, then: Callable[[], None]) -> None:
    """Delete a store, once its name was typed."""
    name = store.settings.name
    lines = [
        f"{formats.long_size(store.bytes)} with {formats.many(store.documents, 'document')}, "
        f"{formats.many(store.passages, 'passage')} and their vectors go for good.",
        "The files it was made from stay as they are" + (":" if store.settings.sources else "."),
        *store.settings.sources[:4],
    ]  # fmt: skip
    if store.questions:
        lines.append(f"{formats.many(store.questions, 'golden question')} go with it.")

    def take(yes: bool | None) -> None:
        if yes:

            def done(free: int) -> None:
                app.tell(f"{name} deleted, {formats.long_size(free)} free")
                then()

            app.do(lambda bench: bench.remove_store(name), done,
                   command=shlex.join(["lathe", "rag", "rm", name]), what=name)  # fmt: skip

    app.push_screen(Confirm(f"Delete the store {name}?", lines, "Delete", phrase=name), take)


# -- what may be typed ------------------------------------------------------------------------------------------------
def folders(text: str) -> list[str]:
    """Paths as written, blanks in quotes, made absolute: the engine has another working directory."""
    try:
        words = shlex.split(text)
    except ValueError:
        words = text.split()
    return [str(Path(word).expanduser().absolute()) for word in words]


def sources_check(text: str) -> str:
    """What is wrong with a list of paths."""
    paths = folders(text)
    missing = next((path for path in paths if not Path(path).exists()), None)
    return "type a path" if not paths else f"there is no {one_line(missing, 200)}" if missing else ""


def _file_check(text: str) -> str:
    problem = sources_check(text)
    return problem or ("" if not Path(folders(text)[0]).is_dir() else "that is a folder: name a file in it")


def _set_check(own: bool) -> Check:
    def check(text: str) -> str:
        if not text.strip():
            return "" if own else "the store has no golden questions yet: name a folder in BEIR's layout"
        folder = Path(folders(text)[0])
        return "" if (folder / "queries.jsonl").is_file() else f"{one_line(str(folder), 120)} has no queries.jsonl"

    return check


def _numbers_check(text: str) -> str:
    return "" if all(word.isdigit() and int(word) >= 16 for word in text.split()) else "numbers from 16, with blanks"


def _keys_check(keys: Sequence[str], before: Sequence[str]) -> Check:
    def check(text: str) -> str:
        unknown = next((word for word in text.split() if word not in (*keys, *before)), None)
        return f"there is no key {one_line(unknown, 60)}" if unknown else ""

    return check


def _name_check(taken: set[str]) -> Check:
    def check(name: str) -> str:
        if not is_store_name(name):
            return "one word of small letters, digits, . _ -"
        return f"{name} is there already" if name in taken else ""

    return check
