"""Generated programs: do they run, and do the case's tests pass?

The answer is put into a program by a template, as HumanEval does, and run in the sandbox. Invariant: where nothing can
confine a program, the suite is refused before anything is asked.
"""

from __future__ import annotations

import re

import msgspec
from lathe.engine.errors import ConfigError, DataError
from lathe.engine.evals import templates
from lathe.engine.evals.metrics import options as given
from lathe.engine.evals.metrics.metric import Finding, Metric, Options
from lathe.engine.evals.sandbox.running import Limits, require, run_program
from lathe.engine.evals.values import Item, Response, Task

_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL)
MAX_SECONDS = 300.0


class CodeOptions(msgspec.Struct, frozen=True):
    program: str = "{{ answer }}\n{{ test }}\n"
    """Template over the case's fields, `prompt` and `answer`; HumanEval: `{{ prompt }}{{ answer }}` and its tests."""
    fence: bool = True
    """Of an answer with a Markdown fence, take the first fenced block."""
    seconds: float = 10.0
    memory_mib: int = 512


def passes(name: str, task: Task, options: Options) -> Metric:
    """Whether the program runs to its end without an exception."""
    chosen = given.read(CodeOptions, name, options)
    if problem := templates.check_template(chosen.program):
        raise ConfigError(f"metric {name!r}: program: {problem}")
    if not 0 < chosen.seconds <= MAX_SECONDS or not 64 <= chosen.memory_mib <= 65_536:
        raise ConfigError(f"metric {name!r}: `seconds` up to {MAX_SECONDS:g} and `memory_mib` of 64 to 65536")
    require()
    limits = Limits(seconds=chosen.seconds, memory_bytes=chosen.memory_mib * 1024**2)

    def judge(item: Item, response: Response) -> Finding:
        answer = code_of(response.text) if chosen.fence else response.text
        try:
            program = templates.render(chosen.program, item.fields | {"prompt": item.context, "answer": answer})
        except DataError as error:
            raise DataError(f"metric {name!r}: {error.message}") from error
        ran = run_program(program, limits)
        return Finding((float(ran.passed), 1.0), ran.reason)

    return Metric(name=name, judge=judge, share=True)


def code_of(text: str) -> str:
    """The first fenced block of an answer, or the whole answer."""
    match = _FENCE.search(text)
    return match.group(1) if match else text
