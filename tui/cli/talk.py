"""`lathe chat` and `lathe generate`: one-off use of a model, pipes included."""

from __future__ import annotations

import sys
from contextlib import aclosing
from typing import Any

import click
from lathe.engine.generation import Delta, GenerationRequest, Message, Sampling
from lathe.engine.transcript import collect
from lathe.engine.workbench import Workbench
from lathe.tui.cli.shell import Shell, put_json, say, write


def sampling_options(command: Any) -> Any:
    """Options of every verb that samples."""
    for option in (
        click.option("-n", "--max-tokens", type=click.IntRange(min=1), default=256, show_default=True),
        click.option("--temperature", type=float, default=0.8, show_default=True),
        click.option("--top-p", type=float, default=0.95, show_default=True),
        click.option("--seed", type=click.IntRange(min=0), default=None),
        click.option("--stop", "stops", multiple=True, help="Stop string (repeatable)."),
        click.option("--json", "as_json", is_flag=True, help="The whole answer as JSON."),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("model")
@click.argument("prompt", required=False)
@sampling_options
@click.pass_obj
def generate(
    shell: Shell, model: str, prompt: str | None, max_tokens: int, temperature: float, top_p: float, seed: int | None,
    stops: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Complete PROMPT (or standard input) with MODEL, as it stands: no chat template."""
    request = GenerationRequest(
        model=model, prompt=prompt if prompt is not None else sys.stdin.read(), max_tokens=max_tokens, stop=stops,
        sampling=Sampling(temperature=temperature, top_p=top_p, seed=seed), client="shell",
    )  # fmt: skip
    shell.run(lambda workbench: _answer(workbench, request, as_json), as_json=as_json)


@click.command()
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("--system", help="System prompt.")
@sampling_options
@click.pass_obj
def chat(
    shell: Shell, model: str, prompt: str | None, system: str | None, max_tokens: int, temperature: float, top_p: float,
    seed: int | None, stops: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Ask MODEL one PROMPT, or talk to it: without a prompt on a terminal, turn by turn; in a pipe, standard input."""
    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
    history = [Message("system", system)] if system else []
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read().strip()

    def request() -> GenerationRequest:
        return GenerationRequest(
            model=model, messages=tuple(history), max_tokens=max_tokens, stop=stops, sampling=sampling, client="shell"
        )

    async def work(workbench: Workbench) -> None:
        if prompt is not None:
            history.append(Message("user", prompt))
            await _answer(workbench, request(), as_json)
            return
        await workbench.load(model)
        say(f"talking to {model}; an empty line or ctrl+d ends")
        while line := await _ask():
            history.append(Message("user", line))
            history.append(Message("assistant", await _answer(workbench, request(), False)))

    shell.run(work, as_json=as_json)


async def _ask() -> str:
    """Read one line from the person without blocking the loop; empty at the end of input."""
    import asyncio

    def read() -> str:
        sys.stderr.write("> ")
        sys.stderr.flush()
        return sys.stdin.readline().strip()

    return await asyncio.to_thread(read)


async def _answer(workbench: Workbench, request: GenerationRequest, as_json: bool) -> str:
    """Stream an answer to stdout; timings go to stderr."""
    if as_json:
        answer = await collect(workbench.generate(request))
        put_json(answer)
        return answer.text
    from lathe.tui.text import Cleaner

    cleaner = Cleaner() if sys.stdout.isatty() else None
    text: list[str] = []
    last = Delta()
    async with aclosing(workbench.generate(request)) as stream:
        async for delta in stream:
            text.append(delta.text)
            write(cleaner.feed(delta.text) if cleaner else delta.text)
            last = delta
    write((cleaner.close() if cleaner else "") + "\n")
    _narrate(last)
    return "".join(text)


def _narrate(last: Delta) -> None:
    if last.usage is None or last.timing is None:
        return
    speed = last.timing.decode_tokens_per_s(last.usage.completion_tokens)
    first = last.timing.first_token_s
    parts = [
        f"{last.usage.completion_tokens} tokens",
        f"TTFT {first * 1000:.0f} ms" if first is not None else "",
        f"{speed:.1f} tok/s" if speed else "",
        f"{last.finish}" if last.finish else "",
    ]
    say("  ".join(part for part in parts if part))
