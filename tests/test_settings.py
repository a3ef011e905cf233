"""Settings: one object, typed names, saved for the user's eyes alone."""

import json
import stat
import subprocess
import sys
import traceback
from types import SimpleNamespace

import pytest

import insitu
from insitu import CONFIG, NNsight
from insitu.settings import Config, config_file, load


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A config folder of this test's own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("APPDATA", str(tmp_path))
    monkeypatch.delenv("INSITU_API_KEY", raising=False)
    return tmp_path / "insitu" / "config.json"


def test_the_reference_spelling_works():
    from insitu import CONFIG as same

    assert same is insitu.CONFIG
    before = CONFIG.APP.DEBUG, CONFIG.APP.REMOTE_LOGGING, CONFIG.API.KEY
    insitu.CONFIG.APP.REMOTE_LOGGING = False
    CONFIG.APP.DEBUG = True
    CONFIG.set_default_api_key(" a key\n")
    assert (CONFIG.APP.DEBUG, CONFIG.APP.REMOTE_LOGGING, CONFIG.API.KEY) == (True, False, "a key")
    CONFIG.APP.DEBUG, CONFIG.APP.REMOTE_LOGGING, CONFIG.API.KEY = before


def test_the_defaults():
    config = Config()
    assert (config.APP.DEBUG, config.APP.REMOTE_LOGGING) == (False, True)
    assert (config.API.HOST, config.API.KEY) == (None, None)


@pytest.mark.parametrize(
    ("group", "name", "near"),
    [
        ("APP", "DEBUGG", "did you mean CONFIG.APP.DEBUG?"),
        ("APP", "debug", "did you mean CONFIG.APP.DEBUG?"),
        ("API", "APIKEY", "did you mean CONFIG.API.KEY?"),
        ("API", "volume", "print(CONFIG) shows every setting."),
    ],
)
def test_a_misspelt_setting_is_refused_with_the_near_name(group, name, near):
    section = getattr(Config(), group)
    for act in (lambda: setattr(section, name, True), lambda: getattr(section, name)):
        with pytest.raises(insitu.UnknownSettingError) as caught:
            act()
        assert caught.value.what == f"CONFIG.{group} has no setting called {name!r}."
        assert caught.value.next == near
        assert isinstance(caught.value, AttributeError)
    assert not hasattr(section, name)


def test_a_misspelt_group_is_refused():
    config = Config()
    with pytest.raises(insitu.UnknownSettingError, match=r"CONFIG has no setting called 'DEBUG'"):
        config.DEBUG = True
    with pytest.raises(insitu.UnknownSettingError):
        config.api_key = "a key"


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [("APP", "DEBUG", "yes"), ("APP", "DEBUG", 1), ("API", "HOST", 80), ("API", "KEY", b"secret")],
)
def test_a_value_of_another_type_is_refused_and_not_shown(group, name, value):
    section = getattr(Config(), group)
    with pytest.raises(insitu.UsageError, match=f"CONFIG.{group}.{name} was given") as caught:
        setattr(section, name, value)
    assert "secret" not in str(caught.value)
    with pytest.raises(insitu.UsageError, match=r"CONFIG\.APP was given bool"):
        Config().APP = True


@pytest.mark.parametrize("key", ["", "  ", None, 3, b"secret"])
def test_a_key_is_text(key):
    with pytest.raises(insitu.UsageError, match=r"set_default_api_key\(\) was given") as caught:
        Config().set_default_api_key(key)
    assert "secret" not in str(caught.value)


def test_the_settings_are_printed_as_a_table_without_the_key():
    config = Config()
    config.set_default_api_key("a-very-secret-key-1234")
    lines = repr(config).splitlines()
    assert [line.split()[0] for line in lines] == [
        "CONFIG.APP.DEBUG", "CONFIG.APP.REMOTE_LOGGING", "CONFIG.API.HOST", "CONFIG.API.KEY",
    ]  # fmt: skip
    assert "frames in tracebacks" in lines[0]
    assert "secret" not in repr(config)
    assert "…1234" in lines[3]
    assert "secret" not in repr(config.API)
    assert len({line.index("  ") for line in repr(config.API).splitlines()}) <= 2
    config.API.KEY = "short"
    assert "short" not in repr(config)


