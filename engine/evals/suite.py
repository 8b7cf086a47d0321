"""Suites as data: a YAML file of tasks, checked whole before anything is asked.

    schema: 1
    name: capitals
    tasks:
      - id: pick
        kind: choice
        prompt: "The capital of {{ country }} is"
        cases:
          - {country: France, choices: [Paris, Rome], answer: Paris}
    gates: ["acc lower bound > 0.5"]

Invariant: what `load` returns can run; every mistake is told with file, line, column and the nearest right name, and
every unusable case by its own place.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
from lathe.engine.batch import document as reading
from lathe.engine.batch.document import Document, Where, check_fields, near
from lathe.engine.batch.gates import parse_gate
from lathe.engine.embedded import CHECKPOINT
from lathe.engine.errors import ConfigError, DataError, MissingError, UsageError
from lathe.engine.evals import templates, transforms
from lathe.engine.evals.datasets import Bad, Row, read_rows
from lathe.engine.evals.items import Builder
from lathe.engine.evals.metrics.metric import Metric
from lathe.engine.evals.metrics.registry import metrics_of
from lathe.engine.evals.values import Case, Fields, Item, Source, Suite, Task, sha256_of
from lathe.engine.generation import GenerationRequest
from lathe.engine.generation import check as check_request

MAX_VALUES = 200_000
_EMBEDDED = "embedded:"


class LoadedTask(msgspec.Struct, frozen=True, kw_only=True):
    """A task with its metrics and what is asked."""

    task: Task
    metrics: tuple[Metric, ...]
    items: tuple[Item, ...]

    @property
    def primary(self) -> Metric:
        """The metric that stands for the task."""
        named = [metric for metric in self.metrics if metric.name == self.task.primary]
        return named[0] if named else self.metrics[0]


class LoadedSuite(msgspec.Struct, frozen=True, kw_only=True):
    """A suite that can run."""

    suite: Suite
    path: str
    sha256: str
    """Over the declaration and every item: equal hashes mean equal questions."""
    tasks: tuple[LoadedTask, ...]
    bad: tuple[Bad, ...] = ()
    """Cases left out; empty unless `skip_bad`."""
    variables: Fields = {}
    """The suite's with the run's."""

    @property
    def items(self) -> tuple[Item, ...]:
        """Every item, task by task."""
        return tuple(item for task in self.tasks for item in task.items)

    def task(self, task_id: str) -> LoadedTask:
        """One task by its id."""
        return next(task for task in self.tasks if task.task.id == task_id)


def declared(path: Path) -> tuple[Suite, Document]:
    """Read and check a suite's declaration, not its cases.

    Raises:
        ConfigError: listing every mistake. MissingError: there is no such file.
    """
    document = reading.read(path, what="suite", table="tasks", max_values=MAX_VALUES)
    mistakes: list[str] = []
    suite = _declared(document, mistakes)
    if mistakes or suite is None:
        raise ConfigError("\n".join(mistakes), hint="nothing was run")
    return suite, document


def load(
    path: Path,
    *,
    variables: Fields | None = None,
    limit: int | None = None,
    seed: int | None = None,
    tags: tuple[str, ...] = (),
    skip_bad: bool = False,
) -> LoadedSuite:
    """Read a suite with its cases.

    Args:
        path: the suite's file.
        variables: override the suite's own.
        limit: cases per task, where the task has no smaller limit.
        seed: in place of the suite's.
        tags: keep only cases with one of these.
        skip_bad: leave unusable cases out instead of refusing the suite.

    Raises:
        ConfigError: the declaration is wrong. DataError: naming every unusable case. MissingError: a file is missing.
    """
    suite, document = declared(path)
    if seed is not None:
        suite = msgspec.structs.replace(suite, seed=seed)
    known = dict(suite.variables) | (variables or {})
    bad: list[Bad] = []
    tasks: list[LoadedTask] = []
    for index, declared_task in enumerate(suite.tasks):
        task = declared_task
        if limit is not None:
            task = msgspec.structs.replace(task, limit=min(limit, task.limit or limit))
        found, unusable = _cases(suite, task, document, ("tasks", index, "cases"), known)
        cases = [case for case in found if not tags or set(tags) & set(case.tags)]
        metrics = metrics_of(task)
        needs_target = any(metric.needs_target for metric in metrics)
        items, unsound = Builder(suite, task, known, needs_target).build(cases)
        bad += [*unusable, *unsound]
        tasks.append(LoadedTask(task=task, metrics=metrics, items=tuple(items)))
    if bad and not skip_bad:
        raise DataError(
            "\n".join(map(str, bad)), code="E_BAD_CASES",
            hint=f"nothing was run: mend {len(bad)} case{'s' * (len(bad) > 1)}, or leave them out with `--skip-bad`",
        )  # fmt: skip
    loaded = tuple(task for task in tasks if task.items)
    if not loaded:
        raise DataError(f"{path}: no case is left to ask", hint="see its filters, tags and limits")
    identity = [suite, [[item.key, item.sha256(), item.targets, item.gold] for task in loaded for item in task.items]]
    return LoadedSuite(
        suite=suite, path=str(path), sha256=sha256_of(identity), tasks=loaded, bad=tuple(bad), variables=known
    )


def needs(suite: Suite) -> tuple[str, ...]:
    """Variables that files, stores and judges are named by and the suite gives no value for."""
    texts: list[str] = []
    for task in suite.tasks:
        if isinstance(task.cases, Source):
            texts += [task.cases.file, *([task.cases.only.file] if task.cases.only else ())]
        if task.kind in ("rag", "retrieval"):
            texts.append(task.store)
        texts += [metric.asks for metric in metrics_of(task) if metric.asks is not None]
    names = dict.fromkeys(name for text in texts for name in templates.variables(text))
    return tuple(name for name in names if name not in suite.variables)


# -- the declaration -------------------------------------------------------------------------------------------------


def _declared(document: Document, mistakes: list[str]) -> Suite | None:
    tree = document.tree
    if not isinstance(tree, dict):
        mistakes.append(f"{document.at()}: a suite is a mapping with `name` and `tasks`")
        return None
    if tree.get("schema", 1) != 1:
        mistakes.append(f"{document.at('schema')}: schema {tree['schema']!r} is not known; this Lathe reads 1")
        return None
    listed = tree.get("tasks")
    if not isinstance(listed, list) or not listed:
        mistakes.append(f"{document.at('tasks')}: `tasks` must be a list with at least one task")
        return None
    sound = check_fields(document, (), Suite, tree | {"tasks": []}, mistakes, what="a suite")
    tasks = [_task(document, ("tasks", index), raw, mistakes) for index, raw in enumerate(listed)]
    seen: set[str] = set()
    for index, task in enumerate(tasks):
        if task is not None and task.id in seen:
            mistakes.append(f"{document.at('tasks', index, 'id')}: task {task.id!r} is given twice")
        seen.add(task.id if task else "")
    for index, text in enumerate(tree.get("gates", ()) if sound else ()):
        try:
            parse_gate(str(text))
        except ConfigError as error:
            mistakes.append(f"{document.at('gates', index)}: {error.message}")
    if not sound or mistakes:
        return None
    return msgspec.structs.replace(msgspec.convert(tree | {"tasks": []}, Suite), tasks=tuple(t for t in tasks if t))


def _task(document: Document, where: Where, raw: object, mistakes: list[str]) -> Task | None:
    if not isinstance(raw, dict):
        mistakes.append(f"{document.at(*where)}: a task is a mapping with `id`, `kind` and `cases`")
        return None
    what = f"task {raw.get('id', '?')!r}"
    if not check_fields(document, where, Task, raw, mistakes, what=what):
        return None
    task = _with_files(msgspec.convert(raw, Task), document.path.parent)
    before = len(mistakes)
    problems = {field: templates.check_template(getattr(task, field)) for field in ("prompt", "system")}
    problems |= {field: templates.check_expression(str(getattr(task, field))) for field in ("choices", "answer")}
    mistakes += [f"{document.at(*where, field)}: {field}: {text}" for field, text in problems.items() if text]
    try:
        check_request(GenerationRequest(model="-", prompt="-", sampling=task.sampling, stop=task.stop))
    except UsageError as error:
        mistakes.append(f"{document.at(*where, 'sampling')}: {error.message}")
    for index, name in enumerate(task.transforms):
        if name not in transforms.NAMES:
            place = document.at(*where, "transforms", index)
            mistakes.append(f"{place}: unknown transform {name!r}{near(name, transforms.NAMES)}")
        elif name == "reorder" and task.kind != "choice":
            mistakes.append(f"{document.at(*where, 'transforms', index)}: only choices can be reordered")
    if task.fewshot and task.fewshot.examples and len(task.fewshot.examples) < task.fewshot.count:
        place = document.at(*where, "fewshot", "examples")
        mistakes.append(f"{place}: {task.fewshot.count} examples are wanted, {len(task.fewshot.examples)} given")
    if task.chat and task.kind not in ("choice", "generate"):
        mistakes.append(f"{document.at(*where, 'chat')}: kind {task.kind} takes a text, not a conversation")
    try:
        metrics = metrics_of(task)
    except ConfigError as error:
        mistakes.append(f"{document.at(*where, 'metrics')}: {error.message}")
    else:
        names = [metric.name for metric in metrics]
        if task.primary is not None and task.primary not in names:
            place = document.at(*where, "primary")
            mistakes.append(f"{place}: the task does not measure {task.primary!r}{near(task.primary, names)}")
    return task if len(mistakes) == before else None


def _with_files(task: Task, folder: Path) -> Task:
    """The task with its metrics' files found beside the suite: figures are computed again in other folders."""

    def placed(entry: str | dict[str, dict[str, Any]]) -> str | dict[str, dict[str, Any]]:
        if isinstance(entry, str):
            return entry
        return {
            name: options | {"file": str((folder / Path(options["file"]).expanduser()).absolute())}
            if isinstance(options.get("file"), str) else options
            for name, options in entry.items()
        }  # fmt: skip

    return msgspec.structs.replace(task, metrics=tuple(placed(entry) for entry in task.metrics))


