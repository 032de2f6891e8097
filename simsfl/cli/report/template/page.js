const byId = (id) => document.getElementById(id);
const dark = matchMedia("(prefers-color-scheme: dark)");
const touched = matchMedia("(pointer: coarse)"); // there a finger that drags scrolls the page
const BORDERS = { solid: "solid", dash: "dashed", dashdot: "double", dot: "dotted" };
const off = new Set(); // labels of the settings that are switched off
let shown = JSON.parse(byId("content").textContent);
let axis = ""; // what curves are shown against

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

async function loadLibrary() {
  const bytes = Uint8Array.from(atob(byId("library").textContent), (letter) => letter.charCodeAt(0));
  const text = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  document.head.append(element("script", { textContent: await new Response(text).text() }));
}

function option(kind, name, text, checked, changed) {
  const input = element("input", { type: kind, name, checked });
  input.addEventListener("change", () => { changed(input.checked); draw(); });
  return element("label", {}, input, text);
}

function showControls() {
  const axes = [...new Set(shown.charts.flatMap((chart) => Object.keys(chart.figures).length > 1 ? Object.keys(chart.figures) : []))];
  axis = axes.includes(axis) ? axis : axes[0] ?? "";
  const state = JSON.stringify([shown.settings, axes]);
  if (byId("controls").dataset.state === state) return;
  byId("controls").dataset.state = state;
  const settings = shown.settings.map(({ label, colour, dash }) => {
    const turn = (on) => on ? off.delete(label) : off.add(label);
    const made = option("checkbox", "setting", label, !off.has(label), turn);
    const line = element("span", { className: "line" });
    line.style.borderTop = `3px ${BORDERS[dash]} ${colour}`;
    made.insertBefore(line, made.lastChild);
    return made;
  });
  const all = (text, on) => {
    const button = element("button", { type: "button", textContent: text });
    button.addEventListener("click", () => {
      for (const box of byId("settings").querySelectorAll("input")) if (box.checked !== on) box.click();
    });
    return button;
  };
  if (settings.length > 3) settings.push(all("all", true), all("none", false));
  byId("settings").replaceChildren(byId("settings").firstElementChild, ...settings);
  byId("settings").hidden = settings.length < 2;
  const places = axes.map((name) => option("radio", "axis", name, name === axis, () => { axis = name; }));
  byId("axis").replaceChildren(byId("axis").firstElementChild, ...places);
  byId("axis").hidden = axes.length < 2;
}

