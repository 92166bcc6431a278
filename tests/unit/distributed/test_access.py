"""The token of a local cluster: its origin and its readers. integration/test_access.py tests real clusters."""

import os
import socket

import pytest
from ray._private import ray_constants
from ray._private.parameter import RayParams
from ray._raylet import AuthenticationTokenLoader, Config  # pyright: ignore[reportAttributeAccessIssue]

from rayexp.distributed import access
from rayexp.errors import RefusedError


@pytest.fixture(autouse=True)
def shell(monkeypatch, tmp_path):
    """Set up the shell of a new user of Ray, with a home and a folder for temporary files."""
    with monkeypatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            patch.delenv(name)
        for name in ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR"):
            patch.setenv(name, "")  # so that changes by the code are undone
            os.environ.pop(name)
        patch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
        patch.setenv("HOME", str(tmp_path / "home"))
        patch.setenv("TMPDIR", str(tmp_path / "tmp"))
        _forget()
        yield patch
    _forget()


def _forget():
    """Make Ray read its mode and token again."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def modes(path) -> tuple[int, int]:
    """Return the permissions of a file and its folder."""
    return path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777


def test_a_new_token_is_in_a_file_of_this_account_and_the_environment_has_its_path_only(tmp_path):
    place = access.restrict()
    (file,) = (tmp_path / f"tmp/ray-{os.getuid()}").iterdir()
    assert place == os.environ["RAY_AUTH_TOKEN_PATH"] == str(file)
    assert modes(file) == (0o600, 0o700)
    assert AuthenticationTokenLoader.instance().get_raw_token() == file.read_text()
    assert file.read_text() not in os.environ.values()
    access.restrict()
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(file), "another cluster of this process would refuse it"


def test_a_token_of_the_user_is_asked_for(shell, tmp_path):
    (tmp_path / "mine").write_text("of a file")
    shell.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "mine"))
    assert access.restrict() == str(tmp_path / "mine")
    shell.setenv("RAY_AUTH_TOKEN", "of the shell")
    assert access.restrict() == "RAY_AUTH_TOKEN"
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_rays_own_token_is_asked_for_by_those_who_ask_for_tokens(shell, tmp_path):
    (tmp_path / "home/.ray").mkdir(parents=True)
    (tmp_path / "home/.ray/auth_token").write_text("of Ray")
    shell.setenv("RAY_AUTH_MODE", "token")
    assert access.restrict() == "~/.ray/auth_token"
    assert AuthenticationTokenLoader.instance().get_raw_token() == "of Ray"


def test_who_asks_for_tokens_on_a_machine_that_never_had_one_gets_a_new_one(shell, tmp_path):
    shell.setenv("RAY_AUTH_MODE", "token")
    place = access.restrict()
    (file,) = (tmp_path / f"tmp/ray-{os.getuid()}").iterdir()
    assert place == str(file)
    assert AuthenticationTokenLoader.instance().get_raw_token() == file.read_text()


def test_without_tokens_it_is_said_what_that_opens(shell, caplog, tmp_path):
    shell.setenv("RAY_AUTH_MODE", "disabled")
    assert access.restrict() == ""
    assert "every account of this machine can run code as yours" in caplog.text
    assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0", "it would listen to other machines"


def test_a_private_folder_for_rays_files_is_used_and_no_other(shell, tmp_path):
    folder = tmp_path / "private"
    folder.mkdir(mode=0o700)
    shell.setenv("RAY_TMPDIR", str(folder))
    access.restrict()
    assert os.environ["RAY_TMPDIR"] == str(folder)
    folder.chmod(0o755)
    access.restrict()
    assert os.environ["RAY_TMPDIR"] == str(folder / f"ray-{os.getuid()}")


def test_a_folder_that_another_account_has_put_there_is_refused(shell, tmp_path):
    (tmp_path / "tmp/ray-4711").mkdir(parents=True)
    shell.setattr(os, "getuid", lambda: 4711)
    with pytest.raises(RefusedError, match="ray-4711 belongs to somebody else; set RAY_TMPDIR to a folder"):
        access.restrict()


@pytest.mark.parametrize("there", [False, True])
def test_a_head_asks_for_rays_own_token_which_nobody_else_can_read(shell, tmp_path, capsys, there):
    file = tmp_path / "home/.ray/auth_token"
    if there:
        file.parent.mkdir(parents=True, mode=0o700)
        file.write_text("of Ray, readable by all")
        file.chmod(0o644)
    with socket.create_server(("127.0.0.1", 0)) as taken:  # the port of another Ray's dashboard
        usual = taken.getsockname()[1]
        parameters = RayParams(ray_client_server_port=10001, dashboard_port=usual)
        access.prepare_head(parameters, head=True)
    port = parameters.dashboard_port
    assert usual < port < usual + 100
    assert modes(file) == (0o600, 0o700)
    assert file.read_text() == "of Ray, readable by all" or not there
    assert parameters.ray_client_server_port is None
    assert capsys.readouterr().out == (
        "to submit jobs from another shell of this account, run there: "
        f"export RAY_AUTH_MODE=token RAY_API_SERVER_ADDRESS=http://127.0.0.1:{port}\n"
    )
