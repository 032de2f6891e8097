"""The programs for devices answer bad input with one line."""

import json
import socket

import numpy as np
import pytest
import zmq

from simsfl.hw_profile.devices import client, keys, server
from simsfl.hw_profile.devices.messages import digest
from tests.conftest import TINY, flags


def error_of(code, capsys):
    """Return the error of a program, which must be one line on stderr, with exit code 2."""
    text = capsys.readouterr().err
    assert code == 2
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    return text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--server", "127.0.0.1:1", "--insecure", "--patience", "1"],
            "server: 127.0.0.1:1 does not answer; allowed: ",
        ),
        (["--server", "no such host:1", "--insecure"], "insecure: no such host:1 is another machine"),
        (["--server", "127.0.0.1", "--insecure"], "server: '127.0.0.1' is no address; allowed: HOST:PORT, by name"),
        (["--server", ":5555", "--insecure"], "server: ':5555' is no address"),
        (["--server", "127.0.0.1:99999", "--insecure"], "server: '127.0.0.1:99999' is no address"),
        (["--server", "127.0.0.1:1"], "key: is missing; allowed: --key FILE, or --insecure"),
        (
            ["--server", "example.org:1", "--insecure"],
            "insecure: example.org:1 is another machine; allowed: --key FILE",
        ),
        (["--server", "127.0.0.1:1", "--key", "none.key"], "key: none.key cannot be read (No such file"),
        (
            ["--server", "127.0.0.1:1", "--insecure", "--images", "none.npy"],
            "images: none.npy cannot be read (No such",
        ),
        (["--server", "127.0.0.1:1", "--insecure", "--meter", "ohm"], "meter: 'ohm' is not known"),
        (["--server", "127.0.0.1:1", "--insecure", "--runtime", "onnx"], "runtime: 'onnx' is not known"),
        (
            ["--server", "127.0.0.1:1", "--insecure", "--runtime", "lean", "--threads", "1"],
            "threads: cannot be set",
        ),
        (["--server", "127.0.0.1:1", "--insecure", "--threads", "4096"], "threads: 4096 are more than the cores that"),
        (["--server", "127.0.0.1:1", "--insecure", "--patience", "nan"], "patience: nan is no time to wait for"),
        (
            ["--server", "127.0.0.1:1", "--insecure", "--own-images"],
            "own_images: has no effect without --images; allowed: ",
        ),
        (["--servr", "127.0.0.1:1"], "server"),
        ([], "server: is missing; allowed: "),
    ],
)
def test_of_clients(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in error_of(client.main(argv), capsys)
    assert not list(tmp_path.glob("runs/*"))


def test_of_keys(capsys, tmp_path):
    assert keys.main(["--out", str(tmp_path / "keys")]) == 0
    capsys.readouterr()
    assert "holds keys already" in error_of(keys.main(["--out", str(tmp_path / "keys")]), capsys)
    own = ["--server", "127.0.0.1:1", "--key"]
    message = "is a server's; allowed: a device's, made at the same time"
    assert message in error_of(client.main([*own, str(tmp_path / "keys" / "server.key")]), capsys)
    good = (tmp_path / "keys" / "device-1.key").read_text()
    for text in (
        "",
        "[]",
        "{}",
        good[:-9],
        json.dumps(
            json.loads(good) | {"secret": zmq.curve_keypair()[1].decode()}
        ),  # the public key belongs to another secret key
        good.replace("secret", "other"),
        '"' * 40,
        good.replace('"device"', "3"),
        "[" * 200_000,
    ):
        (tmp_path / "bad.key").write_text(text)
        assert "holds no keys" in error_of(client.main([*own, str(tmp_path / "bad.key")]), capsys)


def test_of_images(tmp_path):
    about = {"network": {"image_size": 8}, "held": {"count": 3, "sha256": "0"}, "config": {}}
    for array in (np.zeros((2, 3, 8, 8), np.uint8), np.zeros((3, 3, 8, 8), np.float32)):
        with pytest.raises(ValueError, match=r"^images: .* of shape \(., 3, 8, 8\); allowed: uint8 of \(3, 3, 8, 8\)$"):
            client.own_images(about, 0, array, others=True)
    (tmp_path / "text.npy").write_text("text")
    with pytest.raises(ValueError, match=r"^images: .* holds no array"):
        client._from_file(tmp_path / "text.npy")
    about["config"] = {"dataset": str(tmp_path / "none.npz")}
    with pytest.raises(ValueError, match=r"^images: the server's data set is not available here .* --images FILE"):
        client.own_images(about, 0, None, others=False)
    whole = np.ones((3, 3, 8, 8), np.uint8)
    with pytest.raises(ValueError, match=r"^images: they differ from the simulation's for client 7; allowed: "):
        client.own_images(about, 7, whole, others=False)
    assert client.own_images(about, 7, whole, others=True) is whole
    about["held"]["sha256"] = digest(whole)
    assert client.own_images(about, 7, whole, others=False) is whole


def test_of_servers(npz, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = flags(dataset=npz, **TINY, dashboard="off")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for argv, message in (
            ([], "key: keys/server.key cannot be read (No such file or directory); allowed: a file that simsfl keys"),
            (["--key", "server.key", "--insecure"], "insecure: cannot be given with --key; allowed: one"),
            (["--insecure", "--listen", "0.0.0.0:5555"], "insecure: 0.0.0.0:5555 is open to others"),
            (
                ["--insecure", "--listen", f"127.0.0.1:{port}"],
                "is not available (Address already in use); allowed: a free",
            ),
            (["--insecure", "--listen", "127.0.0.1:x"], "listen: '127.0.0.1:x' is no address; allowed: HOST:PORT"),
            (
                ["--insecure", "--listen", "127.0.0.1:99999"],
                "listen: '127.0.0.1:99999' is no address",
            ),
            (["--insecure", "--devices", "9"], "devices: 9 is more than the clients that take part; allowed: 1 to"),
            (
                ["--insecure", "--device-clients", "8"],
                "device_clients: 8 has ids that no client has",
            ),
            (["--insecure", "--device-clients", "1,2", "--devices", "3"], "devices: 3 is not the number of device_cl"),
            (["--insecure", "--wait-for", "2"], "wait_for: 2 is out of range; allowed: 0 to 1"),
            (["--insecure", "--device-timeout", "0"], "device_timeout: 0 is no time to wait for"),
            (
                ["--insecure", "--loss-threshold", "0.1"],
                "loss_threshold: is not for runs with devices; allowed: without",
            ),
            (["--insecure", "--image-size", "16", "--precision", "bf16"], "precision: bf16 is not for runs with"),
            (["--insecure", "--client-state-dtype", "bf16"], "client_state_dtype: bf16 is not what devices keep"),
        ):
            code = server.main([*settings, "--out", "run", *argv])
            assert message in error_of(code, capsys), argv
            assert not (tmp_path / "run").exists(), argv
