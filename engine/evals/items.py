"""From a task and its cases to the items that are asked: few-shot examples, templates, transforms, repeats.

Invariant: for one suite file, one set of variables and one seed the items are the same, in the same order, on every
machine; a case that yields no sound item is a `Bad` that says why.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from lathe.engine.errors import DataError
from lathe.engine.evals import templates, transforms
from lathe.engine.evals.datasets import Bad
from lathe.engine.evals.values import Case, Fields, Item, Suite, Task
from lathe.engine.generation import Message

MAX_PROMPT_CHARS = 4 * 1024**2
MAX_CHOICES = 256


class Builder:
    """Makes the items of one task."""

    def __init__(self, suite: Suite, task: Task, variables: Fields, needs_target: bool) -> None:
        self._suite = suite
        self._task = task
        self._variables = variables
        self._needs_target = needs_target
        self._seed = suite.seed if task.seed is None else task.seed

    def build(self, cases: Sequence[Case]) -> tuple[list[Item], list[Bad]]:
        """Every item of the chosen cases, and the cases that have none."""
        items: list[Item] = []
        bad: list[Bad] = []
        for case in self._chosen(cases):
            try:
                items += self._items(case, cases)
            except DataError as error:
                bad.append(Bad(case.place, f"case {case.id!r}: {error.message}"))
        return items, bad

    def _chosen(self, cases: Sequence[Case]) -> Sequence[Case]:
        chosen = list(cases)
        if self._task.shuffle:
            random.Random(self._seed).shuffle(chosen)
        return chosen[: self._task.limit]

    def _items(self, case: Case, cases: Sequence[Case]) -> Iterator[Item]:
        original = self._item(case, cases, "")
        variants = [original]
        for name in self._task.transforms:
            if name == "reorder":
                variants.append(msgspec.structs.replace(transforms.reordered(original), variant=name))
            else:
                variants.append(self._item(case, cases, name))
        for variant in variants:
            for repeat in range(self._task.repeats):
                sampling = variant.sampling
                if sampling.seed is None:
                    sampling = msgspec.structs.replace(sampling, seed=(self._seed + repeat) % 2**32)
                yield msgspec.structs.replace(variant, repeat=repeat, sampling=sampling)

    def _item(self, case: Case, cases: Sequence[Case], variant: str) -> Item:
        task = self._task
        question = self._render(task.prompt, case.fields)
        if variant:
            chance = random.Random(f"{self._seed} {case.id} {variant}")
            question = transforms.TEXT[variant](question, chance)
        shots = self._shots(case, cases)
        common: dict[str, Any] = {
            "task": task.id, "case": case.id, "kind": task.kind, "variant": variant, "tags": case.tags,
            "max_tokens": task.max_tokens, "stop": task.stop, "sampling": task.sampling, "fields": case.fields,
            "overflow": task.overflow,
        }  # fmt: skip
        if task.kind in ("rag", "retrieval"):
            common |= {"store": templates.substitute(task.store, self._variables), "k": task.k, "mode": task.mode}
        if task.chat:
            turns = [turn for asked, told in shots for turn in (Message("user", asked), Message("assistant", told))]
            system = [Message("system", self._render(task.system, case.fields))] if task.system else []
            common["messages"] = (*system, *turns, Message("user", question))
        else:
            solved = [f"{asked}{task.separator}{told}" for asked, told in shots]
            glue = task.fewshot.separator if task.fewshot else ""
            head = self._render(task.system, case.fields) + "\n\n" if task.system else ""
            common["context"] = head + glue.join([*solved, question])
        if task.kind == "choice":
            continuations, gold = self._choices(case.fields)
            glue = "" if task.chat else task.separator
            common |= {"continuations": tuple(glue + text for text in continuations), "gold": gold}
            common["targets"] = tuple(continuations[index] for index in gold)
        elif task.kind != "perplexity":
            common["targets"] = self._targets(case.fields)
        item = Item(**common)
        _check_text(item)
        return item

    def _render(self, source: str, fields: Fields) -> str:
        return templates.render(source, self._variables | fields)

    def _shots(self, case: Case, cases: Sequence[Case]) -> list[tuple[str, str]]:
        """(question, answer) of the solved examples; never the case itself."""
        fewshot = self._task.fewshot
        if fewshot is None:
            return []
        if fewshot.examples:
            pool: list[Fields] = list(fewshot.examples)[: fewshot.count]
        else:
            others = [other.fields for other in cases if other.id != case.id]
            if len(others) < fewshot.count:
                raise DataError(f"{fewshot.count} examples are wanted, the task has {len(others)} other cases")
            pool = random.Random(f"{self._seed} {case.id}").sample(others, fewshot.count)
        return [(self._render(self._task.prompt, fields), self._solution(fields)) for fields in pool]

    def _solution(self, fields: Fields) -> str:
        if self._task.kind == "choice":
            continuations, gold = self._choices(fields)
            return continuations[gold[0]]
        return self._targets(fields)[0]

    def _choices(self, fields: Fields) -> tuple[list[str], tuple[int, ...]]:
        listed = templates.evaluate(self._task.choices, self._variables | fields)
        if not isinstance(listed, list | tuple) or not 2 <= len(listed) <= MAX_CHOICES:
            raise DataError(f"`{self._task.choices}` must be a list of 2 to {MAX_CHOICES} texts")
        choices = [text for text in listed if isinstance(text, str) and text.strip()]
        if len(choices) != len(listed):
            raise DataError("every choice must be a text that is not blank")
        answer = templates.evaluate(str(self._task.answer), self._variables | fields)
        answers = answer if isinstance(answer, list | tuple) else [answer]
        gold = tuple(sorted({_index(value, choices) for value in answers}))
        if not gold:
            raise DataError("no choice is named as right")
        return choices, gold

    def _targets(self, fields: Fields) -> tuple[str, ...]:
        try:
            value = templates.evaluate(str(self._task.answer), self._variables | fields)
        except DataError:
            if self._needs_target:
                raise
            return ()
        values = value if isinstance(value, list | tuple) else [value]
        targets = tuple(str(text) for text in values if isinstance(text, str | int | float))
        if self._needs_target and not targets:
            raise DataError(f"`{self._task.answer}` gives no text to compare with")
        return targets


def _index(value: object, choices: list[str]) -> int:
    """Which choice an answer means: an index, the choice's own text, or its letter."""
    if isinstance(value, int) and not isinstance(value, bool):
        index = value
    elif isinstance(value, str) and value in choices:
        index = choices.index(value)
    elif isinstance(value, str) and len(value) == 1 and value.upper() in templates.LETTERS:
        index = templates.LETTERS.index(value.upper())
    elif isinstance(value, str) and value.isdecimal():
        index = int(value)
    else:
        raise DataError(f"the answer {value!r} names no choice")
    if not 0 <= index < len(choices):
        raise DataError(f"the answer {value!r} is outside the {len(choices)} choices")
    return index


def _check_text(item: Item) -> None:
    parts = [item.context, *(message.content for message in item.messages), *item.continuations, *item.targets]
    if sum(map(len, parts)) > MAX_PROMPT_CHARS:
        raise DataError(f"longer than {MAX_PROMPT_CHARS} characters")
    try:
        "".join(parts).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"not valid Unicode: {error.reason}") from error
    if not (item.context or item.messages):
        raise DataError("the prompt is empty")
    if item.kind == "perplexity" and not item.context.strip():
        raise DataError("the text is empty")