def test_a_block_may_have_other_settings():
    config = Config()
    with pytest.raises(KeyError), config.APP.override(DEBUG=True, REMOTE_LOGGING=False):
        assert (config.APP.DEBUG, config.APP.REMOTE_LOGGING) == (True, False)
        raise KeyError
    assert (config.APP.DEBUG, config.APP.REMOTE_LOGGING) == (False, True)
    with pytest.raises(insitu.UnknownSettingError), config.APP.override(DEBUGG=True):
        pass


def test_saved_settings_are_read_again_and_are_nobody_elses(place):
    config = Config()
    config.set_default_api_key("a key")
    config.API.HOST = "https://models.example"
    config.APP.REMOTE_LOGGING = False
    config.APP.DEBUG = True
    assert config.save() == place == config_file()
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
    again = load(place)
    assert again.API == config.API
    assert again.APP.REMOTE_LOGGING is False
    assert again.APP.DEBUG is False  # of one process
    assert [file.name for file in place.parent.iterdir()] == ["config.json"]
    config.API.KEY = None
    config.save()
    assert load(place).API.KEY is None


def test_a_file_others_could_read_is_replaced_by_one_they_cannot(place):
    place.parent.mkdir()
    place.write_text("{}")
    place.chmod(0o644)
    Config().save()
    assert stat.S_IMODE(place.stat().st_mode) == 0o600


def test_a_save_that_fails_leaves_the_old_file_and_no_other(place, monkeypatch):
    Config().save()
    before = place.read_text()

    def fail(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(json, "dump", fail)
    with pytest.raises(OSError, match="no space"):
        Config().save()
    assert place.read_text() == before
    assert [file.name for file in place.parent.iterdir()] == ["config.json"]


@pytest.mark.parametrize("text", ["{", '{"APP": {"DEBUGG": true}}', '{"API": {"KEY": 3}}', "[1]"])
def test_a_file_that_cannot_be_used_is_warned_about(place, text):
    place.parent.mkdir()
    place.write_text(text)
    with pytest.warns(insitu.InsituWarning, match="were not all read"):
        config = load(place)
    assert config == Config()


def test_the_environments_key_comes_first_and_is_not_saved(place, monkeypatch):
    config = Config()
    assert config.api_key is None
    config.set_default_api_key("mine")
    assert config.api_key == "mine"
    monkeypatch.setenv("INSITU_API_KEY", "of the environment")
    assert config.api_key == "of the environment"
    assert "environment" not in config.save().read_text()


def test_another_process_finds_what_was_saved_and_its_own_flag(place):
    config = Config()
    config.set_default_api_key("kept")
    config.save()
    code = "from insitu import CONFIG; print(CONFIG.api_key, CONFIG.APP.DEBUG)"
    done = subprocess.run(
        [sys.executable, "-d", "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "kept True\n"


@pytest.mark.parametrize(
    ("flag", "words", "debug"),
    [
        (0, ["script.py"], False),
        (1, ["script.py"], True),  # python -d script.py
        (0, ["script.py", "--debug"], True),
        (0, ["script.py", "-d", "cuda"], False),  # a script's own flag, of another meaning
    ],
)
def test_the_debug_flags_turn_debugging_on(monkeypatch, flag, words, debug):
    monkeypatch.setattr(sys, "flags", SimpleNamespace(debug=flag))
    monkeypatch.setattr(sys, "argv", words)
    assert Config().APP.DEBUG is debug


def frames(error):
    return [frame.filename for frame in traceback.extract_tb(error.__traceback__)]


@pytest.mark.parametrize("debug", [False, True])
def test_debug_shows_the_packages_own_frames(net, x, debug):
    model = NNsight(net)
    with CONFIG.APP.override(DEBUG=debug), pytest.raises(insitu.OutOfOrderError) as caught:
        with model.trace(x):
            model.layer2.output
            model.layer1.output
    own = [name for name in frames(caught.value) if "insitu/engine" in name.replace("\\", "/")]
    assert bool(own) is debug
