"""Settings: precedence, provenance, and one clear line for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from lathe.engine import settings
from lathe.engine.errors import ConfigError


def test_every_setting_is_documented() -> None:
    assert set(settings.docs()) == set(settings.names())
    assert all(text.endswith(".") for text in settings.docs().values())


def test_later_sources_win_and_are_named(tmp_path: Path) -> None:
    user, project = tmp_path / "user.toml", tmp_path / "project.toml"
    user.write_text("# mine\n[serving]\nport = 1\nslots = 7\n")
    project.write_text("[serving]\nport = 2\n")
    loaded = settings.load(
        user=user, project=project, environment={"LATHE_SERVING_HOST": "::1"}, flags={"general.refresh_s": "2"}
    )
    assert (loaded.value("serving.port"), str(loaded.origin("serving.port"))) == (2, f"project {project}:2")
    assert (loaded.value("serving.slots"), str(loaded.origin("serving.slots"))) == (7, f"user {user}:4")
    assert (loaded.value("serving.host"), str(loaded.origin("serving.host"))) == ("::1", "env LATHE_SERVING_HOST")
    assert (loaded.value("general.refresh_s"), loaded.origin("general.refresh_s").kind) == (2.0, "flag")
    assert loaded.origin("general.offline").kind == "default"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[serving]\nprot = 1\n", r"config\.toml:2: unknown setting 'serving.prot'; did you mean 'serving.port'"),
        ("[serving]\nport = 'x'\n", r"config\.toml:2: serving.port: 'x' is not a whole number"),
        ("[serving]\nkv_type = 'q9'\n", r"is not one of f16, q8_0, q4_0"),
        ("port = 1\n", r"config\.toml:1: 'port' must stand in a \[section\]"),
        ("[serving\n", "not valid TOML"),
        ("[general]\noffline = 1\n", "is not true or false"),
        ("[serving]\nport = 99999\n", r"config\.toml:2: serving.port: 99999 is not a whole number from 0 to 65535"),
        ("[general]\njobs_cpu = 0\n", r"jobs_cpu: 0 is not a whole number of at least 1"),
        ("[general]\nrefresh_s = 0\n", r"refresh_s: 0 is not a number of at least 0.1"),
    ],
)
def test_mistakes_in_a_file_are_placed(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        settings.load(user=path)


def test_a_mistyped_variable_is_noticed() -> None:
    with pytest.raises(ConfigError) as caught:
        settings.load(environment={"LATHE_SERVING_PROT": "1"})
    assert caught.value.hint == "did you mean LATHE_SERVING_PORT?"


def test_foreign_variables_are_left_alone() -> None:
    assert settings.load(environment={"LATHE_HOME": "/x", "LATHE_SHARED_DATA": "/y"}).origins == {}


def test_writing_keeps_comments_and_order(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "config.toml"
    settings.write(path, "serving.port", 9000)
    path.write_text("# the box under the desk\n" + path.read_text() + "slots = 2 # two are enough\n")
    settings.write(path, "serving.port", 9001)
    settings.write(path, "general.offline", False)
    text = path.read_text()
    assert text.startswith("# the box under the desk\n[serving]\nport = 9001\nslots = 2 # two are enough\n")
    assert text.rstrip().endswith("[general]\noffline = false")
    settings.write(path, "serving.port", None)
    loaded = settings.load(user=path)
    assert loaded.value("serving.port") == settings.default("serving.port")
    assert loaded.value("general.offline") is False
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("text", ["true", "YES", "on", "1"])
def test_booleans_of_the_environment(text: str) -> None:
    assert settings.load(environment={"LATHE_GENERAL_OFFLINE": text}).value("general.offline") is True


@pytest.mark.parametrize(
    ("key", "text"),
    [("serving.port", "-1"), ("serving.slots", "0"), ("serving.gpu_layers", "-3"), ("general.refresh_s", "0")],
)
def test_impossible_values_are_refused_wherever_they_come_from(key: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}: '{text}' is not a"):
        settings.parse(key, text)
    with pytest.raises(ConfigError, match=key):
        settings.load(flags={key: text})


def test_every_default_is_in_its_range() -> None:
    for key in settings.names():
        assert settings.parse(key, str(settings.default(key))) == settings.default(key)
    assert settings.kind("serving.port") == "int" and settings.kind("general.refresh_s") == "float"
