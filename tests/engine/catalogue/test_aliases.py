"""Aliases: another name for a model, in the catalogue, over HTTP and in the shell."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from lathe.engine import connect
from lathe.engine.catalogue.catalogue import Catalogue
from lathe.engine.errors import MissingError, UsageError
from lathe.engine.http.catalogue import Catalogue as Offer
from lathe.engine.http.problems import Problem
from lathe.engine.jobs.values import Outcome
from lathe.engine.steps import PerplexityStep
from lathe.engine.workbench import ModelAlias
from lathe.store.database import Database
from lathe.store.errors import NotFound
from lathe.tui.cli.root import cli
from support.http_kit import SECRET, serving
from support.model_trees import gguf
from support.scripted_workbench import ScriptedWorkbench

FAR = ModelAlias(name="far", target="http://127.0.0.1:8000/v1", model="org/m", key="env:FAR_KEY")


@pytest.fixture
def catalogue(tmp_path: Path) -> Iterator[Catalogue]:
    with Database.open(tmp_path / "lathe.db") as database:
        yield Catalogue(database, lambda: 1.7e9)


def entered(catalogue: Catalogue, path: Path) -> str:
    return catalogue.resolve(str(gguf(path))).name


def test_an_alias_means_its_model_and_follows_its_name(catalogue: Catalogue, tmp_path: Path) -> None:
    name, other = entered(catalogue, tmp_path / "tiny.gguf"), entered(catalogue, tmp_path / "other.gguf")
    catalogue.set_alias(ModelAlias(name="prod", target=name))
    assert catalogue.resolve("prod").name == catalogue.resolve("PROD").name == name
    catalogue.rename(name, "renamed")
    assert catalogue.resolve("prod").name == "renamed"
    catalogue.set_alias(ModelAlias(name="prod", target=other))
    assert catalogue.resolve("prod").name == other, "an alias may be moved"
    assert catalogue.aliases() == [ModelAlias(name="prod", target=other)]
    with pytest.raises(MissingError, match="prod2") as caught:
        catalogue.resolve("prod2")
    assert "prod" in caught.value.hint
    assert catalogue.remove_alias("prod").target == other
    with pytest.raises(MissingError):
        catalogue.resolve("prod")
    with pytest.raises(NotFound):
        catalogue.remove_alias("prod")


def test_a_name_never_means_two_things(catalogue: Catalogue, tmp_path: Path) -> None:
    name, other = entered(catalogue, tmp_path / "tiny.gguf"), entered(catalogue, tmp_path / "other.gguf")
    for taken in (name, name.upper()):
        with pytest.raises(UsageError, match="a model is called"):
            catalogue.set_alias(ModelAlias(name=taken, target=other))
        with pytest.raises(UsageError, match="a model is called"):
            catalogue.set_alias(msgspec.structs.replace(FAR, name=taken))
    catalogue.set_alias(ModelAlias(name="prod", target=name))
    catalogue.rename(other, "prod")
    assert catalogue.resolve("prod").name == "prod", "a model that takes the name ends the alias"
    assert catalogue.aliases() == []
    for bad in ("", "-x", "a/../b", "two words"):
        with pytest.raises(UsageError):
            catalogue.set_alias(ModelAlias(name=bad, target=name))


def test_a_name_goes_to_another_server_and_comes_home(catalogue: Catalogue, tmp_path: Path) -> None:
    name = entered(catalogue, tmp_path / "tiny.gguf")
    catalogue.set_alias(ModelAlias(name="far", target=name))
    assert catalogue.set_alias(FAR) == FAR
    catalogue.set_alias(ModelAlias(name="big", target="far"))
    assert catalogue.resolve("big").format == "remote"
    catalogue.set_alias(ModelAlias(name="far", target=name))
    assert catalogue.resolve("far").name == catalogue.resolve("big").name == name
    assert [entry.name for entry in catalogue.all()] == [name]
    catalogue.set_alias(FAR)
    with pytest.raises(UsageError, match="cannot stand for itself"):
        catalogue.set_alias(ModelAlias(name="far", target="far"))
    assert catalogue.resolve("far").format == "remote", "what was refused changes nothing"


def test_forgetting_a_model_forgets_its_aliases(catalogue: Catalogue, tmp_path: Path) -> None:
    name = entered(catalogue, tmp_path / "tiny.gguf")
    catalogue.set_alias(ModelAlias(name="prod", target=name))
    catalogue.remove("prod")
    assert catalogue.aliases() == []


def test_a_remote_model_is_an_alias_with_a_reference_to_its_key(catalogue: Catalogue) -> None:
    assert catalogue.set_alias(FAR) == FAR
    entry = catalogue.resolve("far")
    assert (entry.format, entry.origin, entry.path) == ("remote", "remote", "http://127.0.0.1:8000/v1#org/m")
    assert catalogue.details("far").problem is None
    moved = msgspec.structs.replace(FAR, target="https://gpu-box/v1", key=None)
    catalogue.set_alias(moved)
    assert catalogue.aliases() == [moved]
    assert catalogue.resolve("far").id != entry.id, "what was learned of another server does not count for this one"
    catalogue.set_alias(ModelAlias(name="big", target="far"))
    assert catalogue.resolve("big").name == "far"
    assert catalogue.remove_alias("far") == moved
    assert catalogue.aliases() == []
    with pytest.raises(UsageError, match="env:VARIABLE or file:PATH"):
        catalogue.set_alias(msgspec.structs.replace(FAR, key="sk-secret"))


# -- over HTTP -------------------------------------------------------------------------------------------------------
async def test_clients_use_aliases_as_they_use_names() -> None:
    async with serving() as served:
        model = "qwen3-8b-q4_k_m"
        await served.workbench.set_alias(ModelAlias(name="prod", target=model))
        listed = [one["id"] for one in (await served.client.get("/v1/models")).json()["data"]]
        assert "prod" in listed
        assert (await served.client.get("/v1/models/prod")).json()["id"] == model
        body = {"model": "prod", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
        answer = await served.post("/v1/chat/completions", body)
        assert answer.status_code == 200
        assert answer.json()["model"] == model
        assert SECRET not in answer.text


async def test_an_allow_list_may_name_an_alias() -> None:
    bench = ScriptedWorkbench()
    first, second = sorted(entry.name for entry in bench.catalogue.values() if entry.format == "gguf")[:2]
    await bench.set_alias(ModelAlias(name="prod", target=first))
    offer = Offer(bench)
    assert [entry.name for entry in await offer.entries(frozenset({"prod"}))] == [first]
    assert (await offer.find("prod", frozenset({"prod"}))).name == first
    with pytest.raises(Problem):
        await offer.find("prod", frozenset({second}))
    assert await offer.aliases(frozenset({second})) == []


# -- in the shell ----------------------------------------------------------------------------------------------------
def test_the_shell_sets_lists_and_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = ScriptedWorkbench()

    @asynccontextmanager
    async def opened(home: Any, *, flags: Any = None, start: bool = False) -> AsyncIterator[ScriptedWorkbench]:
        yield bench

    monkeypatch.setattr(connect, "open_workbench", opened)

    def run(*words: str) -> Any:
        return CliRunner().invoke(cli, ["models", "alias", *words])

    model = next(iter(bench.catalogue.values())).name
    assert run("prod", model).stdout == f"prod -> {model}\n"
    assert run("far", FAR.target, "--model", "org/m", "--key-env", "FAR_KEY").exit_code == 0
    assert json.loads(run("--json").stdout)[0] == msgspec.to_builtins(FAR)
    assert "env:FAR_KEY" in run().stdout
    assert run("prod", "--rm").stdout == "forgot prod\n"
    for wrong in (("prod",), ("prod", model, "--rm"), ("prod", model, "--key-env", "X"),
                  ("far", FAR.target, "--key-env", "X", "--key-file", "y")):  # fmt: skip
        assert run(*wrong).exit_code == 2


def test_what_is_measured_through_an_alias_is_its_models(catalogue: Catalogue, tmp_path: Path) -> None:
    name = entered(catalogue, tmp_path / "tiny.gguf")
    catalogue.set_alias(ModelAlias(name="prod", target=name))
    (entry,) = catalogue.register(PerplexityStep(model="prod"), Outcome(figures={"perplexity": 7.5}))
    assert (entry.name, entry.measured) == (name, {"perplexity": 7.5})
