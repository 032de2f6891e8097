"""Data sets in the form of the Hugging Face hub, as files in a directory: nothing is fetched."""

import io
import json
import sys
import warnings

import pytest
from PIL import Image

from simsfl import Simulation
from simsfl.cli import run
from simsfl.data.load import load_dataset
from tests.conftest import TINY, flags

NAMES = ("red", "green", "blue")
IMAGE = {"_type": "Image"}
LABEL = {"_type": "ClassLabel", "names": list(NAMES)}
TEXT, NUMBER = ({"_type": "Value", "dtype": dtype} for dtype in ("string", "int64"))


SLOW = pytest.mark.slow  # the package alone takes seconds to import


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Return `written`; keep what the package writes out of the user's cache, and the package off the network."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    return written


def written(path, kinds, **columns):
    """Write a table into a Parquet file, with the types of its columns as the package has them."""
    import pyarrow as pa  # noqa: PLC0415  (comes with the package)
    import pyarrow.parquet  # noqa: PLC0415

    def png(array):
        stream = io.BytesIO()
        Image.fromarray(array).save(stream, "PNG")
        return {"bytes": stream.getvalue(), "path": None}

    def column(name, own):
        if kinds[name] is not IMAGE:
            return pa.array(list(own))
        return pa.array(list(map(png, own)), pa.struct({"bytes": pa.binary(), "path": pa.string()}))

    path.parent.mkdir(parents=True, exist_ok=True)
    values = {name: column(name, own) for name, own in columns.items()}
    about = {"huggingface": json.dumps({"info": {"features": kinds}})}
    pyarrow.parquet.write_table(pa.table(values).replace_schema_metadata(about), path)


@pytest.fixture
def stored(write, arrays, tmp_path):
    """Return a directory with the images of `arrays`, each training image with its writer."""
    kinds = {"picture": IMAGE, "colour": LABEL, "writer_id": TEXT, "shade": NUMBER}
    for split, x, y in (("train", arrays.train_x, arrays.train_y), ("validation", arrays.test_x, arrays.test_y)):
        writers = [f"writer {row % 8}" for row in range(len(x))]
        write(tmp_path / "d" / f"{split}.parquet", kinds, picture=x, colour=y, writer_id=writers, shade=y % 2)
    return tmp_path / "d"


@SLOW
def test_a_run_on_it_is_that_on_the_arrays(stored, arrays, npz, tmp_path, monkeypatch):
    data, expected = load_dataset(f"hf:{stored}"), load_dataset(str(npz))
    assert data.name == f"hf:{stored}"
    assert data.classes == NAMES
    assert (data.train.pixels == expected.train.pixels).all()
    assert data.train_client.tolist() == [row % 8 for row in range(80)]
    monkeypatch.chdir(stored.parent)
    argv = [*flags(**TINY | {"dataset": "hf:d", "partition": "natural", "rounds": 1}), "--dashboard", "off"]
    assert run.main([*argv, "--out", str(tmp_path / "run")]) == 0
    monkeypatch.chdir("/")
    loaded = Simulation.load(tmp_path / "run")  # from elsewhere
    assert loaded.config.dataset == f"hf:{stored}"
    same = Simulation(loaded.config, expected, partition=loaded.parts.partition)
    list(same.rounds())
    assert (same.state.server.online == loaded.state.server.online).all()


@SLOW
def test_splits_and_columns_that_are_chosen(stored, arrays):
    data = load_dataset(f"hf:{stored}?label=shade&train=train[:60]&test=train[60:]&unlabelled=validation")
    assert data.train_labels.tolist() == (arrays.train_y[:60] % 2).tolist()
    assert (data.test.pixels.permute(0, 2, 3, 1).numpy() == arrays.train_x[60:]).all()
    assert data.held == range(60, 90)
    assert len(data.train_client) == 30
    assert (data.train.pixels[60:].permute(0, 2, 3, 1).numpy() == arrays.test_x).all()
    assert load_dataset(f"hf:{stored}", image_size=16).image_size == 16


@SLOW
def test_what_is_not_to_be_had(write, stored, arrays, tmp_path):
    images = {"picture": arrays.train_x[:2], "colour": [0, 1]}
    write(tmp_path / "two" / "train.parquet", {"picture": IMAGE, "colour": LABEL, "b": LABEL}, **images, b=[0, 1])
    write(tmp_path / "none" / "train.parquet", {"picture": TEXT, "colour": LABEL}, picture=["x"], colour=[0])
    write(tmp_path / "odd" / "train.parquet", {"picture": IMAGE, "colour": LABEL}, **images | {"colour": [0, -1]})
    (tmp_path / "empty").mkdir()
    for name, message in (
        (f"{stored}?label=shape", r"'label=shape' is not known \(did you mean label=shade\?\)"),
        (
            f"{stored}?label=writer_id",
            "column writer_id of train of hf:.* holds no whole numbers; allowed: class labels",
        ),
        (f"{stored}?test=tests", 'hf:.* cannot be loaded .Unknown split "tests". Should be one of'),
        (f"{stored}:part", "hf:.*:part cannot be loaded .BuilderConfig 'part' not found"),
        (tmp_path / "empty", "hf:.*empty cannot be loaded .* a directory of files that the package datasets reads"),
        ("nobody/nothing", "hf:nobody/nothing cannot be loaded .* a name on the hub"),
        (tmp_path / "two", "hf:.*two has no split for test; it has train; allowed: hf:.*two.test=SPLIT"),
        (
            f"{tmp_path / 'two'}?test=train",
            "hf:.* has several columns for label; allowed: .*test=train&label=COLUMN, with one of colour, b",
        ),
        (
            f"{tmp_path / 'none'}?test=train",
            "hf:.* has no column for image; allowed: .*&image=COLUMN, with one of picture, col",
        ),
        (
            f"{stored}?client=picture",
            "column picture of hf:.* says not whose each image is; allowed: texts, or integers",
        ),
        (f"{tmp_path / 'odd'}?test=train", "train_y of hf:.* has the value -1; allowed: 0 to 2"),
    ):
        with pytest.raises(ValueError, match=f"^dataset: {message}") as error:
            load_dataset(f"hf:{name}")
        assert "\n" not in str(error.value)


def test_names_that_say_nothing_and_a_package_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    for name, message in (
        ("hf:", "hf: has no name; allowed: hf:NAME, or hf:DIRECTORY"),
        ("hf:x?labl=y", r"'labl=y' is not known \(did you mean label=\?\); allowed: train="),
        ("hf:x", "hf:x needs the package datasets; allowed: after pip install 'simsfl.datasets.'"),
    ):
        with pytest.raises(ValueError, match=f"^dataset: {message}"):
            load_dataset(name)
