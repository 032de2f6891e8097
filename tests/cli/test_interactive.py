"""The page of runs for a browser, as a file and as it is served: what is on it, and what nobody gets from it."""

import json
import re
import shutil
import subprocess
from base64 import b64decode
from contextlib import contextmanager
from http.client import HTTPConnection
from itertools import count
from threading import Thread

import numpy as np
import pytest

from simsfl.cli import run, serve, watch
from simsfl.cli.report import program as report
from simsfl.cli.report.curves import SENT, STEPS
from simsfl.cli.report.interactive import pictures_in
from simsfl.cli.report.runs import read_run
from simsfl.runs.records import AttackRecord, Scores, to_json
from tests.conftest import TINY, flags

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, such as of the package chromium of Debian")


@pytest.fixture(scope="module")
def runs(npz, tmp_path_factory):
    """Return the directories of two runs that differ in their seed, of which the first has a report."""
    out = tmp_path_factory.mktemp("runs")
    paths = [out / name for name in ("first", "<b>&second")]
    for seed, path in enumerate(paths):
        settings = TINY | {"rounds": 2, "seed": seed, "linear_probe": True, "probe_epochs": 2}
        assert run.main(flags(dataset=npz, out=path, **settings, dashboard="off")) == 0
    assert report.main([str(paths[0])]) == 0
    return paths


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    """Return the path of the page about both runs."""
    out = tmp_path_factory.mktemp("report")
    assert report.main([*map(str, runs), "--out", str(out)]) == 0
    return out / "report.html"


def drawn(html):
    """Return settings and charts of a page."""
    return json.loads(re.search(r'<script type="application/json" id="content">(.*?)</script>', html, re.DOTALL)[1])


def values(encoded):
    """Return the numbers that plotly has encoded."""
    return np.frombuffer(b64decode(encoded["bdata"]), np.dtype(encoded["dtype"])) if "bdata" in encoded else encoded


def records(path, event):
    """Return the records of a kind of a run."""
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [one for line in lines if (one := json.loads(line))["event"] == event]


def test_the_curves_of_a_page_are_the_means_of_the_records(runs, page):
    found = drawn(page.read_text())
    assert [setting["label"] for setting in found["settings"]] == ["2 seeds"]
    charts = {chart["id"]: chart["figures"] for chart in found["charts"]}
    assert list(charts) == ["loss", "contrast", "accuracy", "spread"]
    knn = np.array([[one["knn_top1"] for one in records(path, "evaluation")] for path in runs])
    probes = [records(path, "probe")[0]["top1"] for path in runs]
    mean, probe = (trace for trace in charts["accuracy"][STEPS]["data"] if trace.get("hoverinfo") != "skip")
    assert values(mean["y"]) == pytest.approx(knn.mean(axis=0))
    assert values(mean["x"]).tolist() == [0, 5, 10]
    assert values(probe["y"]) == pytest.approx([np.mean(probes)])
    band = charts["accuracy"][STEPS]["data"][0]
    around = knn.mean(axis=0) + knn.std(axis=0, ddof=1)
    assert values(band["y"])[:3] == pytest.approx(around)
    last = [records(path, "round")[-1] for path in runs]
    sent = [(one["bytes_up_per_client"] + one["bytes_down_per_client"]) / 1e6 for one in last]
    at = values(charts["accuracy"][SENT]["data"][1]["x"])
    assert (at[0], at[-1]) == (0, pytest.approx(np.mean(sent)))
    top1 = np.mean([[one["contrast_top1"] for one in records(path, "step")] for path in runs], axis=0)
    assert values(charts["contrast"][STEPS]["data"][-1]["y"]) == pytest.approx(top1)


def test_a_page_needs_nothing_else_and_shows_names_as_they_are(runs, page):
    html = page.read_text()
    assert "<b>&second" not in re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    assert '<th scope="col">&lt;b&gt;&amp;second</th>' in html
    assert "connect-src 'none'" in html
    assert not re.findall(r"(?:src|href)=\"(?!data:)", html)
    assert html.count("data:image/png;base64,iVBOR") == 6  # partition, views and features of both
    rows = re.findall(r'<th scope="row">(\w+)</th><td>(\w+)</td><td>(\w+)</td>', html.split("configs of the runs")[-1])
    assert rows == [("seed", "0", "1")]


def test_pictures_that_are_not_of_the_run_stay_off_the_page(runs, tmp_path):
    copy = shutil.copytree(runs[0], tmp_path / "run")
    names = [title for title, _ in pictures_in(read_run(copy, "run"), 1)]
    assert names == ["partition of run", "views of run", "features of run"]
    (copy / "figures" / "views.png").rename(tmp_path / "views.png")
    (copy / "figures" / "views.png").symlink_to(tmp_path / "views.png")
    (copy / "figures" / "partition.png").write_bytes(b"\x89PNG of somebody else")
    assert [title for title, _ in pictures_in(read_run(copy, "run"), 1)] == ["features of run"]
    (copy / "figures").rename(tmp_path / "figures")
    (copy / "figures").symlink_to(tmp_path / "figures")
    assert pictures_in(read_run(copy, "run"), 1) == []


