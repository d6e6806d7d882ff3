from pathlib import Path

import pytest

from robench.data import open_source
from robench.data.locations import Location, configuration_file, locate
from robench.errors import DataError
from tests.photographs import wnid_folders

KNOWN = ["imagenet", "imagenet-c"]


@pytest.fixture
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the configuration is looked for."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "robench").mkdir()
    return tmp_path / "robench" / "config.toml"


def test_nothing_said_is_nothing_found() -> None:
    assert locate("imagenet", known=KNOWN) is None


def test_the_variable_comes_before_the_configuration(configuration: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration.write_text('[data]\nimagenet = "/a"\nimagenet-c = "~/c"\n')
    assert locate("imagenet", known=KNOWN) == Location(Path("/a"), str(configuration))
    monkeypatch.setenv("ROBENCH_IMAGENET", "~/b")
    assert locate("imagenet", known=KNOWN) == Location(Path.home() / "b", "ROBENCH_IMAGENET")
    assert locate("imagenet-c", known=KNOWN) == Location(Path.home() / "c", str(configuration))
    monkeypatch.setenv("ROBENCH_IMAGENET", "")
    assert locate("imagenet", known=KNOWN) == Location(Path("/a"), str(configuration))


def test_data_comes_before_both(configuration: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    configuration.write_text('[data]\nimagenet = "/nowhere"\n')
    with pytest.raises(DataError, match=rf"^/nowhere: `data` is missing; .* \({configuration} names /nowhere\.\)$"):
        open_source("imagenet", None, resize=256, crop=224)
    monkeypatch.setenv("ROBENCH_IMAGENET", "/elsewhere")
    with pytest.raises(DataError, match=r"^/elsewhere: .* \(ROBENCH_IMAGENET names /elsewhere\.\)$"):
        open_source("imagenet", None, resize=256, crop=224)
    assert len(open_source("imagenet", wnid_folders(tmp_path / "val"), resize=256, crop=224).ids) == 20


def test_a_user_without_a_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    with pytest.raises(
        DataError, match=r"^environment: `HOME` is not set; expected the user's own folder\. Set HOME, or"
    ):
        locate("imagenet", known=KNOWN)


def test_the_home_of_an_unknown_user_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBENCH_IMAGENET", "~no-such-user/imagenet")
    assert locate("imagenet", known=KNOWN) == Location(Path("~no-such-user/imagenet"), "ROBENCH_IMAGENET")


@pytest.mark.parametrize("home", ["", "relative/folder"])
def test_a_configuration_home_that_is_no_absolute_path_is_as_none(monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", home)
    assert configuration_file() == Path.home() / ".config" / "robench" / "config.toml"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[data", r"`file` is unreadable \(.*\); expected a configuration in TOML\."),
        ("\xff", r"`file` is unreadable \(.*\); expected a configuration in TOML\."),
        ("[dta]", r"`dta` is unknown; expected a known key\. Did you mean `data`\?"),
        ('[data]\nimagnet = "/a"', r"`data\.imagnet` is unknown; expected a known key\. Did you mean `imagenet`"),
        ('data = "/a"', r"`data` is '/a'; expected a table of folders\. Write `\[data\]` above them\."),
        ("[data]\nimagenet = 3", r'`data\.imagenet` is 3; expected an absolute path, such as "/data/imagenet"\.'),
        ('[data]\nimagenet = "a"', r"`data\.imagenet` is 'a'; expected an absolute path"),
    ],
)
def test_a_malformed_configuration_is_refused(configuration: Path, content: str, message: str) -> None:
    configuration.write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=rf"^{configuration}: {message}"):
        locate("imagenet", known=KNOWN)
