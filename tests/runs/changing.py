"""Helpers that change what lies in a run directory: damaged, as an older version wrote it, or with other content."""

import hashlib
import json

from safetensors import safe_open

from simsfl.cli import run
from simsfl.cli.session import Session
from simsfl.runs.checkpoint import SEAL
from simsfl.runs.directory import RunDirectory
from simsfl.system.files import checksum
from simsfl.system.outputs import _LIST
from simsfl.system.tensor_file import write_tensors
from tests.conftest import TINY, flags

KEY = "simsfl.checkpoint"
"""Key of what the header of a checkpoint says."""
SETTINGS = TINY | {"measure_divergence": True, "dashboard": "off"}
"""Flags of a run of three rounds."""


class Killed(BaseException):
    """Raised where a process would be killed."""


def killed(monkeypatch, records_before, argv):
    """Run the program until it has written this many records; it stops as if it was killed."""
    honest, written = Session._take, []

    def take(session, record):
        honest(session, record)
        written.append(record)
        if len(written) == records_before:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Session, "_take", take)
        try:
            run.main(argv)
        except Killed:
            return
    raise AssertionError("the run ended before it was killed")


def begun(monkeypatch, npz, out):
    """Make a run directory with two checkpoints of a run that was killed in its last round."""
    killed(monkeypatch, 26, flags(dataset=npz, out=out, **SETTINGS))
    return out


def resumed(directory, *argv):
    """Resume a run; return the exit code."""
    return run.main(["--resume", str(directory), "--dashboard", "off", *argv])


def final(directory):
    """Return the bytes of the metrics and of the last checkpoint, and its name."""
    newest = max((directory / "checkpoints").glob("round-*.safetensors"))
    return (directory / "metrics.jsonl").read_bytes(), newest.name, newest.read_bytes()


def rewritten(directory, config=None, standing=None, tensors=None):
    """Change a run with all its checksums, as only its author could; each argument changes one part in place.

    Args:
        directory: the run directory.
        config: changes the content of ``config.json``.
        standing: changes what the header of a checkpoint says.
        tensors: changes the tensors of a checkpoint.
    """
    content = json.loads((directory / "config.json").read_text())
    del content["sha256"]
    if config:
        config(content)
    (directory / "config.json").write_text(json.dumps(content | {"sha256": checksum(content)}))
    run = RunDirectory(directory).read_config().identity if config else None
    for file in (directory / "checkpoints").glob("*.safetensors"):
        with safe_open(file, framework="pt") as held:
            all_of_it = {name: held.get_tensor(name) for name in held.keys() if name != SEAL}  # noqa: SIM118
            about = json.loads(held.metadata()[KEY])
            about["run"] = run or about["run"]
        for change, part in ((standing, about), (tensors, all_of_it)):
            if change:
                change(part)
        write_tensors(file, all_of_it, {KEY: json.dumps(about)}, SEAL)


def as_before(directory):
    """Turn a run directory into what it was before checkpoints described themselves, and files were listed."""
    content = json.loads((directory / "config.json").read_text())
    for name in ("sha256", "start"):
        del content[name]
    del content["dataset"]["listing"]
    (directory / "config.json").write_text(json.dumps(content))
    manifest = json.loads((directory / "checkpoints" / "manifest.json").read_text())
    del manifest["sha256"]
    for entry in manifest["checkpoints"]:
        file = directory / "checkpoints" / entry["file"]
        with safe_open(file, framework="pt") as held:
            tensors = {name: held.get_tensor(name) for name in held.keys() if name != SEAL}  # noqa: SIM118
        entry["sha256"] = write_tensors(file, tensors)
    (directory / "checkpoints" / "manifest.json").write_text(json.dumps(manifest))
    if (directory / "summary.json").exists():
        summary = json.loads((directory / "summary.json").read_text())
        for name in ("sha256", "metrics_sha256"):
            del summary[name]
        (directory / "summary.json").write_text(json.dumps(summary))
    (directory / _LIST).unlink()


def with_metrics(directory, change):
    """Change the records of ``metrics.jsonl``, and make the checkpoints fit them."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    change(lines)
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    (directory / "metrics.jsonl").write_bytes(content)

    def standing(about):
        about["metrics"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    rewritten(directory, standing=standing)