def begun(path, copy):
    """Copy a run as it was after its first round; return the path of the copy."""
    shutil.copytree(path, copy)
    (copy / "summary.json").unlink()
    lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if json.loads(line)["event"] == "round")
    (copy / "metrics.jsonl").write_text("".join(lines[: first + 1]))
    return copy


@contextmanager
def served(*paths):
    """Serve runs in a thread; yield the port."""
    with serve._Server("127.0.0.1", 0, serve.ServedRuns(paths)) as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@contextmanager
def asked(port, path, method="GET", **headers):
    """Ask a server; yield its answer."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, headers=headers)
    with connection.getresponse() as answer:
        yield answer


def test_a_server_answers_for_its_runs_alone(runs):
    other = f"/{runs[1].name}/config.json"
    paths = ["/config.json", "/../first/config.json", "/%2e%2e/etc/passwd", "//etc/passwd", other, "/?x", "/events/"]
    with served(runs[0]) as port:
        with asked(port, "/") as answer:
            html = answer.read().decode()
            assert answer.status == 200
            assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        with asked(port, "/", "HEAD") as answer:
            assert (answer.status, int(answer.headers["Content-Length"]), answer.read()) == (
                200,
                len(html.encode()),
                b"",
            )
        for path in paths:
            with asked(port, path) as answer:
                assert answer.status == 404, path
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            with asked(port, "/", method) as answer:
                assert answer.status == 501, method
        for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[", "localhost.evil"):
            for path in ("/", "/events"):
                with asked(port, path, Host=host) as answer:
                    assert answer.status == 421, host
        for host in (f"localhost:{port}", "127.0.0.1", f"[::1]:{port}"):
            with asked(port, "/", "HEAD", Host=host) as answer:
                assert answer.status == 200, host
    assert "connect-src 'self'" in html
    assert html.count("data:image/png;base64,iVBOR") == 3
    assert "<td>finished</td><td>2 of 2</td>" in html


def test_a_served_page_follows_a_run_that_goes_on(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(serve, "_REFRESH_SECONDS", 0.01)
    copy = begun(runs[0], tmp_path / "run")
    whole = (runs[0] / "metrics.jsonl").read_bytes()
    rest = whole.removeprefix((copy / "metrics.jsonl").read_bytes())
    knn = [one["knn_top1"] for one in records(runs[0], "evaluation")]

    def event(answer):
        """Return the next event, which comments may come before."""
        while not (line := answer.readline()).startswith(b"data: "):
            assert line in (b":\n", b"\n")
        return json.loads(line.removeprefix(b"data: "))

    def shown(news):
        traces = next(chart for chart in news["charts"] if chart["id"] == "accuracy")["figures"][STEPS]["data"]
        return values(traces[0]["y"]).tolist()

    with served(copy) as port, asked(port, "/events") as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        news = event(answer)
        assert shown(news) == pytest.approx(knn[:2])
        assert "1 of 2" in news["html"]["overview"]
        with (copy / "metrics.jsonl").open("ab") as file:
            file.write(rest)
        news = event(answer)
        while len(shown(news)) < 3 or "2 of 2" not in news["html"]["overview"]:
            news = event(answer)
        assert shown(news) == pytest.approx(knn)
        (copy / "metrics.jsonl").write_bytes(
            whole[: whole.index(b"\n") + 1] + b"{}\n"
        )  # damaged: it says so, and goes on
        while "cannot be read: metrics" not in news["html"]["overview"]:
            news = event(answer)
        (copy / "metrics.jsonl").write_bytes(whole)
        while "cannot be read" in news["html"]["overview"]:
            news = event(answer)
        assert shown(news) == pytest.approx(knn)


def test_serving_ends_with_an_interrupt(runs, monkeypatch, capsys):
    def interrupted(server):
        raise KeyboardInterrupt

    monkeypatch.setattr(serve._Server, "serve_forever", interrupted)
    assert watch.main([*map(str, runs), "--serve", "--port", "0"]) == 130
    assert re.search(r"serving at http://127\.0\.0\.1:\d+/; Ctrl-C ends it", capsys.readouterr().out)


WRONG = {
    "no port": (["--serve", "--port", "70000"], "port: '70000' is no port; allowed: 0 to 65535"),
    "no host": (["--serve", "--host", "x" * 70], "is no address of a machine; allowed: such as 127.0.0.1"),
    "an empty host": (["--serve", "--host", ""], "host: no address is given; allowed: such as 127.0.0.1, or 0.0.0.0"),
    "a host alone": (["--host", "::1"], "host: has no effect without --serve; allowed with --serve"),
    "a picture": (["--serve", "--svg", "view.svg"], "svg: has no effect with --serve; allowed without --serve"),
    "two runs": (["SECOND"], "runs: 2 are given; allowed: one, or several with --serve"),
    "no run": (["NONE", "--serve"], "is not the directory of a run"),
}


@pytest.mark.parametrize(("words", "said"), WRONG.values(), ids=WRONG)
def test_wrong_flags_are_one_line(words, said, runs, tmp_path, capsys):
    places = {"SECOND": str(runs[1]), "NONE": str(tmp_path)}
    assert watch.main([str(runs[0]), *(places.get(word, word) for word in words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_port_in_use_is_one_line(runs, capsys):
    with served(runs[0]) as port:
        assert watch.main([str(runs[0]), "--serve", "--port", str(port)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: port: 127.0.0.1:{port} cannot be listened at (Address already in use); allowed: ")


PROBE = """
<script>
const seen = {}, visible = (id) => document.querySelectorAll(`#chart-${id} .scatterlayer .trace`).length;
const wait = setInterval(() => {
  if (!window.Plotly || !document.querySelector("#chart-accuracy .scatterlayer .trace")) return;
  clearInterval(wait);
  const plot = document.querySelector("#chart-accuracy .plot"), x = () => plot.layout.xaxis;
  const whole = x().range[1] - x().range[0];
  seen.before = visible("accuracy");
  document.querySelector("#chart-accuracy button").click();
  seen.zoom = (x().range[1] - x().range[0]) / whole;
  plot.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
  seen.reading = document.querySelector("#chart-accuracy .reading").textContent;
  document.querySelectorAll("#axis input")[1].click();
  seen.axis = x().title.text;
  document.querySelectorAll("#settings input")[0].click();
  seen.after = visible("accuracy");
  document.body.style.width = "390px";
  const plots = [...document.querySelectorAll(".plot")];
  Promise.all(plots.map((plot) => Plotly.Plots.resize(plot))).then(() => {
    seen.cut = plots.map((plot) => [plot.querySelector(".xtitle"), plot].map((one) => one.getBoundingClientRect()))
      .filter(([title, whole]) => title.left < whole.left || title.right > whole.right).length;
    seen.wide = document.querySelector("main").scrollWidth;
    document.title = JSON.stringify(seen);
  });
}, 50);
</script>
"""
"""What a reader does, and the page's answers, which become its title."""


