"""Attack a server of devices with frames that it must refuse: ``attacker.py HOST:PORT FRAMES``.

They are random bytes, real frames with a byte changed, answers of other devices, replays, and messages of several
frames. The connection stays open until stdin is closed.
"""

import random
import sys

import numpy as np
import zmq

from simsfl.hw_profile.devices.messages import KINDS, Message, pack

CLIENTS = (1, 3, 5)


def frames(count, rng):
    """Yield `count` messages, each a list of frames."""
    arrays = {"query": np.zeros(8, np.float32)}
    real = [
        pack(Message(kind, "run", client, round_index, step, arrays, about))
        for kind in KINDS
        for client in CLIENTS
        for round_index in range(2)
        for step in range(3)
        for about in ({}, {"client": client, "token": "attacker"}, {"compute": -1})
    ]
    for _ in range(count):
        frame = bytearray(rng.choice(real)) if rng.random() < 0.7 else bytearray(rng.randbytes(rng.randint(0, 80)))
        if frame and rng.random() < 0.6:
            frame[rng.randrange(len(frame))] = rng.randrange(256)
        yield [bytes(frame)] * rng.choice((1, 1, 1, 2))


def main(address, count):
    """Send the frames to the server at `address`, then wait until stdin is closed."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.linger = 0
        peer.connect(f"tcp://{address}")
        for parts in frames(count, random.Random(0)):
            peer.send_multipart(parts)
            while peer.poll(0):
                peer.recv()
        print("sent", flush=True)
        sys.stdin.read()  # the connection stays open until the server has read everything


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
