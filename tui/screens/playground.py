"""Playground: talk to one model, or to two side by side with the same prompt and seed."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import ClassVar

import msgspec
from lathe.engine.errors import UsageError, describe
from lathe.engine.generation import GenerationRequest, Message, RenderedPrompt
from lathe.engine.states import WorkerState
from lathe.store.models import ModelEntry
from lathe.tui import chat, formats
from lathe.tui.board import Board
from lathe.tui.chat import Cost, Options
from lathe.tui.keys import Hint
from lathe.tui.screens.base import PlaceScreen
from lathe.tui.screens.dialogs import Ask, Write
from lathe.tui.screens.reading import Choice, Choose
from lathe.tui.screens.sampling import sampling_form
from lathe.tui.text import advice
from lathe.tui.text import line as one_line
from lathe.tui.views.models import card_of
from lathe.tui.widgets.base import Canvas, Panel, Words
from lathe.tui.widgets.paint import Line, bar, spread, wrap
from lathe.tui.widgets.pane import Pane
from lathe.tui.widgets.prompt import Prompt
from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widget import Widget
from textual.widgets import TextArea

EXAMPLES = (
    "What does the Python function os.path.join do?",
    "Explain the KV cache in three lines.",
    "What does the Python method str.partition do?",
)
Taken = Callable[[str | None], None]


class Playground(PlaceScreen):
    """Chat."""

    MODE = "chat"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("i,enter", "write", "write", id="chat.write", tooltip="Back into the prompt"),
        Binding("m", "model", "model", id="chat.model", tooltip="Choose the model of this side"),
        Binding(
            "b",
            "beside",
            "side by side",
            id="chat.beside",
            tooltip="A second model with the same prompt and seed, or one again",
        ),
        Binding("p", "params", "sampling", id="chat.params", tooltip="Sampling settings, seed and limits"),
        Binding("S", "system", "system", id="chat.system", tooltip="The system prompt"),
        Binding(
            "v",
            "template",
            "template",
            id="chat.template",
            tooltip="The prompt as the chat template makes it, with its tokens",
        ),
        Binding("ctrl+r", "again", "again", id="chat.again", tooltip="Regenerate the last answer"),
        Binding("e", "edit", "edit", show=False, id="chat.edit", tooltip="Take the last question back into the prompt"),
        Binding("N", "new", "new chat", show=False, id="chat.new", tooltip="A new conversation"),
        Binding(
            "t",
            "markdown",
            "plain text",
            show=False,
            id="chat.plain",
            tooltip="Answers as Markdown, or as plain text (cheaper)",
        ),
        Binding("E", "export", "export", show=False, id="chat.export", tooltip="Write the conversation to a file"),
        Binding("o", "zoom", "zoom", show=False, id="chat.zoom", tooltip="This side alone"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.options = Options()
        self.rich = True
        self._both = False
        self._draft_tokens: int | None = None

    @classmethod
    def widgets_with_bindings(cls) -> tuple[type[Widget], ...]:
        return (Prompt,)

    def content(self) -> ComposeResult:
        with Horizontal(id="chat"):
            with Panel(title="Sampling", id="params"):
                yield _Params(self._params)
            with Vertical(id="talk"):
                with Horizontal(id="panes"):
                    yield Pane("A")
                    yield Pane("B")
                with Panel(title="Prompt", id="prompt-panel"):
                    yield Prompt(examples=EXAMPLES, placeholder="Ask something. up: examples and history   /: commands")

    def on_mount(self) -> None:
        """One side first."""
        self.query_one("#pane-b").display = False

    # -- panes ------------------------------------------------------------------------------------------------------
    @property
    def panes(self) -> list[Pane]:
        """The sides that are open."""
        return list(self.query(Pane))[: 2 if self._both else 1]

    @property
    def pane(self) -> Pane:
        """The side with the focus."""
        node = self.focused
        found = next((a for a in node.ancestors_with_self if isinstance(a, Pane)), None) if node else None
        return found if found is not None and found in self.panes else self.panes[0]

    def home(self) -> Widget | None:
        return self.query_one(Prompt)

    def away_from_text(self) -> Widget | None:
        return self.panes[0].transcript

    def hints(self) -> list[Hint]:
        stop = Hint("^c", "stop", "app.stop", "app.stop")
        found = super().hints()
        return [*found[:2], stop, *found[2:]]

    def target_list(self) -> None:
        return None

    def chattable(self) -> list[ModelEntry]:
        """Models that can talk: those in memory first."""
        entries = [
            e
            for e in self.board.models
            if e.format in ("gguf", "onnx", "ggml", "remote") and not card_of(e).pooling and e.card
        ]
        return sorted(entries, key=lambda e: (self.board.worker(e.id) is None, e.name))

    def show(self, board: Board) -> None:
        if not board.attached:
            return
        for pane in self.panes:
            if not pane.model:
                taken = {other.model for other in self.panes}
                pane.model = next((e.name for e in self.chattable() if e.name not in taken), "")
            worker = self._worker(pane)
            state: str = worker.phase if worker is not None else "loads on first use" if pane.model else ""
            if worker is not None and worker.phase == "starting" and worker.progress is not None:
                state = f"loading {formats.percent(worker.progress)}"
            seed = f"seed {self.options.sampling.seed}" if self.options.sampling.seed is not None else ""
            pane.entitle(
                *([pane.letter] if self._both else []),
                pane.model or "no model",
                "" if state == "ready" else state,
                seed,
            )
            self._show_empty(pane)
        self._entitle_prompt()
        self.query_one(_Params).redraw()

    def _show_empty(self, pane: Pane) -> None:
        empty = pane.query_one(".empty", Words)
        bare = not pane.transcript.turns
        empty.display = bare
        pane.transcript.display = not bare
        if not bare:
            return
        inks = self.lathe.inks
        text = Text(justify="center")
        entry = self.board.model(pane.model)
        if entry is None:
            text.append("No model that can talk yet.\n\n", inks["text"])
            text.append("2  goes to Models: i imports, n converts the built-in demo model", inks["dim"])
        else:
            facts = card_of(entry)
            size = formats.count(facts.parameters)
            text.append(f"{one_line(entry.name)}\n", inks["value"])
            text.append(f"{size} parameters, {facts.file_type or entry.format}, ", inks["dim"])
            text.append(f"context {formats.tokens(facts.context_length)}\n\n", inks["dim"])
            if (facts.parameters or 0) < 50_000_000:
                text.append("A demo model: it answers in the words of the Python standard library.\n\n", inks["warn"])
            for example in EXAMPLES:
                text.append(f"{example}\n", inks["accent"])
            text.append("\nup fetches these examples   enter sends", inks["dim"])
        empty.say(text)

    def _worker(self, pane: Pane) -> WorkerState | None:
        entry = self.board.model(pane.model)
        return self.board.worker(entry.id) if entry is not None else None

    def _room(self, pane: Pane) -> int | None:
        worker = self._worker(pane)
        return worker.info.context if worker is not None and worker.info is not None else None

    def _entitle_prompt(self) -> None:
        pane = self.panes[0]
        used, context = pane.conversation.context_used, self._room(pane)
        budget = ""
        if context is not None:
            total = (used or 0) + (self._draft_tokens or 0)
            budget = f"context {'~' if self._draft_tokens else ''}{total}/{context}"
        sampling = self.options.sampling
        self.query_one("#prompt-panel", Panel).entitle(
            "Prompt to A and B" if self._both else "Prompt",
            f"temp {sampling.temperature:g}",
            budget,
            "system prompt set" if pane.conversation.system else "",
        )

    def _params(self, width: int, height: int) -> list[Line]:
        lines: list[Line] = [
            spread([(name.replace("_", " "), "dim")], [(value, "accent" if changed else "text")], width)
            for name, value, changed in chat.shown_options(self.options)
        ]
        lines += [[], [("system", "dim")]]
        lines += wrap(self.panes[0].conversation.system or "none", width, "text", 4)
        for pane in self.panes:
            used, context = pane.conversation.context_used, self._room(pane)
            if used is not None and context:
                lines += [
                    [],
                    spread(
                        [(f"context {pane.letter if self._both else ''}".strip(), "dim")],
                        [(f"{used}/{context}", "text")],
                        width,
                    ),
                    bar(used / context, width, self.lathe.glyphs),
                ]
        return lines[:height]

    # -- asking -----------------------------------------------------------------------------------------------------
    @on(Prompt.Sent)
    def _sent(self, message: Prompt.Sent) -> None:
        message.stop()
        try:
            command = chat.parse_command(message.text)
            if command is not None:
                self._command(*command)
                return
        except UsageError as error:
            self.lathe.notify(error.message, severity="warning")
            self.query_one(Prompt).put(message.text)
            return
        self.send(message.text)

    @work(group="send", exit_on_error=False)
    async def send(self, text: str) -> None:
        """Ask every open side."""
        if any(pane.streaming for pane in self.panes):
            self.lathe.notify("An answer is still streaming; ctrl+c stops it.", severity="warning")
            self.query_one(Prompt).put(text)
            return
        if not self.panes[0].model:
            self.lathe.notify("There is no model to ask. 2 goes to Models.", severity="warning")
            self.query_one(Prompt).put(text)
            return
        self._draft_tokens = None
        options = self._paired()
        for pane in self.panes:
            pane.conversation.ask(text)
            pane.say("user", "you", text)
            self._start(pane, options)

    def _paired(self) -> Options:
        """With two sides a random seed is drawn once, so that both get the same."""
        sampling = self.options.sampling
        if not self._both or sampling.seed is not None:
            return self.options
        seed = time.time_ns() % 2**31
        return msgspec.structs.replace(self.options, sampling=msgspec.structs.replace(sampling, seed=seed))

    def _start(self, pane: Pane, options: Options) -> None:
        client = f"playground {pane.letter}" if self._both else "playground"
        request = chat.request(pane.model, pane.conversation, options, client)
        pane.streaming = True
        self.run_worker(self._stream(pane, request), group=f"stream-{pane.letter}", exclusive=True, exit_on_error=False)
        words = [
            "lathe",
            "chat",
            pane.model,
            next((t.content for t in reversed(pane.conversation.turns) if t.role == "user"), ""),
        ]
        words += ["--seed", str(request.sampling.seed)] if request.sampling.seed is not None else []
        self.lathe.did = shlex.join(words)

    async def _stream(self, pane: Pane, request: GenerationRequest) -> None:
        """Receive one answer; leaving the loop stops it in the engine."""
        received: list[str] = []
        cost = Cost(finish="cancelled")
        failed = ""
        pane.begin(rich=self.rich)
        try:
            async with aclosing(self.lathe.link.bench.generate(request)) as deltas:
                async for delta in deltas:
                    received.append(delta.text)
                    pane.take(delta)
                    if delta.finish is not None:
                        cost = Cost(delta.finish, delta.usage or cost.usage, delta.timing or cost.timing)
        except Exception as error:  # noqa: BLE001 - whatever broke is shown in the answer's place
            failure = describe(error)
            failed = advice(failure.message, failure.hint)
            self.lathe.report(failure, what=pane.model)
        finally:
            pane.end(cost, "".join(received), bad=failed)
            if self.is_current:
                self._entitle_prompt()
                self.query_one(_Params).redraw()

    def stop_streams(self) -> bool:
        """Stop every answer; False where none streams."""
        running = [pane for pane in self.panes if pane.streaming]
        for pane in running:
            self.workers.cancel_group(self, f"stream-{pane.letter}")
        return bool(running)

    # -- the prompt -------------------------------------------------------------------------------------------------
    @on(TextArea.Changed)
    def _typed(self, event: TextArea.Changed) -> None:
        if isinstance(event.text_area, Prompt):
            self._count(event.text_area.text)

    @work(exclusive=True, group="count", exit_on_error=False)
    async def _count(self, text: str) -> None:
        """Tokens of the draft, for the budget; only where the model is in memory, so that typing loads nothing."""
        import asyncio

        await asyncio.sleep(0.3)
        pane = self.panes[0]
        worker = self._worker(pane)
        if worker is None or worker.phase != "ready" or not text or text.startswith("/"):
            self._draft_tokens = None
        else:
            try:
                self._draft_tokens = len(await self.lathe.link.bench.tokenize(pane.model, text))
            except Exception:  # noqa: BLE001 - a count that fails is not worth a message
                self._draft_tokens = None
        self._entitle_prompt()

    def _command(self, word: str, rest: str) -> None:
        match word:
            case "model":
                self._use(self.panes[0], rest)
            case "with":
                self._beside(rest)
            case "system":
                self._set_system(rest)
            case "set":
                self.options = chat.change(self.options, rest)
                self.redraw()
            case "clear":
                self.action_new()
            case "again":
                self.action_again()
            case "edit":
                self.action_edit()
            case "template":
                self.action_template()
            case "params":
                self.action_params()
            case _:
                self.action_export()

    def _use(self, pane: Pane, name: str) -> None:
        entry = self.board.model(name)
        if entry is None:
            raise UsageError(f"no model {name!r}; m lists them")
        pane.model = entry.name
        self.redraw()

    def open_key(self, key: str) -> None:
        """Talk to a model."""
        entry = self.board.model(key)
        if entry is not None:
            self.panes[0].model = entry.name
            self.redraw()
        self.query_one(Prompt).focus()

    def pose(self, text: str, models: Sequence[str]) -> None:
        """Put a question into the prompt, for one model or for two side by side."""
        self._use(self.panes[0], models[0])
        self._beside(models[1] if len(models) > 1 else "")
        prompt = self.query_one(Prompt)
        prompt.put(text)
        prompt.focus()

    # -- actions ----------------------------------------------------------------------------------------------------
    def action_write(self) -> None:
        """Into the prompt."""
        self.query_one(Prompt).focus()

    def action_model(self) -> None:
        """Choose the model of this side."""
        pane = self.pane

        def take(name: str | None) -> None:
            if name:
                self._use(pane, name)

        self._choose(f"Model of side {pane.letter}" if self._both else "Model", pane.model, take)

    def _choose(self, title: str, current: str, take: Taken) -> None:
        choices = [
            Choice(e.name, e.name, "in memory" if self.board.worker(e.id) else formats.size(e.bytes))
            for e in self.chattable()
        ]
        self.app.push_screen(
            Choose(title, choices, current=current, empty="No model that can talk. 2 goes to Models."), take
        )

    def action_beside(self) -> None:
        """Open or close the second side."""
        if self._both:
            self._beside("")
            return

        def take(name: str | None) -> None:
            if name:
                self._beside(name)

        self._choose("Second model, same prompt and seed", "", take)

    def _beside(self, name: str) -> None:
        second = self.query_one("#pane-b", Pane)
        self._both = bool(name)
        second.display = self._both
        if name:
            self._use(second, name)
            second.conversation.system = self.panes[0].conversation.system
        else:
            self.workers.cancel_group(self, "stream-B")
        self.redraw()

    def action_params(self) -> None:
        """All sampling settings."""
        form, decode = sampling_form(self.options)

        def take(values: dict[str, str] | None) -> None:
            if values is not None:
                self.options = decode(values)
                self.redraw()

        self.app.push_screen(form, take)

    def action_system(self) -> None:
        """The system prompt."""
        hint = "Sent before the conversation, to both sides. Empty removes it."

        def take(text: str | None) -> None:
            if text is not None:
                self._set_system(text)

        self.app.push_screen(Write("System prompt", self.panes[0].conversation.system, hint), take)

    def _set_system(self, text: str) -> None:
        for pane in self.query(Pane):
            pane.conversation.system = text.strip()
        self.redraw()

    def action_template(self) -> None:
        """What the chat template makes of the conversation."""
        pane = self.pane
        draft = self.query_one(Prompt).text
        messages = [*pane.conversation.messages(), *([Message("user", draft)] if draft.strip() else [])]
        if not messages:
            self.lathe.notify("Nothing to show yet: type a prompt first.", severity="warning")
            return
        from lathe.tui.screens.template import TemplateView

        def show(rendered: RenderedPrompt) -> None:
            self.app.push_screen(TemplateView(pane.model, rendered))

        self.lathe.do(lambda bench: bench.render(pane.model, messages), show, what=pane.model)

    def action_again(self) -> None:
        """The last question once more."""
        if any(pane.streaming for pane in self.panes):
            self.lathe.notify("An answer is still streaming; ctrl+c stops it.", severity="warning")
            return
        options = self._paired()
        for pane in self.panes:
            text = pane.rewind()
            if text is not None:
                pane.conversation.ask(text)
                pane.say("user", "you", text)
                self._start(pane, options)

    def action_edit(self) -> None:
        """The last question back into the prompt."""
        if any(pane.streaming for pane in self.panes):
            self.lathe.notify("An answer is still streaming; ctrl+c stops it.", severity="warning")
            return
        texts = [pane.rewind() for pane in self.panes]
        found = next((text for text in texts if text is not None), None)
        if found is not None:
            prompt = self.query_one(Prompt)
            prompt.put(found)
            prompt.focus()
            self.redraw()

    def action_new(self) -> None:
        """Forget the conversation."""
        self.stop_streams()
        for pane in self.query(Pane):
            pane.clear()
        self.redraw()

    def action_markdown(self) -> None:
        """Markdown or plain text for the answers to come."""
        self.rich = not self.rich
        self.lathe.notify(
            "Answers are shown as Markdown." if self.rich else "Answers are shown as plain text.", timeout=3
        )

    def action_export(self) -> None:
        """Write the conversation to a file."""
        pane = self.pane
        text = pane.conversation.as_markdown(pane.model)
        folder = self.lathe.state_dir
        default = str(folder / "chat.md") if folder else "chat.md"
        self.app.push_screen(
            Ask("Export the conversation", "File (Markdown)", default), lambda path: self.lathe.write(path, text)
        )

    def copy_text(self) -> tuple[str, str]:
        return self.pane.conversation.last_answer, "Answer"

    def command(self) -> str:
        return f"lathe chat {shlex.quote(self.pane.model)}" if self.pane.model else self.place.command


class _Params(Canvas):
    """Sampling settings in their panel."""

    DEFAULT_CSS = "_Params { height: 1fr; }"