def opened(address, tmp_path, *how):
    """Open a page in Chromium; return its content when it is drawn. Fail if it has an error to say."""
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=1280,900"]
    words += [f"--user-data-dir={tmp_path / 'profile'}", *how, "--dump-dom", address]
    done = subprocess.run([CHROMIUM, *words], capture_output=True, text=True, timeout=300, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


@browser
@pytest.mark.slow
def test_a_browser_draws_zooms_reads_and_switches_off(npz, runs, tmp_path):
    other = tmp_path / "other"
    assert run.main(flags(dataset=npz, out=other, **TINY | {"rounds": 2, "lr": 0.02}, dashboard="off")) == 0
    (other / "attacks").mkdir()
    scores = {score: Scores(0.5, None) for score in ("mse", "ssim", "ssim_mirrored", "psnr")}
    others = {"ssim_borders": "zeros", "by_seed": {}, "mean_image_mse": 0.1, "training": []}
    attack = AttackRecord("custom", 0.01, 50, 0, 8, [0], 2, **scores, **others)
    (other / "attacks" / "custom.json").write_text(json.dumps(to_json(attack)))
    assert report.main([*map(str, runs), str(other), "--out", str(tmp_path / "out")]) == 0
    html = (tmp_path / "out" / "report.html").read_text()
    copy = tmp_path / "copy.html"
    copy.write_text(html.replace("</body>", f"{PROBE}</body>"))
    dom = opened(copy.as_uri(), tmp_path, "--virtual-time-budget=20000")
    seen = json.loads(re.search(r"<title>(.*?)</title>", dom)[1])
    assert seen["zoom"] == pytest.approx(0.5)
    assert seen["reading"].startswith("training step 0: ")
    assert seen["axis"] == SENT
    assert seen["before"] > seen["after"] > 0
    assert (seen["cut"], seen["wide"]) == (0, 390)  # on a phone
    assert dom.count('class="main-svg"') >= 4


@browser
@pytest.mark.slow
def test_a_browser_is_kept_up_to_date(runs, tmp_path, monkeypatch):
    """The page begins with one round, and has both after the first event; then the stream breaks off."""
    copy = begun(runs[0], tmp_path / "run")
    honest, calls = serve.ServedRuns.news, count()

    def one_event(self):
        if next(calls) % 2:  # virtual time of the browser stands still while a stream is open
            raise BrokenPipeError
        (copy / "metrics.jsonl").write_bytes((runs[0] / "metrics.jsonl").read_bytes())
        return honest(self)

    monkeypatch.setattr(serve.ServedRuns, "news", one_event)
    monkeypatch.setattr(serve, "_REFRESH_SECONDS", 0.01)
    with served(copy) as port:
        with asked(port, "/") as answer:
            assert "<td>1 of 2</td>" in answer.read().decode()
        dom = opened(f"http://127.0.0.1:{port}/", tmp_path, "--virtual-time-budget=20000")
    assert "<td>2 of 2</td>" in dom
    assert dom.count('class="main-svg"') >= 4