# -- the cases -------------------------------------------------------------------------------------------------------


def _cases(
    suite: Suite, task: Task, document: Document, where: Where, variables: Fields
) -> tuple[list[Case], list[Bad]]:
    bad: list[Bad] = []
    if isinstance(task.cases, Source):
        rows = _from_source(task.cases, document, where, variables, suite.seed if task.seed is None else task.seed)
    else:
        rows = [Row(fields, document.at(*where, index)) for index, fields in enumerate(task.cases)]
    cases: list[Case] = []
    seen: set[str] = set()
    for number, row in enumerate(rows, 1):
        if isinstance(row, Bad):
            bad.append(row)
            continue
        case_id = str(row.fields.get("id", f"{number:05d}"))
        if case_id in seen:
            bad.append(Bad(row.place, f"case {case_id!r} is given twice"))
            continue
        seen.add(case_id)
        own = row.fields.get("tags", ())
        if not isinstance(own, list | tuple) or not all(isinstance(tag, str) for tag in own):
            bad.append(Bad(row.place, f"case {case_id!r}: `tags` must be a list of words"))
            continue
        tags = tuple(dict.fromkeys((*suite.tags, *task.tags, *own)))
        cases.append(Case(id=case_id, fields=row.fields, tags=tags, place=row.place))
    return cases, bad