function look(layout) {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`);
  const titled = (axis) => axis?.title && { ...axis, title: { ...axis.title, font: { size: 12 } } }; // fits a phone
  const ruled = { gridcolor: colour("rule"), zerolinecolor: colour("rule"), linecolor: colour("faint"), automargin: true };
  return {
    ...layout,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("text"), family: "system-ui, sans-serif", size: 12 },
    hoverlabel: { bgcolor: colour("card"), bordercolor: colour("rule"), font: { color: colour("text") }, namelength: -1 },
    margin: { l: 44, r: 8, t: 8, b: 44 },
    xaxis: { ...titled(layout.xaxis), ...ruled },
    yaxis: { ...layout.yaxis, ...ruled },
    dragmode: touched.matches ? false : "zoom",
    uirevision: axis, // the zoom stays when new values come
  };
}

function makeChart({ id, title, caption }) {
  const plot = element("div", { className: "plot", tabIndex: 0 });
  plot.setAttribute("role", "group");
  plot.setAttribute("aria-label", `${title}: chart; arrow keys read its values`);
  const reading = element("p", { className: "caption reading" });
  reading.setAttribute("role", "status");
  const move = (name, text, scale, shift) => {
    const button = element("button", { type: "button", textContent: text, title: name });
    button.setAttribute("aria-label", `${name}: ${title}`);
    button.addEventListener("click", () => {
      const [low, high] = plot.layout.xaxis.range;
      const middle = (low + high) / 2 + shift * (high - low), half = scale * (high - low) / 2;
      const whole = { "xaxis.autorange": true, "yaxis.autorange": true };
      Plotly.relayout(plot, scale ? { "xaxis.range": [middle - half, middle + half] } : whole);
    });
    return button;
  };
  const tools = [["zoom in", "+", 0.5, 0], ["zoom out", "−", 2, 0], ["earlier", "‹", 1, -0.25], ["later", "›", 1, 0.25], ["show all", "↺", 0, 0]];
  const head = element("div", { className: "head" }, element("h3", { textContent: title }), element("div", { className: "tools" }, ...tools.map((tool) => move(...tool))));
  plot.addEventListener("keydown", (event) => read(plot, reading, event));
  return element("figure", { id: `chart-${id}` }, head, plot, reading, element("p", { className: "caption", textContent: caption }));
}

function read(plot, reading, event) {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const lines = plot.calcdata
    .filter(([first]) => first?.trace?.visible === true && first.trace.hoverinfo !== "skip")
    .map((line) => ({ name: line[0].trace.name, points: line.filter((point) => Number.isFinite(point.y)) }))
    .filter((line) => line.points.length);
  if (!step || !lines.length) return;
  event.preventDefault();
  const longest = lines.map((line) => line.points).reduce((best, points) => points.length > best.length ? points : best);
  const stride = Math.ceil(longest.length / 50), last = longest.length - 1; // a long curve is crossed in 50 steps
  plot.at = Math.max(0, Math.min(last, (plot.at ?? (step > 0 ? -stride : last + stride)) + step * stride));
  const { x, y } = longest[plot.at];
  const text = (value) => Number(value.toPrecision(4)).toLocaleString("en");
  const values = lines.map(({ name, points }) => {
    const nearest = points.reduce((best, point) => Math.abs(point.x - x) < Math.abs(best.x - x) ? point : best);
    return `${name} ${text(nearest.y)}`;
  });
  reading.textContent = `${plot.layout.xaxis.title.text} ${text(x)}: ${values.join("; ")}`;
  Plotly.Fx.hover(plot, { xval: x, yval: y });
}

function draw() {
  const labels = shown.settings.map((setting) => setting.label);
  const charts = shown.charts.map((chart) => byId(`chart-${chart.id}`) ?? makeChart(chart));
  if (charts.some((chart, place) => byId("charts").children[place] !== chart)) byId("charts").replaceChildren(...charts);
  byId("empty").hidden = charts.length > 0;
  shown.charts.forEach((chart, place) => {
    const { data, layout } = chart.figures[axis] ?? Object.values(chart.figures)[0];
    const visible = data.map((trace) => ({ ...trace, visible: !off.has(labels[trace.meta]) }));
    charts[place].lastChild.textContent = chart.caption;
    Plotly.react(charts[place].querySelector(".plot"), visible, look(layout), { displayModeBar: false, responsive: true });
  });
}

function replaceTables(id, html) {
  const place = byId(id);
  if (place.dataset.html === html) return;
  const before = [...place.querySelectorAll(".wide")];
  const scrolled = before.map((table) => table.scrollLeft), focused = before.indexOf(document.activeElement);
  place.innerHTML = html; // made by simsfl, which escapes what is of others
  place.dataset.html = html;
  const after = place.querySelectorAll(".wide");
  scrolled.forEach((left, number) => { if (after[number]) after[number].scrollLeft = left; });
  after[focused]?.focus({ preventScroll: true });
}

function follow() {
  const news = new EventSource("events");
  const say = (text) => { if (byId("connection").textContent !== text) byId("connection").textContent = text; };
  news.onopen = () => say("connected: the page follows the runs");
  news.onerror = () => say("not connected; trying again");
  news.onmessage = (event) => {
    const { html, ...drawn } = JSON.parse(event.data);
    shown = drawn;
    for (const [id, text] of Object.entries(html)) replaceTables(id, text);
    showControls();
    draw();
  };
}

loadLibrary().then(() => {
  showControls();
  draw();
  dark.addEventListener("change", draw);
  if (LIVE) follow();
});
