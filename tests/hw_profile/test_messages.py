"""Messages arrive as they were sent, and all other bytes are refused; only their owner can read a file of keys."""

import random
import stat

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from simsfl.hw_profile.devices import keys
from simsfl.hw_profile.devices.messages import KINDS, LARGEST, Message, pack, unpack

MESSAGE = Message(
    "smashed",
    "run-1",
    client=17,
    round=3,
    step=5,
    arrays={"query": np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4), "empty": np.zeros(0, np.float32)},
    about={"threads": 2, "text": "ü"},
)


def test_a_message_comes_back():
    found = unpack(pack(MESSAGE))
    assert (found.kind, found.run, found.client, found.round, found.step) == ("smashed", "run-1", 17, 3, 5)
    assert found.about == MESSAGE.about
    assert found.arrays.keys() == MESSAGE.arrays.keys()
    for name, array in MESSAGE.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)


def test_a_frame_is_little_more_than_its_arrays():
    arrays = {"query": np.zeros((1, 64, 32, 32), np.float32)}
    assert len(pack(Message("gradient", "run", arrays=arrays))) - 4 * 64 * 32 * 32 < 300


WORDS = {"version": "1", "kind": "hello", "run": "", "client": "0", "round": "0", "step": "0", "about": "{}"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"version": "2"}, "version: '2' of the protocol is not known; allowed: 1"),
        ({"kind": "shutdown"}, "kind: 'shutdown' is not known"),
        ({"client": "-1"}, "count: '-1' is no number"),
        ({"client": "9" * 30}, "count: "),
        ({"round": "1.5"}, "count: "),
        ({"step": "\u0663"}, "count: "),
        ({"about": "[]"}, "about: is no JSON object"),
        ({"about": "{"}, "frame: "),
        ({"about": "[" * 100_000}, "frame: |about: "),
    ],
)
def test_words_that_are_wrong(words, message):
    with pytest.raises(ValueError, match=message):
        unpack(save({}, {**WORDS, **words}))


def test_malformed_frames_are_refused():
    frame = pack(MESSAGE)
    for wrong in (
        b"",
        b"x",
        frame[:20],
        frame[:-1],
        frame + b"x",
        b"\xff" * 100,
        (1 << 62).to_bytes(8, "little") + frame,
    ):
        with pytest.raises(ValueError, match=": "):
            unpack(wrong)
    with pytest.raises(ValueError, match=r"frame: has .* bytes"):
        unpack(bytes(LARGEST + 1))


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(frame):
    with pytest.raises(ValueError, match=": "):
        unpack(frame)


def test_mutations_give_messages_or_value_errors():
    """Each of 20,000 mutations is refused, or gives a message whose fields have the right types."""
    rng, frame, taken = random.Random(0), pack(MESSAGE), 0
    for _ in range(20_000):
        mutated = bytearray(frame)
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(mutated))
            change = rng.randrange(4)
            if change == 0:
                mutated[place] = rng.randrange(256)
            elif change == 1:
                del mutated[place : place + rng.randint(1, 9)]
            elif change == 2:
                mutated[place:place] = rng.randbytes(rng.randint(1, 9))
            else:
                mutated = mutated[:place] + mutated[rng.randrange(len(mutated)) :]
            if not mutated:
                mutated = bytearray(b"\0")
        try:
            found = unpack(bytes(mutated))
        except ValueError:
            continue
        taken += 1
        assert found.kind in KINDS
        assert all(type(count) is int and count >= 0 for count in (found.client, found.round, found.step))
        assert isinstance(found.about, dict)
        assert all(isinstance(array, np.ndarray) for array in found.arrays.values())
    assert 0 < taken < 20_000


def test_a_header_that_json_chokes_on_is_refused():
    header = b'{"__metadata__": ' + b"9" * 5000 + b"}"
    with pytest.raises(ValueError, match=r"^frame: has no metadata in its header$"):
        unpack(len(header).to_bytes(8, "little") + header)


def test_keys_are_their_owners_alone(tmp_path, capsys):
    out = tmp_path / "keys"
    assert keys.main(["--devices", "2", "--out", str(out)]) == 0
    server, *devices = (keys.Keys.read(out / f"{name}.key", name[:6]) for name in ("server", "device-1", "device-2"))
    assert server.peers == tuple(device.public for device in devices)
    assert all(device.peers == (server.public,) for device in devices)
    assert len({one.secret for one in (server, *devices)}) == 3
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in out.iterdir())
    capsys.readouterr()
    assert keys.main(["--out", str(out)]) == 2
    assert "holds keys already" in capsys.readouterr().err
