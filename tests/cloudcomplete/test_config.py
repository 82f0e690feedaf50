"""The configuration file and its overrides."""

from pathlib import Path

import pytest

from cloudcomplete.config import Settings, load_settings
from cloudcomplete.errors import SettingsError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.toml"
    path.write_text(text)
    return path


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(SettingsError) as raised:
        load_settings(write(tmp_path, text))
    return str(raised.value).removeprefix(f"{tmp_path}/")


def refused_override(*overrides: str) -> str:
    with pytest.raises(SettingsError) as raised:
        load_settings(overrides=overrides)
    return str(raised.value)


def test_without_a_file_everything_has_its_default() -> None:
    assert load_settings() == Settings()


def test_a_file_sets_what_it_names(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, "[engine]\nnum_slots = 3\n[server]\ndrain_s = 1\n"))
    assert (settings.engine.num_slots, settings.server.drain_s) == (3, 1.0)
    assert settings.server.grpc_port == Settings().server.grpc_port


def test_the_example_of_the_repository_loads_and_shows_every_setting_at_its_default() -> None:
    path = Path(__file__).parents[2] / "deploy" / "cloudcomplete.toml"
    assert load_settings(path) == Settings()
    text = path.read_text()
    for section in (Settings().engine, Settings().server, Settings().cache, Settings().allocator):
        for name in section.__struct_fields__:
            assert f"\n{name} = " in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[server]\ngrpc_prt = 1\n", "c.toml: server.grpc_prt is no setting; did you mean grpc_port?"),
        ("[serve]\n", "c.toml: serve is no section; did you mean server?"),
        ("[models]\n", "c.toml: models is no section; expected one of: engine, server, cache, allocator"),
        ("[server]\ngrpc_port = 'x'\n", "c.toml: server.grpc_port: Expected `int`, got `str`"),
        ("[server]\ngrpc_port = 70000\n", "c.toml: server: grpc_port is 70000; expected 0 (any free port) to 65535"),
        ("server = 3\n", "c.toml: server: Expected `object`, got `int`"),
    ],
)
def test_what_a_file_gets_wrong_is_named_with_its_path(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(tmp_path, text) == message


def test_a_file_that_is_no_toml_says_where(tmp_path: Path) -> None:
    message = refusal(tmp_path, "[server\n")
    assert message.startswith("c.toml is not TOML: ")
    assert message.endswith("(at line 1, column 8); correct it, or start from deploy/cloudcomplete.toml")


def test_a_file_that_is_not_utf8_is_no_toml(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="is not TOML"):
        load_settings(path)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as raised:
        load_settings(tmp_path / "missing.toml")
    assert str(raised.value) == (
        f"cannot read the configuration {tmp_path}/missing.toml: No such file or directory; expected a TOML file"
    )


def test_overrides_are_typed_by_their_setting_and_win_in_order(tmp_path: Path) -> None:
    settings = load_settings(
        write(tmp_path, "[engine]\nnum_slots = 3\n"),
        ["engine.num_slots=4", "engine.num_slots = 5", "server.drain_s=2", "server.host=::1", "engine.dtype='float32'"],
    )
    assert (settings.engine.num_slots, settings.server.drain_s) == (5, 2.0)
    assert (settings.server.host, settings.engine.dtype) == ("::1", "float32")


def test_a_text_setting_that_looks_like_a_number_stays_text() -> None:
    assert load_settings(overrides=["engine.compile_cache=123"]).engine.compile_cache == "123"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("server.grpc_port", "--set got 'server.grpc_port'; expected section.key=value, such as server.drain_s=5"),
        ("grpc_port=1", "--set got 'grpc_port=1'; expected section.key=value, such as server.drain_s=5"),
        ("sever.grpc_port=1", "--set: sever is no section; did you mean server?"),
        ("server.grpc_prt=1", "--set: server.grpc_prt is no setting; did you mean grpc_port?"),
        ("server.grpc_port=many", "--set server.grpc_port=many: server.grpc_port: Expected `int`, got `str`"),
        ("server.grpc_port=1.5", "--set server.grpc_port=1.5: server.grpc_port: Expected `int`, got `float`"),
        ("server.grpc_port=", "--set server.grpc_port=: server.grpc_port: Expected `int`, got `str`"),
        (
            "server.max_in_flight=0",
            "--set server.max_in_flight=0: server: max_in_flight is 0; expected a number above 0",
        ),
    ],
)
def test_an_override_that_cannot_be_used_is_repeated_in_the_message(override: str, message: str) -> None:
    assert refused_override(override) == message


def test_a_wrong_choice_names_what_was_given_and_what_could_be() -> None:
    assert refused_override("engine.budgets=guessed") == (
        "--set engine.budgets=guessed: engine.budgets: Invalid enum value 'guessed'; expected one of: fixed, learned"
    )