def _from_source(source: Source, document: Document, where: Where, variables: Fields, seed: int) -> list[Row | Bad]:
    place = document.at(*where, "file")
    rows = read_rows(_path(source.file, document.path, variables, place), source.format, source.characters)
    renamed = [_renamed(row, source.fields) if isinstance(row, Row) else row for row in rows]
    kept = renamed
    if source.only:
        path = _path(source.only.file, document.path, variables, document.at(*where, "only", "file"))
        kept = _only(renamed, source.only.field, _names(path), source.only.negate)
    return _with_distractors(kept, source, seed) if source.distractors else kept


def _path(text: str, suite: Path, variables: Fields, place: str) -> Path:
    """Where a file is; a variable for its folder may as well name the file itself, whatever it is called there."""
    filled = templates.substitute(text, variables, place)
    if filled.startswith(_EMBEDDED):
        return CHECKPOINT / filled.removeprefix(_EMBEDDED)
    path = Path(filled).expanduser()
    if path.parent.is_file():
        path = path.parent
    return path if path.is_absolute() else suite.parent / path


def _renamed(row: Row, names: dict[str, str]) -> Row | Bad:
    missing = [source for source in names.values() if source not in row.fields]
    if missing:
        return Bad(row.place, f"has no {missing[0]!r}{near(missing[0], row.fields)}")
    return Row(row.fields | {name: row.fields[source] for name, source in names.items()}, row.place)


def _names(path: Path) -> set[str]:
    try:
        return set(msgspec.json.decode(path.read_bytes(), type=list[str]))
    except FileNotFoundError:
        raise MissingError(f"{path}: no such list of names") from None
    except msgspec.MsgspecError as error:
        raise DataError(f"{path}: not a JSON list of texts: {error}") from error


def _only(rows: list[Row | Bad], field: str, names: set[str], negate: bool) -> list[Row | Bad]:
    return [row for row in rows if isinstance(row, Bad) or (str(row.fields.get(field)) in names) is not negate]


def _with_distractors(rows: list[Row | Bad], source: Source, seed: int) -> list[Row | Bad]:
    """Each case's own text, hidden at a drawn place among texts of other cases."""
    assert source.distractors is not None
    field, count = source.distractors.field, source.distractors.count
    texts = sorted({str(row.fields[field]) for row in rows if isinstance(row, Row) and row.fields.get(field)})
    done: list[Row | Bad] = []
    for number, row in enumerate(rows):
        own = row.fields.get(field) if isinstance(row, Row) else None
        if isinstance(row, Bad) or not isinstance(own, str) or not own:
            done.append(row if isinstance(row, Bad) else Bad(row.place, f"has no text {field!r}"))
            continue
        chance = random.Random(f"{seed} {number}")
        others = [text for text in chance.sample(texts, min(count + 1, len(texts))) if text != own][:count]
        if len(others) < count:
            done.append(Bad(row.place, f"{count} other texts are wanted, the source has {len(others)}"))
            continue
        answer = chance.randrange(count + 1)
        choices: list[Any] = [*others[:answer], own, *others[answer:]]
        done.append(Row(row.fields | {"choices": choices, "answer": answer}, row.place))
    return done
