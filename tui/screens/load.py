"""The load dialog: how a model comes into memory, and whether it fits, before anything happens."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

import msgspec
from lathe.engine.errors import LatheError
from lathe.engine.states import Fit
from lathe.engine.worker.messages import KvType, LoadOptions
from lathe.store.models import ModelEntry
from lathe.tui import formats
from lathe.tui.screens.dialogs import Dialog, buttons
from lathe.tui.screens.forms import ChoiceBox, number
from lathe.tui.text import plain
from lathe.tui.views.models import card_of
from lathe.tui.widgets.base import Canvas, Words
from lathe.tui.widgets.boxes import TextBox
from lathe.tui.widgets.paint import Line, stacked, wrap
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.widgets import Button, Input

if TYPE_CHECKING:
    from lathe.tui.app import LatheApp

_LABELS = {"context": "context", "slots": "slots", "gpu_layers": "GPU layers"}
KV_TYPES = ("f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "bf16", "f32")


class LoadDialog(Dialog[tuple[LoadOptions, bool]]):
    """Options on top, their cost below; the result is (options, force)."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down", "app.focus_next", "next field", show=False, id="load.next"),
        Binding("up", "app.focus_previous", "previous field", show=False, id="load.previous"),
        Binding("enter", "take", "load", show=False, id="load.take", tooltip="Load with these options"),
    ]

    def __init__(self, entry: ModelEntry) -> None:
        super().__init__(f"Load {entry.name}")
        self._entry = entry
        self._fit: Fit | None = None
        self._problem = ""

    def body(self) -> ComposeResult:
        """Options, estimate, buttons."""
        longest = card_of(self._entry).context_length
        boxes = (
            ("context", "", f"engine chooses (at most {formats.tokens(longest)})"),
            ("slots", "4", ""),
            ("gpu_layers", "", "as many as fit (-1 all, 0 none)"),
        )
        for name, value, hint in boxes:
            label = Words(_LABELS[name], classes="label")
            yield Horizontal(label, TextBox(value, placeholder=hint, id=name), classes="row")
        yield Horizontal(Words("KV type", classes="label"), ChoiceBox(KV_TYPES, "f16", "kv_type"), classes="row")
        yield Words("")
        cost = Canvas(self._cost, id="cost")
        cost.styles.height = 6
        yield cost
        yield Words("", id="problem")
        yield buttons(("cancel", "Cancel", False), ("yes", "Load", False))

    def on_mount(self) -> None:
        """Estimate with the defaults; load is one enter away where it fits."""
        self.query_one("#yes", Button).disabled = True
        self.query_one("#context").focus()
        self._estimate()

    def _options(self) -> LoadOptions | None:
        values = {name: self.query_one(f"#{name}", Input).value.strip() for name in ("context", "slots", "gpu_layers")}
        checks = {
            "context": number(16, 2**24, whole=True, optional=True),
            "slots": number(1, 256, whole=True),
            "gpu_layers": number(-1, 1000, whole=True, optional=True),
        }
        for name, check in checks.items():
            problem = check(values[name])
            if problem:
                self._say(f"{_LABELS[name]}: {problem}", bad=True)
                return None
        kv: KvType = cast(KvType, self.query_one(ChoiceBox).value)
        layers = values["gpu_layers"]
        return LoadOptions(
            context=int(values["context"]) if values["context"] else None,
            slots=int(values["slots"]),
            gpu_layers=int(layers) if layers else None,
            kv_type=kv,
        )

    @on(Input.Changed)
    def _changed(self) -> None:
        self._estimate()

    @work(exclusive=True, group="estimate", exit_on_error=False)
    async def _estimate(self) -> None:
        options = self._options()
        if options is None:
            self.query_one("#yes", Button).disabled = True
            return
        app = cast("LatheApp", self.app)
        try:
            self._fit = await app.link.bench.estimate(self._entry.id, options)
        except LatheError as error:
            self._fit = None
            self._say(error.message, bad=True)
            return
        self.query_one("#cost", Canvas).redraw()
        button = self.query_one("#yes", Button)
        button.disabled = False
        refused = self._fit.verdict == "no"
        button.label = "Load anyway" if refused else "Load"
        button.set_class(refused, "danger")
        self._say(self._advice(self._fit), bad=refused)

    def _advice(self, fit: Fit) -> str:
        if fit.verdict == "no":
            short = formats.long_size(fit.short)
            return f"Short by {short}. A smaller context, KV type q8_0 or a smaller quant needs less."
        if fit.verdict == "tight":
            return "Fits, but less than 10 % stays free."
        if fit.verdict == "partial":
            return "Some layers stay on the processor: slower, but it works."
        return "" if fit.verdict == "fits" else "How much it needs is not known."

    def _say(self, text: str, *, bad: bool) -> None:
        self.query_one("#problem", Words).say(plain(text, str(self.look.inks["bad" if bad else "dim"])))

    def _cost(self, width: int, height: int) -> list[Line]:
        fit = self._fit
        if fit is None:
            return [[("Estimating...", "dim")]]
        parts = fit.footprint
        named = (
            ("weights", parts.weights, "part1"),
            ("KV cache", parts.kv_cache, "part2"),
            ("compute", parts.compute + parts.overhead, "part3"),
        )
        # Of all memory of the devices that take a share: what is free now and what this would use.
        room = sum(fit.available.get(device, 0) for device in (parts.devices or fit.available)) or parts.total or 1
        whole = max(room, parts.total)
        ink = {"fits": "good", "tight": "warn", "partial": "warn", "no": "bad"}.get(fit.verdict, "dim")
        lines: list[Line] = [
            [
                ("needs ", "dim"),
                (f"~{formats.long_size(parts.total)}", "value"),
                ("   free ", "dim"),
                (formats.long_size(room), "value"),
                ("   verdict ", "dim"),
                (fit.verdict, ink),
            ],
            stacked([(size / whole, paint) for _, size, paint in named], width, self.look.glyphs),
            [
                span
                for name, size, paint in named
                for span in ((f"{name} ", paint), (f"~{formats.size(size)}   ", "text"))
            ],
        ]
        chosen = fit.options
        layers = "" if chosen.gpu_layers is None else f", {chosen.gpu_layers} layers on the GPU"
        lines += wrap(f"context {formats.tokens(chosen.context)} for {chosen.slots} slots{layers}", width, "dim", 1)
        for device, size in parts.devices.items():
            lines.append(
                [
                    (f"{device} ", "dim"),
                    (f"~{formats.long_size(size)}", "text"),
                    (" of ", "dim"),
                    (formats.long_size(fit.available.get(device)), "text"),
                    (" free", "dim"),
                ]
            )
        return lines[:height]

    @on(Input.Submitted)
    def _entered(self) -> None:
        self.action_take()

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        if event.button.id == "cancel":
            self.dismiss(None)
        else:
            self._finish()

    def action_take(self) -> None:
        """Load, where it fits; overriding the estimate takes the button itself."""
        if isinstance(self.focused, Button):
            self.focused.press()
        elif self._fit is not None and self._fit.verdict == "no":
            self.app.bell()
            self.query_one("#yes").focus()
        else:
            self._finish()

    def _finish(self) -> None:
        options = self._options()
        if options is None or self._fit is None:
            return
        self.dismiss((msgspec.structs.replace(options), self._fit.verdict == "no"))
